//! What a pull may present to a registry.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::reference::DOCKER_HUB;

/// Padding may be there or not, and what is left of the last symbol may be anything.
const TOLERANT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Credentials for the registry that a reference names, or for the server that they name
/// themselves. Never sent to another host, never logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Auth {
    secret: Secret,
    /// As [`canonical_host`] gives it.
    server: Option<String>,
}

/// What is presented.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Secret {
    /// User name and password (Basic, or exchanged for a bearer token).
    Basic { username: String, password: String },
    /// An OAuth2 refresh token, exchanged for a bearer token.
    Identity(String),
    /// A bearer token used as it is.
    Bearer(String),
}

impl Auth {
    /// The credentials of CRI's `AuthConfig`; `None` when all of it is empty or `auth` is not
    /// base64 of `user:password`.
    pub fn from_cri(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Option<Self> {
        if !registry_token.is_empty() {
            return Some(Secret::Bearer(registry_token.to_owned()).into());
        }
        if !identity_token.is_empty() {
            return Some(Secret::Identity(identity_token.to_owned()).into());
        }
        if !username.is_empty() || !password.is_empty() {
            return Some(Self::basic(username, password));
        }
        if auth.trim().is_empty() {
            return None;
        }
        let decoded = decode_pair(auth);
        if decoded.is_none() {
            tracing::warn!("the pull's credentials are not base64 of user:password, and are left out");
        }
        decoded
    }

    /// The same for one server alone (CRI: `server_address`), which is a host, `host:port` or a
    /// URL. An empty text says nothing.
    #[must_use]
    pub fn for_server(mut self, address: &str) -> Self {
        let host = canonical_host(address);
        self.server = Some(host).filter(|host| !host.is_empty());
        self
    }

    pub(crate) fn basic(username: &str, password: &str) -> Self {
        Secret::Basic { username: username.to_owned(), password: password.to_owned() }.into()
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The one host that they are for, where they name one.
    pub(crate) fn server(&self) -> Option<&str> {
        self.server.as_deref()
    }
}

impl From<Secret> for Auth {
    fn from(secret: Secret) -> Self {
        Self { secret, server: None }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.secret {
            Secret::Basic { .. } => "Auth::Basic",
            Secret::Identity(_) => "Auth::Identity",
            Secret::Bearer(_) => "Auth::Bearer",
        })
    }
}

/// `user:password` in base64. People's secrets have line breaks, no padding or the alphabet of
/// URLs, and some tools end the password with NUL bytes.
pub(crate) fn decode_pair(text: &str) -> Option<Auth> {
    let symbols = text.chars().filter(|c| !c.is_whitespace()).map(|c| match c {
        '-' => '+',
        '_' => '/',
        c => c,
    });
    let decoded = TOLERANT.decode(symbols.collect::<String>()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.trim_end_matches(['\0', '\n', '\r']).split_once(':')?;
    Some(Auth::basic(username, password))
}

/// The value of an `Authorization` header for a user and a password.
pub(crate) fn basic_header(username: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")))
}

/// The host of a URL or of `host[:port][/path]` in one spelling: lower case, without the usual
/// port of TLS, and Docker Hub under one name.
pub(crate) fn canonical_host(text: &str) -> String {
    let text = text.trim();
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = text.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host).to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_cri_auth_in_order_of_strength() {
        let basic = |u: &str, p: &str| Some(Auth::basic(u, p));
        assert_eq!(Auth::from_cri("", "", "", "", ""), None);
        assert_eq!(Auth::from_cri("u", "p", "", "", ""), basic("u", "p"));
        assert_eq!(Auth::from_cri("", "", "bm8gY29sb24=", "", ""), None);
        assert_eq!(Auth::from_cri("", "", "%%%%", "", ""), None);
        assert_eq!(Auth::from_cri("", "", "AAA", "", ""), None);
        assert_eq!(Auth::from_cri("u", "p", "", "i", ""), Some(Secret::Identity("i".into()).into()));
        assert_eq!(Auth::from_cri("u", "p", "", "i", "r"), Some(Secret::Bearer("r".into()).into()));
    }

    #[test]
    fn base64_is_taken_in_all_spellings() {
        let password = "pa:ss\u{3bf}\u{3fe}>>>???~~~";
        let whole = basic_header("user", password).split_off("Basic ".len());
        let wrapped: Vec<&str> = whole.as_bytes().chunks(8).map(|c| std::str::from_utf8(c).unwrap()).collect();
        for text in [
            whole.clone(),
            format!("  {whole}\n"),
            wrapped.join("\r\n"),
            wrapped.join(" "),
            whole.trim_end_matches('=').to_owned(),
            whole.replace('+', "-").replace('/', "_"),
        ] {
            assert_eq!(Auth::from_cri("", "", &text, "", ""), Some(Auth::basic("user", password)), "{text:?}");
        }
        // "u:p\0" and "u:p\n".
        for text in ["dTpwAA==", "dTpwCg=="] {
            assert_eq!(Auth::from_cri("", "", text, "", ""), Some(Auth::basic("u", "p")), "{text:?}");
        }
    }

    #[test]
    fn servers_have_one_spelling() {
        for (text, host) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("https://Registry.Example:443/v2/?x", "registry.example"),
            ("registry.example:5000", "registry.example:5000"),
            ("http://u:p@[::1]:5000/x", "[::1]:5000"),
            ("", ""),
        ] {
            assert_eq!(canonical_host(text), host, "{text}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let auth = Auth::from_cri("user", "secret", "", "", "").unwrap().for_server("x");
        assert_eq!(format!("{auth:?}"), "Auth::Basic");
    }
}

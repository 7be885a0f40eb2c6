//! What a pull may present to a registry.

use std::fmt;

/// Credentials for the registry that a reference names. Never sent to mirrors, never logged.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// User name and password (Basic, or exchanged for a bearer token).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token, exchanged for a bearer token (CRI: `identity_token`).
    Identity(String),
    /// A bearer token used as it is (CRI: `registry_token`).
    Bearer(String),
}

impl Auth {
    /// The credentials of CRI's `AuthConfig`; `None` when all of it is empty or `auth` is not base64 of `user:password`.
    pub fn from_cri(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Option<Self> {
        if !registry_token.is_empty() {
            return Some(Self::Bearer(registry_token.to_owned()));
        }
        if !identity_token.is_empty() {
            return Some(Self::Identity(identity_token.to_owned()));
        }
        if !username.is_empty() || !password.is_empty() {
            return Some(Self::Basic { username: username.to_owned(), password: password.to_owned() });
        }
        let decoded = decode_base64(auth.trim())?;
        let text = String::from_utf8(decoded).ok()?;
        let (username, password) = text.trim_end_matches('\0').split_once(':')?;
        Some(Self::Basic { username: username.to_owned(), password: password.to_owned() })
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Auth::Basic",
            Self::Identity(_) => "Auth::Identity",
            Self::Bearer(_) => "Auth::Bearer",
        })
    }
}

/// RFC 4648 base64 with padding; not worth a dependency.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.len().is_multiple_of(4) {
        return None;
    }
    let unpadded = text.trim_end_matches('=');
    if text.len() - unpadded.len() > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for symbol in unpadded.bytes() {
        let value = match symbol {
            b'A'..=b'Z' => symbol - b'A',
            b'a'..=b'z' => symbol - b'a' + 26,
            b'0'..=b'9' => symbol - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

pub(crate) fn encode_base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0u32, |group, i| group << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let symbol = ALPHABET[(group >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { symbol.into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_cri_auth_in_order_of_strength() {
        let basic = |u: &str, p: &str| Some(Auth::Basic { username: u.into(), password: p.into() });
        assert_eq!(Auth::from_cri("", "", "", "", ""), None);
        assert_eq!(Auth::from_cri("u", "p", "", "", ""), basic("u", "p"));
        assert_eq!(Auth::from_cri("", "", "dXNlcjpwYTpzcw==", "", ""), basic("user", "pa:ss"));
        assert_eq!(Auth::from_cri("", "", "bm8gY29sb24=", "", ""), None);
        assert_eq!(Auth::from_cri("", "", "%%%%", "", ""), None);
        assert_eq!(Auth::from_cri("", "", "AAA", "", ""), None);
        assert_eq!(Auth::from_cri("u", "p", "", "i", ""), Some(Auth::Identity("i".into())));
        assert_eq!(Auth::from_cri("u", "p", "", "i", "r"), Some(Auth::Bearer("r".into())));
    }

    #[test]
    fn base64_comes_back() {
        for text in ["f", "fo", "foo", "foob", "user:p\u{e4}ss", "\u{ff}\u{fe}"] {
            assert_eq!(decode_base64(&encode_base64(text.as_bytes())).unwrap(), text.as_bytes());
        }
        assert_eq!(encode_base64(b"foob"), "Zm9vYg==");
    }

    #[test]
    fn debug_shows_no_secret() {
        let auth = Auth::from_cri("user", "secret", "", "", "").unwrap();
        assert_eq!(format!("{auth:?}"), "Auth::Basic");
    }
}

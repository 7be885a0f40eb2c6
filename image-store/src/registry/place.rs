//! Where a registry's images are: the one form that `[registries]` and `hosts.toml` both come to.

use std::net::{IpAddr, Ipv4Addr};

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::credentials::{Auth, canonical_host};
use super::tls::Trust;
use crate::config::RegistryConfig;
use crate::reference::DOCKER_HUB;

/// One server that has a registry's images.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) scheme: Scheme,
    /// `host[:port]`.
    pub(crate) host: String,
    /// Before the repository in a path, without a slash at its end: `/v2`, `/cache/v2`.
    pub(crate) root: String,
    /// The registry itself, and not a mirror: it may see the credentials of the pull.
    pub(crate) origin: bool,
    /// Has manifests by digest, and blobs.
    pub(crate) pull: bool,
    /// Knows what tags stand for.
    pub(crate) resolve: bool,
    pub(crate) trust: Trust,
    /// Its certificate is not checked since it is on this machine: others' are.
    pub(crate) skip_verify_here: bool,
    pub(crate) headers: HeaderMap,
    /// Of this place alone.
    pub(crate) login: Option<Auth>,
    /// Its token service and its blobs may be elsewhere over plain HTTP although it has TLS.
    pub(crate) downgrade: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// TLS, and plain HTTP where the server does not speak TLS. For loopback only.
    Either,
}

/// A URL of the configuration, in parts.
pub(crate) struct Parts {
    pub(crate) scheme: Scheme,
    pub(crate) host: String,
    /// Without a slash at its end.
    pub(crate) path: String,
    pub(crate) login: Option<Auth>,
}

impl Place {
    fn new(scheme: Scheme, host: String, origin: bool) -> Self {
        Self {
            scheme,
            host,
            root: "/v2".into(),
            origin,
            pull: true,
            resolve: true,
            trust: Trust::default(),
            skip_verify_here: false,
            headers: HeaderMap::new(),
            login: None,
            downgrade: false,
        }
    }

    /// The registry itself, of which nothing is configured. One on loopback is spoken to as it
    /// speaks, and its certificate is not checked.
    pub(crate) fn upstream(registry: &str) -> Self {
        if registry == DOCKER_HUB {
            return Self::new(Scheme::Https, "registry-1.docker.io".into(), true);
        }
        if !is_loopback(registry) {
            return Self::new(Scheme::Https, registry.into(), true);
        }
        let scheme = match port(registry) {
            Some("80") => Scheme::Http,
            None | Some("443") => Scheme::Https,
            Some(_) => Scheme::Either,
        };
        let mut place = Self::new(scheme, registry.into(), true);
        place.trust.skip_verify = true;
        place.skip_verify_here = true;
        place
    }

    /// What the daemon's configuration says of a registry.
    pub(crate) fn configured(registry: &str, settings: &RegistryConfig) -> Result<Vec<Self>, String> {
        let trust = Trust { authorities: settings.ca_files.clone(), ..Trust::default() };
        let mut places = Vec::new();
        for mirror in &settings.mirrors {
            let parts = split(mirror).map_err(|reason| format!("mirror {:?} {reason}", without_login(mirror)))?;
            let mut place = Self::new(parts.scheme, parts.host, false);
            // The prefix is part of the repository's name there.
            place.root = format!("/v2{}", parts.path);
            place.login = parts.login;
            places.push(place);
        }
        if !settings.mirrors_only {
            let mut place = Self::upstream(registry);
            if settings.plain_http {
                place.scheme = Scheme::Http;
            }
            places.push(place);
        } else if places.is_empty() {
            return Err("mirrors_only without mirrors".into());
        }
        for place in &mut places {
            // Who names authorities wants certificates to be checked, on loopback too.
            let skip_verify = place.trust.skip_verify && trust.authorities.is_empty();
            place.trust = Trust { skip_verify, ..trust.clone() };
            place.downgrade = settings.insecure_redirects;
        }
        Ok(places)
    }

    /// Whether this is another server than the registry of the reference, and so has to be told
    /// which registry's image is meant.
    pub(crate) fn is_proxy_of(&self, registry: &str) -> bool {
        canonical_host(&self.host) != canonical_host(registry)
    }
}

/// `http://[user:password@]host[:port][/path]` in parts.
pub(crate) fn split(text: &str) -> Result<Parts, &'static str> {
    const FORM: &str = "is not http:// or https:// with host[:port][/path]";
    let url = Url::parse(text).map_err(|_| FORM)?;
    let scheme = match url.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        _ => return Err(FORM),
    };
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let no_host = rest.is_empty() || rest.starts_with('/');
    if no_host || url.query().is_some() || url.fragment().is_some() || text.contains(char::is_whitespace) {
        return Err(FORM);
    }
    let host = url.host_str().ok_or(FORM)?;
    let host = url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let login = (!url.username().is_empty())
        .then(|| Auth::basic(&unescape(url.username()), &unescape(url.password().unwrap_or_default())));
    Ok(Parts { scheme, host, path: url.path().trim_end_matches('/').to_owned(), login })
}

/// `%40` as `@`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| byte == b'%').and_then(|hex| {
            let hex = std::str::from_utf8(hex).ok()?;
            u8::from_str_radix(hex, 16).ok()
        });
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A registry's or mirror's URL as it may be shown: without the name and password in it.
pub fn without_login(text: &str) -> String {
    match text.split_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
            format!("{scheme}***@{after}")
        }
        None => text.to_owned(),
    }
}

fn port(host: &str) -> Option<&str> {
    let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    behind.rsplit_once(':').map(|(_, port)| port)
}

/// `localhost`, 127.0.0.0/8 or `::1`, with a port or without.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost") || name == Ipv4Addr::LOCALHOST.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_only_for_loopback_and_for_who_asked_for_it() {
        for (registry, scheme, skip_verify) in [
            ("registry.example", Scheme::Https, false),
            ("registry.example:80", Scheme::Https, false),
            ("10.0.0.1:5000", Scheme::Https, false),
            ("localhost.example:5000", Scheme::Https, false),
            ("128.0.0.1:5000", Scheme::Https, false),
            ("localhost:5000", Scheme::Either, true),
            ("127.0.0.1:5000", Scheme::Either, true),
            ("127.3.2.1:5000", Scheme::Either, true),
            ("[::1]:5000", Scheme::Either, true),
            ("localhost:80", Scheme::Http, true),
            ("localhost", Scheme::Https, true),
            ("[::1]", Scheme::Https, true),
            ("localhost:443", Scheme::Https, true),
        ] {
            let place = Place::upstream(registry);
            assert_eq!((place.scheme, place.trust.skip_verify), (scheme, skip_verify), "{registry}");
            let plain = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
            assert_eq!(Place::configured(registry, &plain).unwrap()[0].scheme, Scheme::Http, "{registry}");
        }
        let checked = RegistryConfig { ca_files: vec!["/ca.pem".into()], ..RegistryConfig::default() };
        assert!(!Place::configured("localhost:5000", &checked).unwrap()[0].trust.skip_verify);
    }

    #[test]
    fn mirrors_are_urls() {
        let settings = |mirror: &str| RegistryConfig { mirrors: vec![mirror.into()], ..RegistryConfig::default() };
        let place = Place::configured("docker.io", &settings("https://u%40x:p%3a@Mirror.example:8443/a/b/")).unwrap();
        assert_eq!((&*place[0].host, &*place[0].root), ("mirror.example:8443", "/v2/a/b"));
        assert_eq!(place[0].login, Some(Auth::basic("u@x", "p:")));
        assert!(!place[0].origin && place[1].origin && place[1].host == "registry-1.docker.io");
        assert!(place[0].is_proxy_of("docker.io") && !place[1].is_proxy_of("docker.io"));
        for bad in ["127.0.0.1:5000", "ftp://x", "http://", "http:///x", "http://h?x", "http://h#x", "http://a b", ""] {
            assert!(Place::configured("x", &settings(bad)).is_err(), "{bad}");
        }
        let error = Place::configured("x", &settings("http://user:secret@h?x")).unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }
}

//! `hosts.toml`, as containerd reads it.
//!
//! ```toml
//! server = "https://registry.example"     # asked last; the registry itself when it is absent
//!
//! [host."https://mirror.example/cache"]   # asked before it, in the order of the file
//! capabilities = ["pull", "resolve"]
//! ca = "ca.pem"                           # paths are relative to the file's folder
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::credentials::canonical_host;
use super::place::{Place, split, without_login};
use crate::reference::DOCKER_HUB;

/// The settings of the file itself, which are those of `server`, and of each `[host]`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Host {
    capabilities: Option<Spanned<Vec<String>>>,
    ca: Option<Spanned<OneOrMore>>,
    client: Option<Spanned<Client>>,
    skip_verify: Option<bool>,
    override_path: bool,
    header: BTreeMap<Spanned<String>, OneOrMore>,
    dial_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    server: Option<Spanned<String>>,
    /// Ordered by [`Spanned::span`], as the file is.
    host: BTreeMap<Spanned<String>, Host>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    More(Vec<Pair>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Alone(String),
    Pair([String; 2]),
}

impl OneOrMore {
    fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }
}

/// What is wrong, and at which byte of the file.
type Wrong = (usize, String);

/// The places of a registry by the text of its `hosts.toml`, which is at `path`. The error names
/// file and line.
pub(crate) fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Place>, String> {
    let syntax = |e: toml::de::Error| {
        let at = e.span().map_or(0, |span| span.start);
        format!("{}:{}: {}", path.display(), line(text, at), e.message())
    };
    // Twice, since the settings of `server` stand beside it, and serde's flattening loses spans.
    let file: File = toml::from_str(text).map_err(syntax)?;
    let own: Host = toml::from_str(text).map_err(syntax)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    places(folder, &file, &own, registry)
        .map_err(|(at, reason)| format!("{}:{}: {reason}", path.display(), line(text, at)))
}

fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count()
}

fn places(folder: &Path, file: &File, own: &Host, registry: &str) -> Result<Vec<Place>, Wrong> {
    let mut hosts: Vec<_> = file.host.iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mut places = Vec::new();
    for (url, host) in hosts {
        let mut place = located(url, host)?;
        place.origin = !place.is_proxy_of(registry);
        settings(&mut place, folder, host)?;
        places.push(place);
    }
    let mut server = match &file.server {
        Some(url) if !url.as_ref().is_empty() => located(url, own)?,
        _ => Place::upstream(registry),
    };
    // The administrator says that this is the registry.
    server.origin = true;
    settings(&mut server, folder, own)?;
    places.push(server);
    Ok(places)
}

/// The place of a URL. `/v2` is added to its path unless it is there or the path is to be taken as
/// it is.
fn located(url: &Spanned<String>, host: &Host) -> Result<Place, Wrong> {
    let text: &str = url.as_ref();
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let parts = split(&text).map_err(|reason| (url.span().start, format!("{:?} {reason}", without_login(&text))))?;
    let hub = canonical_host(&parts.host) == DOCKER_HUB;
    let mut place = Place::upstream(if hub { DOCKER_HUB } else { &parts.host });
    place.scheme = parts.scheme;
    (place.trust.skip_verify, place.skip_verify_here) = (false, false);
    // Docker Hub's name for people has no registry behind it, and stands in many of these files.
    if !hub {
        place.host = parts.host;
    }
    place.login = parts.login;
    place.root = if host.override_path || parts.path.ends_with("/v2") { parts.path } else { parts.path + "/v2" };
    Ok(place)
}

fn settings(place: &mut Place, folder: &Path, host: &Host) -> Result<(), Wrong> {
    if let Some(capabilities) = host.capabilities.as_ref().filter(|list| !list.as_ref().is_empty()) {
        (place.pull, place.resolve) = (false, false);
        for capability in capabilities.as_ref() {
            match capability.to_ascii_lowercase().as_str() {
                "pull" => place.pull = true,
                "resolve" => place.resolve = true,
                "push" | "referrers" => {}
                _ => {
                    let reason = format!("{capability:?} is no capability: there are pull, resolve and push");
                    return Err((capabilities.span().start, reason));
                }
            }
        }
    }
    if let Some(ca) = &host.ca {
        place.trust.authorities = ca.as_ref().list().iter().map(|file| folder.join(file)).collect();
    }
    if let Some(client) = &host.client {
        let alone = |file: &String| (folder.join(file), None);
        place.trust.identities = match client.as_ref() {
            Client::One(file) => vec![alone(file)],
            Client::More(pairs) => pairs.iter().map(|pair| identity(folder, pair)).collect(),
        };
    }
    if let Some(skip_verify) = host.skip_verify {
        (place.trust.skip_verify, place.skip_verify_here) = (skip_verify, false);
    } else if !place.trust.authorities.is_empty() {
        place.trust.skip_verify = false;
    }
    // Who does not check whom it talks to loses nothing by plain HTTP.
    place.downgrade = place.trust.skip_verify && !place.skip_verify_here;
    place.headers = headers(host)?;
    if let Some(timeout) = &host.dial_timeout {
        let time = duration(timeout.as_ref()).ok_or_else(|| {
            (timeout.span().start, format!("dial_timeout {:?} is not a time such as \"3s\"", timeout.as_ref()))
        })?;
        place.trust.connect = Some(time).filter(|time| !time.is_zero());
    }
    Ok(())
}

fn identity(folder: &Path, pair: &Pair) -> (PathBuf, Option<PathBuf>) {
    match pair {
        Pair::Alone(file) => (folder.join(file), None),
        Pair::Pair([certificate, key]) => {
            (folder.join(certificate), Some(key).filter(|key| !key.is_empty()).map(|key| folder.join(key)))
        }
    }
}

fn headers(host: &Host) -> Result<HeaderMap, Wrong> {
    let mut headers = HeaderMap::new();
    for (name, values) in &host.header {
        let wrong = |_| (name.span().start, format!("header {:?} is not one of HTTP", name.as_ref()));
        let header = HeaderName::try_from(name.as_ref().as_str()).map_err(|_| wrong(()))?;
        for value in values.list() {
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong(()))?;
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    Ok(headers)
}

/// Go's form of a time: `1m30s`, `500ms`, `1.5h`, `0`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut sum = 0.0;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        sum += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
        if rest.is_empty() {
            return Duration::try_from_secs_f64(sum).ok();
        }
    }
}

#[cfg(test)]
mod tests;

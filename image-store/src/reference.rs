//! Image references: the grammar of the distribution project with Docker Hub's defaults.
//!
//! ```text
//! [host[:port]/]path[/path...][:tag][@sha256:hex]
//! ```
//!
//! The first component is a host when it has a dot or a colon, is `localhost`, or has an upper-case
//! letter; otherwise the reference is Docker Hub's. Names of one component are Docker Hub's
//! `library/`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

pub(crate) const DOCKER_HUB: &str = "docker.io";
/// The distribution grammar's limit on host and repository together.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference: has always a host, a repository, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// The registry as the reference names it, `host[:port]`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository within the registry, `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where the text had neither tag nor digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over a tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// `host/repository:tag`, unless a digest decides.
    pub(crate) fn tag_key(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `host/repository@digest` with the reference's own digest or, for a tag, with the one that
    /// was served.
    pub(crate) fn digest_key(&self, served: &Digest) -> String {
        format!("{}@{}", self.name(), self.digest.as_ref().unwrap_or(served))
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ReferenceError { text: text.chars().take(300).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("empty");
    }
    if text.len() > MAX_NAME + MAX_TAG + 140 {
        return Err("longer than a reference can be");
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "what follows @ is not sha256: and 64 lower-case hex digits, or sha512: and 128")?;
            (rest, Some(digest))
        }
    };
    if Digest::from_hex(rest).is_some() {
        return Err("64 hex digits are an image id, not a name");
    }
    // A colon after the last slash begins a tag; one before it belongs to the host's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => {
            check_tag(tag)?;
            (name, Some(tag.to_owned()))
        }
        _ => (rest, None),
    };
    let (host, repository) = split_host(name);
    check_host(&host)?;
    check_repository(&repository)?;
    if host.len() + 1 + repository.len() > MAX_NAME {
        return Err("host and repository are longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest".to_owned()),
        (tag, _) => tag,
    };
    Ok(Reference { host, repository, tag, digest })
}

fn split_host(name: &str) -> (String, String) {
    let (host, repository) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DOCKER_HUB, name),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
        other => other,
    };
    if host == DOCKER_HUB && !repository.contains('/') {
        (host.to_owned(), format!("library/{repository}"))
    } else {
        (host.to_owned(), repository.to_owned())
    }
}

fn looks_like_host(component: &str) -> bool {
    component.contains(['.', ':']) || component == "localhost" || component.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        // An IPv6 address in brackets.
        let (address, rest) = rest.split_once(']').ok_or("host has no closing bracket")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("host in brackets is not an IPv6 address");
        }
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return Err("host has text after its closing bracket"),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if let Some(name) = name {
        let valid = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !name.split('.').all(valid) {
            return Err("host has a character or a label that hosts do not have");
        }
    }
    match port {
        Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() => {
            Err("port is not a number up to 65535")
        }
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    for component in repository.split('/') {
        if component.is_empty() {
            return Err("repository has an empty component");
        }
        check_component(component)?;
    }
    Ok(())
}

/// Lower-case letters and digits, separated by one dot, one or two underscores, or any number of
/// dashes.
fn check_component(component: &str) -> Result<(), &'static str> {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("repository must be lower case");
    }
    if !alphanumeric(bytes[0]) || !alphanumeric(bytes[bytes.len() - 1]) {
        return Err("repository components begin and end with a letter or digit");
    }
    for separator in component.split(|c: char| c.is_ascii() && alphanumeric(c as u8)) {
        let valid = matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
        if !valid {
            return Err("repository has a character or separator that names do not have");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = !tag.is_empty()
        && tag.len() <= MAX_TAG
        && word(tag.as_bytes()[0])
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid { Ok(()) } else { Err("tag is not 1 to 128 of letters, digits, _ . -") }
}

#[cfg(test)]
mod tests;

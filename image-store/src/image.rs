//! What an image says about itself: the config document, turned into a typed, allow-listed, bounded struct.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};

const MAX_ITEMS: usize = 4096;
const MAX_STRING: usize = 128 << 10;
const MAX_PATH: usize = 4096;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<config digest>`: the one identity that CRI knows an image by.
    pub id: String,
    /// `docker.io/library/busybox:latest` and such, sorted.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:..`: the digest as it was referenced, or as it was served for a tag
    /// (of the index where the tag is one), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the layers as they were sent, and of the config.
    pub size: u64,
    /// Bytes that the layers take on the disk, those that other images have too included.
    pub disk_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// Never to be collected.
    pub pinned: bool,
}

/// How an image wants to be run. Nothing beyond these fields is kept of the config document.
///
/// No string has a NUL. `user`, `working_dir`, `stop_signal`, `volumes`, `exposed_ports`, environment names and `HOME`
/// have no control character at all; other environment values, arguments and label values may have newlines, so
/// they must not reach line-based files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, `name` or `name:group`; empty is root.
    pub user: String,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// Goes before the arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Absolute, or empty.
    pub working_dir: String,
    /// `SIGTERM`, `15`, ...
    pub stop_signal: Option<String>,
    /// Absolute paths that want a volume.
    pub volumes: Vec<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Free text. Entries with control characters in the key were left out.
    pub labels: BTreeMap<String, String>,
    /// Go's name of the architecture; empty when the image does not say.
    pub architecture: String,
    /// `linux`; empty when the image does not say.
    pub os: String,
}

/// The config document, and what the store itself needs of it.
#[derive(Debug)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: Process,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Process {
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
}

/// Go writes nil slices and maps as `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a config document that is already known to have the right digest and a bounded size.
pub(crate) fn parse_config(bytes: &[u8]) -> StoreResult<ParsedConfig> {
    let document: Document = serde_json::from_slice(bytes).map_err(|e| malformed(&e.to_string()))?;
    let Document { architecture, os, config, rootfs } = document;
    check_word("architecture", &architecture)?;
    check_word("os", &os)?;
    let config = check(config, architecture, os)?;
    Ok(ParsedConfig { config, diff_ids: rootfs.diff_ids })
}

fn check(process: Process, architecture: String, os: String) -> StoreResult<ImageConfig> {
    check_line("User", &process.user, 256)?;
    check_line("WorkingDir", &process.working_dir, MAX_PATH)?;
    check_word("StopSignal", &process.stop_signal)?;
    for (field, list) in [("Env", &process.env), ("Entrypoint", &process.entrypoint), ("Cmd", &process.cmd)] {
        check_count(field, list.len())?;
        for item in list {
            check_text(field, item)?;
        }
    }
    for item in &process.env {
        check_env(item)?;
    }
    let volumes = keys("Volumes", process.volumes)?;
    if let Some(bad) = volumes.iter().find(|v| !v.starts_with('/')) {
        return Err(malformed(&format!("volume {bad:?} is not absolute")));
    }
    let exposed_ports = keys("ExposedPorts", process.exposed_ports)?;
    check_count("Labels", process.labels.len())?;
    let mut labels = process.labels;
    labels.retain(|key, value| {
        key.len() <= MAX_PATH
            && value.len() <= MAX_STRING
            && !key.chars().any(char::is_control)
            && !value.chars().any(|c| c.is_control() && c != '\n' && c != '\t')
    });
    Ok(ImageConfig {
        user: process.user,
        env: process.env,
        entrypoint: process.entrypoint,
        cmd: process.cmd,
        working_dir: process.working_dir,
        stop_signal: Some(process.stop_signal).filter(|s| !s.is_empty()),
        volumes,
        exposed_ports,
        labels,
        architecture,
        os,
    })
}

fn keys(field: &str, map: BTreeMap<String, serde::de::IgnoredAny>) -> StoreResult<Vec<String>> {
    check_count(field, map.len())?;
    map.into_keys().map(|key| check_line(field, &key, MAX_PATH).map(|()| key)).collect()
}

/// `NAME=value`; the name is printable, and so is the value of `HOME`, which is copied into
/// /etc/passwd-like places. An entry without a name is refused when a container is made of the image,
/// as other runtimes do: the image itself can be pulled and mounted.
fn check_env(item: &str) -> StoreResult<()> {
    let (name, value) = item.split_once('=').unwrap_or((item, ""));
    check_line("Env", name, MAX_PATH)?;
    if name == "HOME" {
        check_line("Env HOME", value, MAX_PATH)?;
        if value.contains(':') {
            return Err(malformed("Env HOME has a colon"));
        }
    }
    Ok(())
}

fn check_count(field: &str, count: usize) -> StoreResult<()> {
    if count > MAX_ITEMS {
        return Err(StoreError::TooLarge {
            what: format!("image config's {field}"),
            limit: format!("{MAX_ITEMS} entries"),
        });
    }
    Ok(())
}

fn check_text(field: &str, text: &str) -> StoreResult<()> {
    if text.len() > MAX_STRING {
        return Err(StoreError::TooLarge {
            what: format!("a string in image config's {field}"),
            limit: format!("{MAX_STRING} bytes"),
        });
    }
    if text.contains('\0') {
        return Err(malformed(&format!("{field} has a NUL")));
    }
    Ok(())
}

fn check_line(field: &str, text: &str, limit: usize) -> StoreResult<()> {
    check_text(field, text)?;
    if text.len() > limit {
        return Err(StoreError::TooLarge { what: format!("image config's {field}"), limit: format!("{limit} bytes") });
    }
    if text.chars().any(|c| c.is_control() || c == '\u{2028}' || c == '\u{2029}') {
        return Err(malformed(&format!("{field} has a control character")));
    }
    Ok(())
}

/// A short identifier: `amd64`, `SIGRTMIN+3`.
fn check_word(field: &str, text: &str) -> StoreResult<()> {
    let valid = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_./".contains(&b));
    if valid { Ok(()) } else { Err(malformed(&format!("{field} is not a plain word"))) }
}

fn malformed(detail: &str) -> StoreError {
    StoreError::malformed("image config", detail)
}

#[cfg(test)]
mod tests;

//! What an image says about itself: the config document, turned into a typed, allow-listed, bounded
//! struct.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::{self, Item, Loose, go_struct};

const MAX_ITEMS: usize = 4096;
const MAX_STRING: usize = 128 << 10;
const MAX_LABEL: usize = 4096;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<config digest>`: the one identity that CRI knows an image by. Of an artifact, the
    /// manifest's digest.
    pub id: String,
    /// `docker.io/library/busybox:latest` and such, sorted.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/busybox@sha256:..`: the digest as it was referenced, or as it was served
    /// for a tag (of the index where the tag is one), sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of the layers as they were sent, and of the config.
    pub size: u64,
    /// Bytes that the layers take on the disk, those that other images have too included.
    pub disk_bytes: u64,
    /// How to run it.
    pub config: ImageConfig,
    /// The type of an OCI artifact. It has files and says nothing of how to run them, so that it can
    /// back a volume and not a container. `None` for a container image.
    pub artifact: Option<String>,
    /// Never to be collected.
    pub pinned: bool,
}

/// How an image wants to be run. Nothing beyond these fields is kept of the config document.
///
/// Strings and lists are bounded. Otherwise the values are the image's own, whatever they are: a
/// bad one is no reason to refuse the image, which may be run with other values. Whoever uses one
/// checks it first: control characters must not reach line-based files, nor a NUL the kernel.
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
    /// Empty is `/`.
    pub working_dir: String,
    /// `SIGTERM`, `15`, ...
    pub stop_signal: Option<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Free text. Entries with control characters in the key were left out.
    pub labels: BTreeMap<String, String>,
    /// The architecture as the image names it; empty when it does not say.
    pub architecture: String,
    /// `linux`; empty when the image does not say.
    pub os: String,
}

/// The config document, and what the store itself needs of it.
#[derive(Debug)]
pub(crate) struct ParsedConfig {
    pub(crate) config: ImageConfig,
    /// Of the architecture: `v8` and such.
    pub(crate) variant: String,
    pub(crate) diff_ids: Vec<Digest>,
}

go_struct! {
    struct Document {
        architecture: Loose = "architecture",
        os: Loose = "os",
        variant: Loose = "variant",
        config: Process = "config",
        rootfs: Option<RootFs> = "rootfs",
    }
}

go_struct! {
    struct RootFs {
        diff_ids: Vec<Item<String>> = "diff_ids",
    }
}

/// The keys of a map whose values say nothing.
type Keys = BTreeMap<String, serde::de::IgnoredAny>;

go_struct! {
    struct Process {
        user: String = "User",
        env: Vec<Item<String>> = "Env",
        entrypoint: Vec<Item<String>> = "Entrypoint",
        cmd: Vec<Item<String>> = "Cmd",
        working_dir: String = "WorkingDir",
        stop_signal: String = "StopSignal",
        volumes: Keys = "Volumes",
        exposed_ports: Keys = "ExposedPorts",
        labels: BTreeMap<String, Item<String>> = "Labels",
    }
}

/// Reads a config document that is already known to have the right digest and a bounded size.
///
/// # Errors
/// It is no JSON object with `rootfs`, has a value of another type than Go's decoder takes, or is
/// beyond a bound.
pub(crate) fn parse_config(bytes: &[u8]) -> StoreResult<ParsedConfig> {
    let Document { architecture, os, variant, config, rootfs } =
        json::read(bytes).map_err(|e| malformed(&e.to_string()))?;
    let rootfs = rootfs.ok_or_else(|| malformed("has no rootfs"))?;
    let diff_ids = rootfs.diff_ids.iter().map(|Item(id)| id.parse().map_err(|e| malformed(&format!("diff_ids: {e}"))));
    let diff_ids = diff_ids.collect::<StoreResult<_>>()?;
    for (field, text) in [("architecture", &architecture), ("os", &os), ("variant", &variant)] {
        bounded(field, &text.text, 64)?;
    }
    Ok(ParsedConfig { config: typed(config, architecture.text, os.text)?, variant: variant.text, diff_ids })
}

fn typed(process: Process, architecture: String, os: String) -> StoreResult<ImageConfig> {
    for (field, text) in
        [("User", &process.user), ("WorkingDir", &process.working_dir), ("StopSignal", &process.stop_signal)]
    {
        bounded(field, text, MAX_STRING)?;
    }
    check_count("Labels", process.labels.len())?;
    let labels = process.labels.into_iter().map(|(key, Item(value))| (key, value)).filter(|(key, value)| {
        key.len() <= MAX_LABEL
            && value.len() <= MAX_STRING
            && !key.chars().any(char::is_control)
            && !value.chars().any(|c| c.is_control() && c != '\n' && c != '\t')
    });
    Ok(ImageConfig {
        labels: labels.collect(),
        user: process.user,
        env: list("Env", process.env.into_iter().map(|Item(text)| text))?,
        entrypoint: list("Entrypoint", process.entrypoint.into_iter().map(|Item(text)| text))?,
        cmd: list("Cmd", process.cmd.into_iter().map(|Item(text)| text))?,
        working_dir: process.working_dir,
        stop_signal: Some(process.stop_signal).filter(|s| !s.is_empty()),
        volumes: list("Volumes", process.volumes.into_keys())?,
        exposed_ports: list("ExposedPorts", process.exposed_ports.into_keys())?,
        architecture,
        os,
    })
}

fn list(field: &str, items: impl ExactSizeIterator<Item = String>) -> StoreResult<Vec<String>> {
    check_count(field, items.len())?;
    items.map(|text| bounded(field, &text, MAX_STRING).map(|()| text)).collect()
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

fn bounded(field: &str, text: &str, limit: usize) -> StoreResult<()> {
    if text.len() > limit {
        return Err(StoreError::TooLarge {
            what: format!("a string in image config's {field}"),
            limit: format!("{limit} bytes"),
        });
    }
    Ok(())
}

fn malformed(detail: &str) -> StoreError {
    StoreError::malformed("image config", detail)
}

#[cfg(test)]
mod tests;

//! Manifests and indexes: OCI 1.x and Docker schema 2.

use serde::Deserialize;

use crate::config::{Limits, Platform};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// How a layer's tar stream is packed, as its media type says. The bytes decide where it says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Docker's `.tar` may be anything.
    Sniff,
    Gzip,
    Zstd,
}

/// A blob that a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// One image, checked against the limits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<(Descriptor, Compression)>,
}

/// What a registry has under a tag or digest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Image(Manifest),
    /// The entry for our platform.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i64,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

impl RawDescriptor {
    fn check(&self, what: &str) -> StoreResult<Descriptor> {
        let digest = self.digest.parse().map_err(|e| malformed(&format!("{what}: {e}")))?;
        let size = u64::try_from(self.size).map_err(|_| malformed(&format!("{what} has a negative size")))?;
        Ok(Descriptor { digest, size })
    }
}

/// Reads a document whose digest and size are known to be right. `served_as` is its `Content-Type`.
pub(crate) fn parse(
    bytes: &[u8],
    served_as: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> StoreResult<Document> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| malformed(&e.to_string()))?;
    let schema1 = raw.fs_layers.is_some() || raw.schema_version == Some(1);
    if schema1 {
        return Err(unsupported("Docker schema 1 is gone since 2024: push the image again"));
    }
    let media_type = raw.media_type.as_deref().or(served_as).unwrap_or_default();
    match (raw.manifests, raw.layers, raw.config) {
        // A document that can be read both ways means one thing to whoever signed it and another to us.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(malformed("is an image and an index at once")),
        (Some(_), None, None) if matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) => {
            Err(malformed("is an index and says that it is an image"))
        }
        (Some(entries), None, None) => choose(&entries, platform, limits).map(Document::Index),
        (None, _, Some(_)) if matches!(media_type, OCI_INDEX | DOCKER_LIST) => {
            Err(malformed("is an image and says that it is an index"))
        }
        (None, layers, Some(config)) => image(&config, &layers.unwrap_or_default(), limits).map(Document::Image),
        (None, _, None) => Err(malformed("has neither a config nor manifests")),
    }
}

/// The entry of an index for a platform: the exact variant first, then the one without, then for arm64 `v8`, which
/// is its baseline, then an entry that names no platform at all (its config will tell).
fn choose(entries: &[RawDescriptor], platform: &Platform, limits: &Limits) -> StoreResult<Descriptor> {
    if entries.len() > limits.index_entries {
        return Err(StoreError::TooLarge {
            what: "image index".into(),
            limit: format!("{} entries", limits.index_entries),
        });
    }
    let rank = |entry: &RawDescriptor| -> Option<u8> {
        let Some(p) = &entry.platform else {
            return Some(3);
        };
        if p.os != platform.os || p.architecture != platform.architecture {
            return None;
        }
        let variant = p.variant.as_deref().filter(|v| !v.is_empty());
        match (variant, platform.variant.as_deref()) {
            (have, want) if have == want => Some(0),
            (None, Some(_)) => Some(1),
            (Some("v8"), None) if p.architecture == "arm64" => Some(2),
            _ => None,
        }
    };
    let known =
        |e: &&RawDescriptor| matches!(&*e.media_type, "" | OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST);
    let best = entries.iter().filter(known).filter_map(|e| rank(e).map(|r| (r, e))).min_by_key(|(r, _)| *r);
    match best {
        Some((_, entry)) => {
            let found = entry.check("an index entry")?;
            bounded(found.size, limits.manifest_bytes, "image manifest")?;
            Ok(found)
        }
        None => {
            let mut have: Vec<_> = entries
                .iter()
                .filter_map(|e| e.platform.as_ref())
                .map(|p| printable(&format!("{}/{}", p.os, p.architecture)))
                .collect();
            have.sort();
            have.dedup();
            have.truncate(20);
            Err(unsupported(&format!(
                "it has no {}/{} image, only {}",
                platform.os,
                platform.architecture,
                have.join(", ")
            )))
        }
    }
}

fn image(config: &RawDescriptor, layers: &[RawDescriptor], limits: &Limits) -> StoreResult<Manifest> {
    if !matches!(&*config.media_type, OCI_CONFIG | DOCKER_CONFIG | "") {
        return Err(unsupported(&format!("its config is {:?}: not a container image", printable(&config.media_type))));
    }
    let config = config.check("the config")?;
    bounded(config.size, limits.config_bytes, "image config")?;
    if layers.len() > limits.layers {
        return Err(StoreError::TooLarge { what: "image".into(), limit: format!("{} layers", limits.layers) });
    }
    let mut sum = 0u64;
    let layers = layers.iter().map(|layer| {
        let compression = compression(&layer.media_type)?;
        let found = layer.check("a layer")?;
        sum = sum.saturating_add(found.size);
        bounded(sum, limits.image_bytes, "image")?;
        Ok((found, compression))
    });
    Ok(Manifest { layers: layers.collect::<StoreResult<_>>()?, config })
}

fn compression(media_type: &str) -> StoreResult<Compression> {
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let packed = known.iter().find_map(|prefix| media_type.strip_prefix(prefix));
    match packed {
        Some("") => Ok(Compression::Sniff),
        Some("+gzip" | ".gzip") => Ok(Compression::Gzip),
        Some("+zstd" | ".zstd") => Ok(Compression::Zstd),
        _ => Err(unsupported(&format!("layers of type {:?} cannot be unpacked here", printable(media_type)))),
    }
}

fn bounded(size: u64, limit: u64, what: &str) -> StoreResult<()> {
    if size > limit {
        return Err(StoreError::TooLarge { what: what.into(), limit: format!("{limit} bytes") });
    }
    Ok(())
}

/// Text of a registry for a message: short, no control characters.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn malformed(detail: &str) -> StoreError {
    StoreError::malformed("image manifest", detail)
}

fn unsupported(detail: &str) -> StoreError {
    StoreError::Unsupported { what: "image".into(), detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = String> {
        let words = [
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "1",
            "-1",
            "null",
            "\"config\"",
            "\"layers\"",
            "\"manifests\"",
            "\"digest\"",
            "\"size\"",
            "\"mediaType\"",
            "\"platform\"",
            "\"schemaVersion\"",
            "\"x\"",
            "18446744073709551616",
        ];
        prop::collection::vec(prop::sample::select(words.to_vec()), 0..40).prop_map(|words| words.concat())
    }

    proptest! {
        #[test]
        fn never_panics(text in words()) {
            let _ = parse(text.as_bytes(), None, &Platform::default(), &Limits::default());
        }
    }
}

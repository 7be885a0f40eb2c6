//! Manifests and indexes: OCI 1.x and Docker schema 2.

use crate::config::{Limits, Platform};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::{self, Item, Loose, go_struct};
use crate::platform::Normal;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Types that say nothing of images.
const GENERIC: [&str; 8] = [
    "",
    "application/octet-stream",
    "application/x-tar",
    "application/tar",
    "application/tar+gzip",
    "application/gzip",
    "application/x-gzip",
    "application/zstd",
];

/// A blob that a manifest points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A layer of an image, or a blob of an artifact.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) blob: Descriptor,
    pub(crate) media_type: String,
    /// What the blob's file is to be called.
    pub(crate) title: Option<String>,
}

/// One image or artifact, checked against the limits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// sha256 of the manifest itself.
    pub(crate) digest: Digest,
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Layer>,
    /// The type that the manifest gives where it may be an artifact: its artifactType, or the type
    /// of a config that is none of an image. Old tools wrote any type for an image's config, so the
    /// config's content tells in the end.
    pub(crate) artifact: Option<String>,
}

impl Layer {
    /// Whether it can be unpacked as a layer of an image.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] with its media type.
    pub(crate) fn check_type(&self) -> StoreResult<()> {
        let known = [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
        ];
        let packed = known.iter().find_map(|prefix| self.media_type.strip_prefix(prefix));
        match packed {
            Some("" | "+gzip" | ".gzip" | "+zstd" | ".zstd") => Ok(()),
            // Pushed by tools that know no media types; the layer's digest tells whether it is a
            // tar.
            None if GENERIC.contains(&self.media_type.as_str()) => Ok(()),
            _ => Err(unsupported(&format!("layers of type {:?} cannot be unpacked here", printable(&self.media_type)))),
        }
    }
}

/// An entry of an index that may be for our platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) descriptor: Descriptor,
    /// The index says that it is. Otherwise the image's own config will tell.
    pub(crate) sure: bool,
}

/// What a registry has under a tag or digest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Image(Manifest),
    /// The entries that may be for our platform, best first; never none.
    Index(Vec<Candidate>),
}

go_struct! {
    struct Raw {
        schema_version: Loose = "schemaVersion",
        media_type: Loose = "mediaType",
        config: Option<RawDescriptor> = "config",
        layers: Option<Vec<Item<RawDescriptor>>> = "layers",
        manifests: Option<Vec<Item<RawDescriptor>>> = "manifests",
        artifact_type: Loose = "artifactType",
        fs_layers: Option<serde::de::IgnoredAny> = "fsLayers",
    }
}

go_struct! {
    struct RawDescriptor {
        media_type: Loose = "mediaType",
        digest: Loose = "digest",
        size: Loose = "size",
        platform: Option<RawPlatform> = "platform",
        artifact_type: Loose = "artifactType",
        annotations: Annotations = "annotations",
    }
}

go_struct! {
    struct RawPlatform {
        os: Loose = "os",
        architecture: Loose = "architecture",
        variant: Loose = "variant",
    }
}

go_struct! {
    struct Annotations {
        reference_type: Loose = "vnd.docker.reference.type",
        title: Loose = "org.opencontainers.image.title",
        filepath: Loose = "org.cncf.model.filepath",
    }
}

impl RawDescriptor {
    fn check(&self, what: &str) -> StoreResult<Descriptor> {
        let digest = self.digest.text.parse().map_err(|e| malformed(&format!("{what}: {e}")))?;
        let size = self.size.number.ok_or_else(|| malformed(&format!("{what} has no size")))?;
        let size = u64::try_from(size).map_err(|_| malformed(&format!("{what} has a negative size")))?;
        Ok(Descriptor { digest, size })
    }

    /// The platform that an index names; `None` where it names none.
    fn platform(&self) -> Option<Normal> {
        let p = self.platform.as_ref()?;
        let normal = Normal::new(&p.os.text, &p.architecture.text, &p.variant.text);
        Some(normal).filter(|normal| !normal.architecture.is_empty())
    }

    /// Signatures, attestations and the like, which stand beside images in an index.
    fn is_artifact(&self) -> bool {
        let artifact = !matches!(&*self.artifact_type.text, "" | OCI_CONFIG | DOCKER_CONFIG);
        !self.is_document() || artifact || self.is_attestation()
    }

    /// Whether it is of a type that is read here.
    fn is_document(&self) -> bool {
        matches!(&*self.media_type.text, "" | OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST)
    }

    fn is_attestation(&self) -> bool {
        self.annotations.reference_type.text == "attestation-manifest"
    }
}

/// Reads a document whose digest and size are known to be right. `served_as` is its `Content-Type`.
pub(crate) fn parse(
    bytes: &[u8],
    served_as: Option<&str>,
    platform: &Platform,
    limits: &Limits,
) -> StoreResult<Document> {
    let raw: Raw = json::read(bytes).map_err(|e| malformed(&e.to_string()))?;
    let schema1 = raw.fs_layers.is_some() || raw.schema_version.number == Some(1);
    if schema1 {
        return Err(unsupported("Docker schema 1 is gone since 2024: push the image again"));
    }
    let own = Some(raw.media_type.text.as_str()).filter(|own| !own.is_empty());
    let media_type = own.or(served_as).unwrap_or_default();
    match (raw.manifests, raw.layers, raw.config) {
        // A document that can be read both ways means one thing to whoever signed it and another to
        // us.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(malformed("is an image and an index at once")),
        (Some(_), None, None) if matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST) => {
            Err(malformed("is an index and says that it is an image"))
        }
        (Some(entries), None, None) => choose(&entries, platform, limits).map(Document::Index),
        (None, _, Some(_)) if matches!(media_type, OCI_INDEX | DOCKER_LIST) => {
            Err(malformed("is an image and says that it is an index"))
        }
        (None, layers, Some(config)) => {
            let kind = kind(&raw.artifact_type.text, &config.media_type.text);
            let layers = layers.unwrap_or_default();
            let manifest = image(Digest::of(bytes), &config, layers, kind, limits);
            manifest.map(Document::Image)
        }
        (None, _, None) => Err(malformed("has neither a config nor manifests")),
    }
}

/// The entries of an index for a platform, in the order in which containerd tries them: by how well
/// their platform suits, then those that name no platform, and of equals the first.
fn choose(entries: &[Item<RawDescriptor>], platform: &Platform, limits: &Limits) -> StoreResult<Vec<Candidate>> {
    if entries.len() > limits.index_entries {
        return Err(StoreError::TooLarge {
            what: "image index".into(),
            limit: format!("{} entries", limits.index_entries),
        });
    }
    let only_artifacts = entries.iter().all(|entry| entry.0.is_artifact());
    let rank = |entry: &RawDescriptor| match entry.platform() {
        // An artifact that no image stands beside has to say that it is for this node.
        None if only_artifacts => None,
        None => Some(usize::MAX),
        Some(named) => named.rank(platform),
    };
    let suits = |entry: &&RawDescriptor| match only_artifacts {
        true => entry.is_document() && !entry.is_attestation(),
        false => !entry.is_artifact(),
    };
    let images = entries.iter().map(|entry| &entry.0).filter(suits);
    let mut ranked: Vec<_> = images.filter_map(|entry| rank(entry).map(|rank| (rank, entry))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let candidates = ranked.into_iter().map(|(rank, entry)| {
        let descriptor = entry.check("an index entry")?;
        bounded(descriptor.size, limits.manifest_bytes, "image manifest")?;
        Ok(Candidate { descriptor, sure: rank < usize::MAX })
    });
    // A bad entry counts only if no better one is there.
    let mut candidates: Vec<StoreResult<Candidate>> = candidates.collect();
    if candidates.iter().any(Result::is_ok) {
        candidates.retain(Result::is_ok);
    }
    let found: Vec<_> = candidates.into_iter().collect::<StoreResult<_>>()?;
    if found.is_empty() { Err(no_platform(entries, platform)) } else { Ok(found) }
}

fn no_platform(entries: &[Item<RawDescriptor>], platform: &Platform) -> StoreError {
    let named = entries.iter().filter_map(|entry| entry.0.platform());
    let mut have: Vec<_> = named.map(|p| printable(&format!("{}/{} {}", p.os, p.architecture, p.variant))).collect();
    have.iter_mut().for_each(|text| *text = text.trim_end().replace(' ', "/"));
    have.sort();
    have.dedup();
    have.truncate(20);
    let have = if have.is_empty() { "artifacts".into() } else { have.join(", ") };
    unsupported(&format!("it has no {}/{} image, only {have}", platform.os, platform.architecture))
}

/// The type of what may be an artifact; `None` for an image.
fn kind(artifact_type: &str, config_type: &str) -> Option<String> {
    let of_image = |text: &str| matches!(text, "" | OCI_CONFIG | DOCKER_CONFIG);
    [artifact_type, config_type].into_iter().find(|text| !of_image(text)).map(printable)
}

fn image(
    digest: Digest,
    config: &RawDescriptor,
    layers: Vec<Item<RawDescriptor>>,
    artifact: Option<String>,
    limits: &Limits,
) -> StoreResult<Manifest> {
    let config = config.check("the config")?;
    bounded(config.size, limits.config_bytes, "image config")?;
    if layers.len() > limits.layers {
        return Err(StoreError::TooLarge { what: "image".into(), limit: format!("{} layers", limits.layers) });
    }
    let mut sum = 0u64;
    let layers = layers.into_iter().map(|Item(layer)| {
        let blob = layer.check("a layer")?;
        let RawDescriptor { media_type, annotations, .. } = layer;
        let titles = [annotations.title.text, annotations.filepath.text];
        let title = titles.into_iter().find(|title| !title.is_empty());
        let layer = Layer { blob, media_type: media_type.text, title };
        if artifact.is_none() {
            layer.check_type()?;
        }
        sum = sum.saturating_add(layer.blob.size);
        bounded(sum, limits.image_bytes, "image")?;
        Ok(layer)
    });
    Ok(Manifest { digest, layers: layers.collect::<StoreResult<_>>()?, config, artifact })
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

//! What `docker save` writes: `manifest.json`, with the files of each image.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;

use serde_json::{Value, json};

use super::scan::Member;
use super::{Archive, Blob, Found, OCI_MANIFEST, PIECE, malformed, several, tagged};
use crate::config::Limits;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::json::{self, Item, go_struct};
use crate::reference::Reference;

go_struct! {
    struct Image {
        config: String = "Config",
        tags: Vec<Item<String>> = "RepoTags",
        layers: Vec<Item<String>> = "Layers",
    }
}

/// Adds the images of `manifest.json` to `found`, but for names that are there already.
pub(super) fn images(
    archive: &mut Archive,
    name: Option<&Reference>,
    limits: &Limits,
    found: &mut Vec<Found>,
    wanted: &dyn Fn() -> bool,
) -> StoreResult<()> {
    let Some(bytes) = archive.file("manifest.json", limits.manifest_bytes)? else {
        return Ok(());
    };
    let images: Vec<Item<Image>> = json::read(&bytes).map_err(|e| malformed(&format!("manifest.json: {e}")))?;
    if images.len() > limits.index_entries {
        return Err(StoreError::TooLarge {
            what: "manifest.json of the archive".into(),
            limit: format!("{} images", limits.index_entries),
        });
    }
    if name.is_some() && images.len() > 1 {
        return Err(several(images.into_iter().flat_map(|Item(image)| image.tags).map(|Item(tag)| tag)));
    }
    let mut hashed = HashMap::new();
    for Item(image) in images {
        let mut names: Vec<Reference> = match name {
            Some(name) => vec![name.clone()],
            None => image.tags.iter().filter_map(|Item(tag)| tagged(tag)).collect(),
        };
        names.retain(|name| !found.iter().any(|found| found.names.contains(name)));
        if names.is_empty() {
            continue;
        }
        let root = manifest(archive, &image, limits, &mut hashed, wanted)?;
        match found.iter_mut().find(|found| found.root == root) {
            Some(found) => found.names.extend(names),
            None => found.push(Found { names, root, served: None }),
        }
    }
    Ok(())
}

/// The manifest that says the same, in OCI's words.
fn manifest(
    archive: &mut Archive,
    image: &Image,
    limits: &Limits,
    hashed: &mut HashMap<Member, Digest>,
    wanted: &dyn Fn() -> bool,
) -> StoreResult<Digest> {
    if image.layers.len() > limits.layers {
        return Err(StoreError::TooLarge { what: "image".into(), limit: format!("{} layers", limits.layers) });
    }
    let config = descriptor(archive, &image.config, hashed, wanted)?;
    let mut layers = Vec::new();
    for Item(layer) in &image.layers {
        layers.push(descriptor(archive, layer, hashed, wanted)?);
    }
    let typed = |mut descriptor: Value, media_type: &str| {
        descriptor["mediaType"] = media_type.into();
        descriptor
    };
    // What the layers are packed with, their bytes tell.
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    Ok(archive.made(&json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": typed(config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers.into_iter().map(|layer| typed(layer, layer_type)).collect::<Vec<_>>(),
    })))
}

/// Digest and size of a file, which becomes a blob of the archive.
fn descriptor(
    archive: &mut Archive,
    name: &str,
    hashed: &mut HashMap<Member, Digest>,
    wanted: &dyn Fn() -> bool,
) -> StoreResult<Value> {
    let missing = || StoreError::NotFound { what: format!("{name:?}, which manifest.json names, in the archive") };
    let member = archive.scan.member(name).ok_or_else(missing)?;
    // Docker's names since 25 are digests, and are checked like those of a registry.
    let named = name.strip_prefix("blobs/").and_then(|name| name.replace('/', ":").parse::<Digest>().ok());
    let known = named.or_else(|| hashed.get(&member).copied());
    let digest = match known {
        Some(digest) => digest,
        None => {
            let digest = hash(archive, member, wanted)?;
            hashed.insert(member, digest);
            archive.extra.insert(digest, Blob::At(member));
            digest
        }
    };
    Ok(json!({"digest": digest, "size": member.size}))
}

fn hash(archive: &Archive, member: Member, wanted: &dyn Fn() -> bool) -> StoreResult<Digest> {
    let mut hasher = Digest::of(b"").hasher();
    let mut piece = vec![0; PIECE as usize];
    let mut at = 0;
    while at < member.size {
        if !wanted() {
            return Err(StoreError::io("reading the archive", std::io::Error::other("the import was given up")));
        }
        let length = PIECE.min(member.size - at) as usize;
        let read = archive.file.read_exact_at(&mut piece[..length], member.offset + at);
        read.map_err(|e| StoreError::io("reading the archive", e))?;
        hasher.update(&piece[..length]);
        at += length as u64;
    }
    Ok(hasher.finish())
}

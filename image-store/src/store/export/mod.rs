//! Images as an archive: an OCI layout in a tar that is also what `docker save` writes.
//!
//! ```text
//!  layer directories ─► tar, counted and hashed ─► config, manifest ─► the archive, each layer's tar written anew
//! ```
//!
//! The store keeps neither the blobs nor the tars that a registry sent, so that layers are packed
//! anew, and not compressed: layers, config and image have other digests than before, and the same
//! ones each time. A tar says how long each file is before the file, so every layer is read twice;
//! nothing is written to the disk meanwhile.

mod layer;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::artifact::headers;
use super::db::ImageRecord;
use super::inner::Inner;
use super::staging::open_dir;
use super::state::{Pins, resolve};
use crate::digest::{Digest, Hasher};
use crate::error::{StoreError, StoreResult};
use crate::image::ImageConfig;
use crate::reference::Reference;

/// Bytes of one piece.
const PIECE: usize = 256 << 10;
/// Parts that wait to be taken.
const WAITING: usize = 16;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A part of an export. All images come before the first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportPart {
    /// An image that the archive has.
    Image {
        /// What it is called in the archive.
        names: Vec<String>,
        /// Its id here.
        id: String,
        /// The id that it gets where the archive is brought in.
        new_id: String,
    },
    /// The next bytes of the archive.
    Bytes(Bytes),
}

/// An image to write.
struct Image {
    id: String,
    names: BTreeSet<String>,
    record: Arc<ImageRecord>,
    /// Lowest first.
    dirs: Vec<PathBuf>,
    /// Keeps the layers.
    _pins: Pins,
}

/// A layer's tar.
#[derive(Clone, Copy)]
struct Packed {
    digest: Digest,
    size: u64,
}

/// Begins an export; its parts, or why it broke off, come as they are taken.
pub(super) fn export(inner: &Arc<Inner>, references: &[String]) -> StoreResult<Receiver<StoreResult<ExportPart>>> {
    let mut images = BTreeMap::new();
    for reference in references {
        let image = find(inner, reference)?;
        match images.get_mut(&image.id) {
            None => drop(images.insert(image.id.clone(), image)),
            Some(Image { names, .. }) => names.extend(image.names),
        }
    }
    let (sender, parts) = mpsc::channel(WAITING);
    let owned = inner.clone();
    inner.background.spawn("image-export", move || {
        if let Err(error) = archive(&owned, images.into_values().collect(), &sender) {
            owned.send(&sender, Err(error));
        }
    });
    Ok(parts)
}

fn find(inner: &Arc<Inner>, reference: &str) -> StoreResult<Image> {
    let state = inner.state();
    let missing = || StoreError::NotFound { what: format!("image {reference}") };
    let id = resolve(&state, reference)?.ok_or_else(missing)?;
    let record = state.images[&id].clone();
    if let Some(kind) = &record.artifact {
        return Err(StoreError::Unsupported {
            what: format!("the export of {reference}"),
            detail: format!("it is an OCI artifact ({kind}), whose manifest is not kept: copy it from its registry"),
        });
    }
    let asked = reference.parse::<Reference>().ok().and_then(|reference| reference.tag_key());
    let names = match asked.filter(|tag| record.tags.contains(tag)) {
        Some(tag) => BTreeSet::from([tag]),
        None => record.tags.clone(),
    };
    let mut dirs = inner.dirs(&state, &record.chains);
    dirs.reverse();
    drop(state);
    let pins = inner.pin(&record.chains);
    match inner.state().images.contains_key(&id) {
        true => Ok(Image { id, names, record, dirs, _pins: pins }),
        false => Err(missing()),
    }
}

fn archive(inner: &Inner, images: Vec<Image>, parts: &Sender<StoreResult<ExportPart>>) -> StoreResult<()> {
    let mut packed = HashMap::new();
    let mut documents = Vec::new();
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for image in &images {
        let layers = image.dirs.iter().map(|dir| match packed.get(dir) {
            Some(known) => Ok(*known),
            None => {
                let mut counter = Counter { hasher: Digest::of(b"").hasher(), size: 0, inner };
                pack(dir, &mut counter)?;
                let layer = Packed { digest: counter.hasher.finish(), size: counter.size };
                packed.insert(dir.clone(), layer);
                Ok(layer)
            }
        });
        let layers: Vec<Packed> = layers.collect::<StoreResult<_>>()?;
        let config = config(&image.record.config, &inner.config.platform, &layers).to_string();
        let manifest = manifest(&config, &layers).to_string();
        let (new_id, digest) = (Digest::of(config.as_bytes()), Digest::of(manifest.as_bytes()));
        docker.push(json!({
            "Config": blob(&new_id), "RepoTags": image.names,
            "Layers": layers.iter().map(|layer| blob(&layer.digest)).collect::<Vec<_>>(),
        }));
        index.extend(entries(&image.names, &digest, manifest.len()));
        documents.extend([(blob(&new_id), config), (blob(&digest), manifest)]);
        let names = image.names.iter().cloned().collect();
        let part = ExportPart::Image { names, id: image.id.clone(), new_id: new_id.to_string() };
        send(inner, parts, part).map_err(|e| StoreError::io("writing an image archive", e))?;
    }
    documents.push(("oci-layout".into(), json!({"imageLayoutVersion": "1.0.0"}).to_string()));
    documents.push(("index.json".into(), json!({"schemaVersion": 2, "manifests": index}).to_string()));
    documents.push(("manifest.json".into(), Value::from(docker).to_string()));
    let mut out = BufWriter::with_capacity(PIECE, Pipe { parts, inner });
    let failed = |e| StoreError::io("writing an image archive", e);
    let mut written = HashSet::new();
    for (name, document) in documents {
        if written.insert(name.clone()) {
            header(&mut out, &name, document.len() as u64).map_err(failed)?;
            out.write_all(document.as_bytes()).map_err(failed)?;
            pad(&mut out, document.len() as u64).map_err(failed)?;
        }
    }
    for dir in images.iter().flat_map(|image| &image.dirs) {
        let Packed { digest, size } = packed[dir];
        if !written.insert(blob(&digest)) {
            continue;
        }
        header(&mut out, &blob(&digest), size).map_err(failed)?;
        let mut checked = Tee { hasher: digest.hasher(), out: &mut out };
        pack(dir, &mut checked)?;
        let again = checked.hasher.finish();
        if again != digest {
            return Err(StoreError::DigestMismatch {
                what: format!("layer {}, which changed while it was exported: look with images verify", dir.display()),
                expected: digest.to_string(),
                actual: again.to_string(),
            });
        }
        pad(&mut out, size).map_err(failed)?;
    }
    out.write_all(&[0; 1024]).and_then(|()| out.flush()).map_err(failed)
}

fn pack(dir: &Path, out: &mut dyn Write) -> StoreResult<()> {
    let root = open_dir(dir)?;
    let mut out = BufWriter::with_capacity(PIECE, out);
    let packed = layer::write(&root, &mut out).and_then(|()| out.flush());
    packed.map_err(|e| StoreError::io(format!("packing layer {}", dir.display()), e))
}

/// The config document: what the store has kept of the image's own.
fn config(of: &ImageConfig, node: &crate::config::Platform, layers: &[Packed]) -> Value {
    let keys = |list: &[String]| list.iter().map(|key| (key.clone(), json!({}))).collect::<serde_json::Map<_, _>>();
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    json!({
        "architecture": or(&of.architecture, &node.architecture),
        "os": or(&of.os, &node.os),
        "config": {
            "User": of.user, "Env": of.env, "Entrypoint": of.entrypoint, "Cmd": of.cmd, "WorkingDir": of.working_dir,
            "StopSignal": of.stop_signal, "Volumes": keys(&of.volumes), "ExposedPorts": keys(&of.exposed_ports),
            "Labels": of.labels,
        },
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| layer.digest).collect::<Vec<_>>()},
    })
}

fn manifest(config: &str, layers: &[Packed]) -> Value {
    let layer = |layer: &Packed| {
        json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest, "size": layer.size,
        })
    };
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(config.as_bytes()),
            "size": config.len(),
        },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// The index's entries of an image: one for each name, or one without.
fn entries(names: &BTreeSet<String>, digest: &Digest, size: usize) -> Vec<Value> {
    let entry = |annotations: Value| {
        json!({
            "mediaType": MANIFEST, "digest": digest, "size": size, "annotations": annotations,
        })
    };
    let named = names.iter().map(|name| {
        let tag = name.rsplit_once(':').map_or("", |(_, tag)| tag);
        entry(json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}))
    });
    match names.is_empty() {
        true => vec![entry(json!({}))],
        false => named.collect(),
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The header of a file of the archive.
fn header(out: &mut impl Write, name: &str, size: u64) -> io::Result<()> {
    out.write_all(&headers(name, size)?)
}

/// What fills a file's last block.
fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    out.write_all(&[0; 512][..(size.next_multiple_of(512) - size) as usize])
}

/// Sends a part. Ends when nobody takes it any more, and when the daemon ends.
fn send(inner: &Inner, parts: &Sender<StoreResult<ExportPart>>, part: ExportPart) -> io::Result<()> {
    match inner.send(parts, Ok(part)) {
        true => Ok(()),
        false => Err(io::Error::other("the export was given up, or the daemon ends")),
    }
}

/// Counts and hashes.
struct Counter<'a> {
    hasher: Hasher,
    size: u64,
    inner: &'a Inner,
}

impl Write for Counter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.inner.is_ending() {
            return Err(io::Error::other("the daemon ends"));
        }
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Hashes on the way.
struct Tee<'a, W> {
    hasher: Hasher,
    out: &'a mut W,
}

impl<W: Write> Write for Tee<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The way to whoever takes the archive.
struct Pipe<'a> {
    parts: &'a Sender<StoreResult<ExportPart>>,
    inner: &'a Inner,
}

impl Write for Pipe<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        send(self.inner, self.parts, ExportPart::Bytes(Bytes::copy_from_slice(piece)))?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! Images of an archive, for nodes without a registry.
//!
//! ```text
//!  stream ─► tmp/archive-N (has no name any more) ─► table, images ─► each as a pull that asks no registry
//! ```
//!
//! An archive names its images at its end or anywhere, so all of it has to be there first.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::Imported;
use super::background::lost;
use super::db::ImageRecord;
use super::inner::Inner;
use super::pull::{Running, bring, size};
use crate::archive::{Archive, Found};
use crate::error::{StoreError, StoreResult};
use crate::image::ImageConfig;
use crate::progress::Meter;
use crate::reference::Reference;

/// Pieces of the stream that wait for the disk.
const WAITING: usize = 4;
/// What an archive may have beside its layers.
const BESIDE: u64 = 64 << 20;

/// Tells the thread that reads an archive when nobody waits for it any more.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

/// A name for an image of an archive: it has a tag, `latest` where it says none.
pub(super) fn name(text: &str) -> StoreResult<Reference> {
    let reference: Reference = text.parse()?;
    if reference.tag_key().is_none() {
        return Err(StoreError::Unsupported {
            what: format!("the name {text:?}"),
            detail: "it has a digest, and an archive's image gets a tag: write name:tag".into(),
        });
    }
    Ok(reference)
}

pub(super) async fn import(
    inner: &Arc<Inner>,
    name: Option<Reference>,
    stream: impl Stream<Item = io::Result<Bytes>> + Send,
) -> StoreResult<Vec<Imported>> {
    let (sender, pieces) = mpsc::channel(WAITING);
    let (answer, opened) = oneshot::channel();
    let wanted = Arc::new(AtomicBool::new(true));
    let _wanted = Wanted(wanted.clone());
    let owned = inner.clone();
    inner.background.spawn("image-archive", move || {
        let opened = spool(&owned, pieces)
            .and_then(|file| Archive::open(file, name.as_ref(), &owned.config.limits, &|| wanted.load(Relaxed)));
        let _ = answer.send(opened);
    });
    feed(sender, stream).await?;
    let (archive, found) = opened.await.unwrap_or_else(|_| Err(lost()))?;
    let archive = Arc::new(archive);
    let mut imported = Vec::new();
    for image in found {
        imported.push(one(inner, &archive, image).await?);
    }
    Ok(imported)
}

/// Sends the stream to the thread that writes it. That the thread has gone is told by its answer.
async fn feed(sender: mpsc::Sender<Piece>, stream: impl Stream<Item = io::Result<Bytes>> + Send) -> StoreResult<()> {
    let mut stream = std::pin::pin!(stream);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|e| StoreError::io("receiving the archive", e))?;
        if sender.send(Piece::Bytes(piece)).await.is_err() {
            return Ok(());
        }
    }
    let _ = sender.send(Piece::End).await;
    Ok(())
}

enum Piece {
    Bytes(Bytes),
    /// Without it, the stream broke off.
    End,
}

/// Writes the archive to a file that goes with its last descriptor. Blocks.
fn spool(inner: &Inner, mut pieces: mpsc::Receiver<Piece>) -> StoreResult<File> {
    let path = inner.jobs.temporary("archive");
    let failed = |e| StoreError::io(format!("writing an image archive to {}", path.display()), e);
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
    let mut file = file.map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    let limit = inner.config.limits.image_bytes.saturating_add(BESIDE);
    let mut length = 0;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(piece)) => {
                length += piece.len() as u64;
                if length > limit {
                    return Err(StoreError::TooLarge { what: "image archive".into(), limit: format!("{limit} bytes") });
                }
                file.write_all(&piece).map_err(failed)?;
            }
            Some(Piece::End) => return Ok(file),
            None => return Err(StoreError::io("receiving the archive", io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// Brings one image in.
async fn one(inner: &Arc<Inner>, archive: &Arc<Archive>, found: Found) -> StoreResult<Imported> {
    let Some(reference) = found.names.first() else { return Err(lost()) };
    let names: Vec<String> = found.names.iter().map(Reference::to_string).collect();
    let meter = Meter::new(reference.to_string());
    let _running = Running::new(inner, &meter);
    let session = inner.registries.offline(reference, archive.clone());
    let manifest = session.resolve_digest(found.root).await.map_err(|error| error.of_image(reference))?;
    let image = ImageRecord {
        tags: found.names.iter().filter_map(Reference::tag_key).collect(),
        digests: found
            .served
            .iter()
            .flat_map(|served| found.names.iter().map(|name| name.digest_key(served)))
            .collect(),
        size: size(&manifest),
        config: ImageConfig::default(),
        artifact: None,
        chains: Vec::new(),
    };
    let result = bring(inner.clone(), session, reference, manifest, image, &meter).await;
    match &result {
        Ok(id) => tracing::info!(image = %reference, id, "imported"),
        Err(error) => tracing::warn!(image = %reference, error = error.chain(), "import failed"),
    }
    if matches!(result, Err(StoreError::NoSpace { .. })) {
        inner.give_back().await;
    }
    Ok(Imported { id: result?, names })
}

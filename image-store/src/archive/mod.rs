//! An archive of images: an OCI layout in a tar, what `docker save` writes, or both in one, as
//! Docker writes since 25.
//!
//! ```text
//!  oci-layout, index.json ── layout ─┐
//!  manifest.json ─────────── docker ─┴► images: names, and the digest of a manifest or index
//!  blobs/<algorithm>/<hex> ◄────────────── what manifests point to, read where it lies
//! ```
//!
//! The archive is hostile input. Its names choose no path of the node: they are keys of a table
//! that is bounded, and everything is read from the one open file. Nothing of it counts before its
//! digest was checked by whoever asks for it, as with a registry.

mod docker;
mod layout;
mod scan;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use tokio::sync::mpsc;

use self::scan::{Member, Scan};
use crate::config::Limits;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::reference::Reference;

/// Bytes of one read.
const PIECE: u64 = 256 << 10;
/// Pieces of a blob that wait to be taken.
const WAITING: usize = 2;
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An open archive.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    scan: Scan,
    /// Blobs that are not at `blobs/`: documents made from what the archive says in other words,
    /// and files that only a `manifest.json` names.
    extra: HashMap<Digest, Blob>,
}

#[derive(Debug)]
enum Blob {
    Made(Bytes),
    At(Member),
}

/// An image of an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Normalised, with a tag each; never none.
    pub(crate) names: Vec<Reference>,
    /// Its manifest, or an index of which one entry is it.
    pub(crate) root: Digest,
    /// The digest that a registry has served it under.
    pub(crate) served: Option<Digest>,
}

impl Archive {
    /// Reads the archive's table and the documents that say what is in it. `name` is how its one
    /// image is to be called; without it, images have the names that the archive gives them. Ends
    /// early when `wanted` says no. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when it is no such archive or names are missing, and
    /// [`StoreError::TooLarge`] beyond a limit.
    pub(crate) fn open(
        file: File,
        name: Option<&Reference>,
        limits: &Limits,
        wanted: &dyn Fn() -> bool,
    ) -> StoreResult<(Self, Vec<Found>)> {
        let scan = Scan::read(&file, limits, wanted)?;
        let mut archive = Self { file: Arc::new(file), scan, extra: HashMap::new() };
        let mut found = layout::images(&mut archive, name, limits)?;
        match (name, found.is_empty()) {
            (Some(_), false) => {}
            _ => docker::images(&mut archive, name, limits, &mut found, wanted)?,
        }
        if found.is_empty() {
            let detail = match archive.scan.member("index.json").or(archive.scan.member("manifest.json")) {
                Some(_) => "names no image; give the name with --name",
                None => "has neither an index.json nor a manifest.json: it is no OCI layout and not of docker save",
            };
            return Err(malformed(detail));
        }
        Ok((archive, found))
    }

    /// The whole of a blob of at most `limit` bytes. Its digest was not checked. Blocks for a read.
    pub(crate) fn document(&self, digest: &Digest, limit: u64) -> StoreResult<Bytes> {
        match self.extra.get(digest) {
            Some(Blob::Made(bytes)) => Ok(bytes.clone()),
            _ => self.bytes(self.blob(digest)?, &format!("blob {digest}"), limit),
        }
    }

    /// The size of a blob, and its pieces as they are taken. The digest was not checked.
    pub(crate) fn stream(&self, digest: &Digest) -> StoreResult<(u64, mpsc::Receiver<std::io::Result<Bytes>>)> {
        let member = self.blob(digest)?;
        let (sender, receiver) = mpsc::channel(WAITING);
        let file = self.file.clone();
        let read = move || {
            let mut at = 0;
            while at < member.size {
                let mut piece = vec![0; PIECE.min(member.size - at) as usize];
                let read = file.read_exact_at(&mut piece, member.offset + at);
                at += piece.len() as u64;
                let failed = read.is_err();
                // Nobody takes it when the import was given up.
                if sender.blocking_send(read.map(|()| piece.into())).is_err() || failed {
                    return;
                }
            }
        };
        // It holds nothing but the open file: the store's end need not wait for it.
        let thread = thread::Builder::new().name("archive-read".into()).spawn(read);
        thread.map_err(|e| StoreError::io("making a thread to read an archive", e))?;
        Ok((member.size, receiver))
    }

    fn blob(&self, digest: &Digest) -> StoreResult<Member> {
        let missing = || StoreError::NotFound { what: format!("blob {digest} in the archive") };
        match self.extra.get(digest) {
            Some(Blob::At(member)) => Ok(*member),
            Some(Blob::Made(_)) => Err(missing()),
            None => self.scan.member(&format!("blobs/{}", digest.to_string().replace(':', "/"))).ok_or_else(missing),
        }
    }

    /// A file that is a document, if there is one of this name.
    fn file(&self, name: &str, limit: u64) -> StoreResult<Option<Bytes>> {
        self.scan.member(name).map(|member| self.bytes(member, name, limit)).transpose()
    }

    fn bytes(&self, member: Member, what: &str, limit: u64) -> StoreResult<Bytes> {
        if member.size > limit {
            return Err(StoreError::TooLarge {
                what: format!("{what} of the archive"),
                limit: format!("{limit} bytes"),
            });
        }
        let mut bytes = vec![0; member.size as usize];
        let read = self.file.read_exact_at(&mut bytes, member.offset);
        read.map_err(|e| StoreError::io(format!("reading {what} of the archive"), e))?;
        Ok(bytes.into())
    }

    /// Adds a document; gives its digest.
    fn made(&mut self, document: &serde_json::Value) -> Digest {
        let bytes = Bytes::from(document.to_string());
        let digest = Digest::of(&bytes);
        self.extra.insert(digest, Blob::Made(bytes));
        digest
    }
}

/// A name of an archive as a reference with a tag, if it is one.
fn tagged(name: &str) -> Option<Reference> {
    name.parse::<Reference>().ok().filter(|reference| reference.tag_key().is_some())
}

/// What is said when one name is to be given to several images.
fn several(names: impl IntoIterator<Item = String>) -> StoreError {
    let mut names: Vec<_> = names.into_iter().collect();
    names.truncate(10);
    let names = if names.is_empty() { "without names".into() } else { names.join(", ") };
    malformed(&format!("has several images ({names}), and --name can be given to one alone"))
}

fn malformed(detail: &str) -> StoreError {
    StoreError::malformed("image archive", detail)
}

#[cfg(test)]
mod tests;

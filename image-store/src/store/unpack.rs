//! The blocking half of a layer: compressed bytes in, a directory and its diff ID out.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender};

use bytes::{Buf, Bytes};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;

use super::gzip::{self, Members};
use crate::config::Limits;
use crate::digest::{Digest, Hasher};
use crate::error::{StoreError, StoreResult};
use crate::extract::{ExtractError, Extracted, extract};
use crate::registry::Compression;

/// Decompressed bytes go from thread to thread in blocks of this size, of which so many wait.
const BLOCK: usize = 256 << 10;
const BLOCKS: usize = 4;
/// Decompressing a zstd frame may take this much memory (2^27 = 128 MiB, zstd's own default).
const ZSTD_WINDOW_LOG: u32 = 27;
/// The first bytes of a zstd frame (RFC 8878, 3.1.1), and of a skippable one behind its first byte, 0x50 to 0x5f.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// A directory below `tmp/`, removed unless it was moved away.
pub(crate) struct Staging {
    path: PathBuf,
    moved: bool,
}

impl Staging {
    pub(crate) fn new(path: PathBuf) -> StoreResult<Self> {
        let failed = |e| StoreError::io(format!("making {}", path.display()), e);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let staging = Self { path: path.clone(), moved: false };
        let root = path.join("fs");
        fs::create_dir(&root).map_err(failed)?;
        // Whatever the umask is.
        fs::set_permissions(&root, Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(staging)
    }

    pub(crate) fn root(&self) -> StoreResult<OwnedFd> {
        open_dir(&self.path.join("fs"))
    }

    pub(crate) fn move_to(mut self, path: &Path) -> StoreResult<()> {
        fs::rename(&self.path, path).map_err(|e| StoreError::io(format!("renaming to {}", path.display()), e))?;
        self.moved = true;
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.moved
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "rubbish stays until the next start");
        }
    }
}

pub(crate) fn open_dir(path: &Path) -> StoreResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| StoreError::io(format!("opening {}", path.display()), e.into()))
}

/// What to unpack.
pub(crate) struct Job {
    /// For messages.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) compression: Compression,
    pub(crate) lowest: bool,
    pub(crate) diff_id: Digest,
    pub(crate) limits: Limits,
}

impl Job {
    /// Unpacks what comes over `chunks`. That the compressed bytes have the right digest is for the sender to say.
    pub(crate) fn run(&self, root: OwnedFd, mut chunks: mpsc::Receiver<Bytes>) -> StoreResult<Extracted> {
        let result = self.unpack(root, &mut chunks);
        if matches!(result, Err(StoreError::Malformed { .. })) {
            // Is the layer bad, or were its bytes damaged? The digest tells, once all of them were seen.
            while chunks.blocking_recv().is_some() {}
        }
        result
    }

    fn unpack(&self, root: OwnedFd, chunks: &mut mpsc::Receiver<Bytes>) -> StoreResult<Extracted> {
        let mut chunks = Chunks { chunks, current: Bytes::new(), left: self.size };
        let (extracted, rest) = std::thread::scope(|scope| {
            let (full, blocks) = std::sync::mpsc::sync_channel(BLOCKS);
            let (empty, emptied) = std::sync::mpsc::channel();
            // Decompressing is half of the work: on a thread of its own it runs beside hashing and writing.
            let decompress = scope.spawn(move || {
                self.decompress(&mut chunks, &full, &emptied);
                !chunks.current.is_empty() || chunks.left > 0
            });
            let extracted =
                self.extract(root, Blocks::new(blocks, empty, self.diff_id.hasher(), self.limits.layer_unpacked_bytes));
            (extracted, decompress.join())
        });
        let (extracted, actual) = extracted?;
        match rest {
            Ok(false) => {}
            Ok(true) => return Err(StoreError::malformed(&self.name, "has bytes behind its compressed data")),
            Err(_) => return Err(StoreError::io("decompressing", io::Error::other("the thread panicked"))),
        }
        if actual != self.diff_id {
            return Err(StoreError::DigestMismatch {
                what: format!("{} (unpacked)", self.name),
                expected: self.diff_id.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(extracted)
    }

    fn extract(&self, root: OwnedFd, blocks: Blocks) -> StoreResult<(Extracted, Digest)> {
        let (extracted, mut blocks) =
            extract(blocks, root, self.lowest, &self.limits).map_err(|e| self.extract_failed(e))?;
        // The padding behind the archive's end is part of the diff ID.
        while blocks.next().map_err(|e| self.read_failed(&e))? {}
        Ok((extracted, blocks.hasher.finish()))
    }

    /// Sends decompressed blocks until the end, an error, or until nobody takes them.
    fn decompress(
        &self,
        chunks: &mut Chunks<'_>,
        full: &SyncSender<io::Result<Vec<u8>>>,
        emptied: &std::sync::mpsc::Receiver<Vec<u8>>,
    ) {
        let mut decoder = match self.decoder(chunks) {
            Ok(decoder) => decoder,
            Err(error) => return drop(full.send(Err(error))),
        };
        loop {
            let mut block = emptied.try_recv().unwrap_or_default();
            block.clear();
            let read = decoder.by_ref().take(BLOCK as u64).read_to_end(&mut block);
            let last = !matches!(read, Ok(n) if n > 0);
            if full.send(read.map(|_| block)).is_err() || last {
                return;
            }
        }
    }

    fn decoder<'a, 'b>(&self, chunks: &'a mut Chunks<'b>) -> io::Result<Decoder<'a, 'b>> {
        // The bytes tell, not the media type: some pushers call plain layers gzip, or zstd layers gzip.
        let magic = chunks.peek()?;
        let found = if magic.starts_with(&gzip::MAGIC) {
            Compression::Gzip
        } else if magic.starts_with(&ZSTD)
            || matches!(magic, [0x50..=0x5f, rest @ ..] if rest.starts_with(&ZSTD_SKIPPABLE))
        {
            Compression::Zstd
        } else {
            Compression::Sniff
        };
        if found != self.compression {
            tracing::debug!(layer = self.name, says = ?self.compression, ?found, "a layer's media type");
        }
        Ok(match found {
            Compression::Gzip => Decoder::Gzip(Box::new(Members::new(chunks))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(chunks)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Decoder::Zstd(Box::new(decoder))
            }
            Compression::Sniff => Decoder::Plain(chunks),
        })
    }

    fn read_failed(&self, error: &io::Error) -> StoreError {
        match error.get_ref().and_then(|e| e.downcast_ref::<TooLong>()) {
            Some(TooLong(limit)) => {
                StoreError::TooLarge { what: format!("{}, unpacked,", self.name), limit: format!("{limit} bytes") }
            }
            None => StoreError::malformed(&self.name, format!("cannot be decompressed: {error}")),
        }
    }

    pub(crate) fn extract_failed(&self, error: ExtractError) -> StoreError {
        match error {
            ExtractError::Malformed { entry, reason } => {
                StoreError::malformed(&self.name, format!("tar entry {entry:?}: {reason}"))
            }
            ExtractError::TooLarge { entry, limit } => {
                StoreError::TooLarge { what: format!("{}: tar entry {entry:?}", self.name), limit }
            }
            ExtractError::Io { entry, operation, source } => {
                StoreError::io(format!("{}: tar entry {entry:?}: {operation}", self.name), source)
            }
            ExtractError::Read(source) => self.read_failed(&source),
        }
    }
}

/// The chunks as one stream that ends where the blob ends; before that, a closed channel is an error.
struct Chunks<'a> {
    chunks: &'a mut mpsc::Receiver<Bytes>,
    current: Bytes,
    left: u64,
}

impl Chunks<'_> {
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.chunks.blocking_recv() {
            Some(chunk) => {
                self.left = self.left.saturating_sub(chunk.len() as u64);
                Ok(Some(chunk))
            }
            None if self.left == 0 => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download ended early")),
        }
    }

    /// The first bytes, which tell the format.
    fn peek(&mut self) -> io::Result<&[u8]> {
        while self.current.len() < 4 {
            let Some(chunk) = self.next()? else {
                break;
            };
            self.current =
                if self.current.is_empty() { chunk } else { [&self.current[..], &chunk[..]].concat().into() };
        }
        Ok(&self.current)
    }
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.next()? {
                Some(chunk) => self.current = chunk,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

enum Decoder<'a, 'b> {
    Plain(&'a mut Chunks<'b>),
    Gzip(Box<Members<&'a mut Chunks<'b>>>),
    Zstd(Box<zstd::Decoder<'static, &'a mut Chunks<'b>>>),
}

impl Read for Decoder<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(chunks) => chunks.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Decompressed blocks as a stream that hashes and counts what passes. An empty block is the end.
struct Blocks {
    blocks: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    hasher: Hasher,
    seen: u64,
    limit: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct TooLong(u64);

impl Blocks {
    fn new(blocks: Receiver<io::Result<Vec<u8>>>, empty: Sender<Vec<u8>>, hasher: Hasher, limit: u64) -> Self {
        Self { blocks, empty, current: Vec::new(), at: 0, hasher, seen: 0, limit }
    }

    /// Goes on to the next block; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        let used = std::mem::take(&mut self.current);
        if used.capacity() > 0 {
            let _ = self.empty.send(used);
        }
        self.at = 0;
        self.current = match self.blocks.recv() {
            Ok(block) => block?,
            Err(_) => Vec::new(),
        };
        self.seen += self.current.len() as u64;
        if self.seen > self.limit {
            return Err(io::Error::other(TooLong(self.limit)));
        }
        self.hasher.update(&self.current);
        Ok(!self.current.is_empty())
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.next()? {
            return Ok(0);
        }
        let length = (self.current.len() - self.at).min(buffer.len());
        buffer[..length].copy_from_slice(&self.current[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

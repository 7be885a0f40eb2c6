//! The blocking half of a layer: compressed bytes in, a directory and its diff ID out.
//!
//! ```text
//!  queue ─► decompress ─┬─► extract (the layer's own thread)
//!                       └─► sha256 of the tar
//! ```

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use super::artifact::{self, Form};
use super::blocks::{Block, Blocks};
use super::budget::{Budget, Pulse};
use super::chunks::Chunks;
use super::frames::Frames;
use super::gzip::{self, Members};
use crate::config::Limits;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::extract::{ExtractError, Extracted, extract};
use crate::flow::{Next, Source};

/// The first bytes of a zstd frame (RFC 8878, 3.1.1), and of a skippable one behind its first byte,
/// 0x50 to 0x5f.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Blocks of decompressed bytes that wait for each of the threads that take them.
const WAITING: usize = 3;

/// What a layer's threads share with those of other layers.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) budget: Arc<Budget>,
    pub(crate) pulse: Arc<Pulse>,
}

/// What to unpack.
pub(crate) struct Job {
    /// For messages.
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) form: Form,
    pub(crate) lowest: bool,
    /// Of an artifact's blob, what stands for it.
    pub(crate) diff_id: Digest,
    pub(crate) limits: Limits,
}

/// A decompressed block for each who takes it, or why there is none.
type Sent = io::Result<Arc<Block>>;

impl Job {
    /// Unpacks what comes from `source`. That the compressed bytes have the right digest is for the
    /// sender to say.
    pub(crate) fn run(&self, root: OwnedFd, mut source: Source, gate: &Gate) -> StoreResult<Extracted> {
        let result = match &self.form {
            Form::Layer | Form::Tar => self.unpack(root, &mut source, gate),
            Form::File(name) => self.keep(root, name, &mut source, gate),
        };
        if matches!(result, Err(StoreError::Malformed { .. })) {
            // Is the layer bad, or were its bytes damaged? The digest tells, once all of them were
            // seen.
            while let Next::Bytes(_) = source.next() {}
        }
        result
    }

    fn unpack(&self, root: OwnedFd, source: &mut Source, gate: &Gate) -> StoreResult<Extracted> {
        let mut chunks = Chunks::new(source, gate, self.size);
        let (to_extract, blocks) = sync_channel(WAITING);
        let (to_hash, hashed) = sync_channel::<Arc<Block>>(WAITING);
        let named = |name: &str| thread::Builder::new().name(name.into());
        let no_thread = |e| StoreError::io("making a thread for a layer", e);
        let outcome = thread::scope(|scope| {
            let decompress = named("layer-decode").spawn_scoped(scope, move || {
                self.decompress(&mut chunks, &gate.budget.blocks, &to_extract, &to_hash);
                chunks.has_more()
            });
            let decompress = decompress.map_err(no_thread)?;
            let hash = named("layer-sha256").spawn_scoped(scope, move || {
                let mut hasher = self.diff_id.hasher();
                hashed.iter().for_each(|block| hasher.update(&block[..]));
                hasher.finish()
            });
            let hash = hash.map_err(no_thread)?;
            let extracted = self.extract(root, Stream::new(blocks, self.limits.layer_unpacked_bytes));
            Ok::<_, StoreError>((extracted, decompress.join(), hash.join()))
        })?;
        if gate.pulse.is_stopped() {
            return Err(StoreError::stopped(&self.name));
        }
        let (extracted, rest, actual) = outcome;
        let extracted = extracted?;
        let panicked = |_| StoreError::io("unpacking a layer", io::Error::other("a thread panicked"));
        if rest.map_err(panicked)? {
            return Err(StoreError::malformed(&self.name, "has bytes behind its compressed data"));
        }
        let actual = actual.map_err(panicked)?;
        if self.form == Form::Layer && actual != self.diff_id {
            return Err(StoreError::DigestMismatch {
                what: format!("{} (unpacked)", self.name),
                expected: self.diff_id.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(extracted)
    }

    /// Keeps the bytes as they are in a file, which goes through the extractor as a tar of one
    /// entry does.
    fn keep(&self, root: OwnedFd, name: &str, source: &mut Source, gate: &Gate) -> StoreResult<Extracted> {
        let headers = artifact::headers(name, self.size).map_err(|e| StoreError::io("making a tar header", e))?;
        let padding = io::repeat(0).take(self.size.next_multiple_of(512) - self.size);
        let stream = Read::chain(&headers[..], Chunks::new(source, gate, self.size)).chain(padding);
        let extracted = extract(stream, root, self.lowest, &self.limits);
        if gate.pulse.is_stopped() {
            return Err(StoreError::stopped(&self.name));
        }
        extracted.map(|(extracted, _)| extracted).map_err(|e| self.extract_failed(e))
    }

    fn extract(&self, root: OwnedFd, stream: Stream) -> StoreResult<Extracted> {
        let (extracted, mut stream) =
            extract(stream, root, self.lowest, &self.limits).map_err(|e| self.extract_failed(e))?;
        // The padding behind the archive's end is part of the diff ID.
        while stream.next().map_err(|e| self.read_failed(&e))? {}
        Ok(extracted)
    }

    /// Sends decompressed blocks until the end, an error, or until nobody takes them.
    fn decompress(
        &self,
        chunks: &mut Chunks<'_>,
        blocks: &Arc<Blocks>,
        to_extract: &SyncSender<Sent>,
        to_hash: &SyncSender<Arc<Block>>,
    ) {
        let mut decoder = match Self::decoder(chunks) {
            Ok(decoder) => decoder,
            Err(error) => return drop(to_extract.send(Err(error))),
        };
        loop {
            let mut block = blocks.take();
            match block.fill(&mut decoder) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => return drop(to_extract.send(Err(error))),
            }
            let block = Arc::new(block);
            if to_hash.send(block.clone()).is_err() || to_extract.send(Ok(block)).is_err() {
                return;
            }
        }
    }

    pub(super) fn decoder<'a, 'b>(chunks: &'a mut Chunks<'b>) -> io::Result<Decoder<'a, 'b>> {
        // The bytes tell, not the media type: some pushers call plain layers gzip, or zstd layers
        // gzip.
        let magic = chunks.peek(4)?;
        let zstd =
            magic.starts_with(&ZSTD) || matches!(magic, [0x50..=0x5f, rest @ ..] if rest.starts_with(&ZSTD_SKIPPABLE));
        Ok(match magic.starts_with(&gzip::MAGIC) {
            true => Decoder::Gzip(Box::new(Members::new(chunks))),
            false if zstd => Decoder::Zstd(Frames::new(chunks)),
            false => Decoder::Plain(chunks),
        })
    }

    fn read_failed(&self, error: &io::Error) -> StoreError {
        match error.get_ref().and_then(|e| e.downcast_ref::<TooLong>()) {
            Some(TooLong(limit)) => {
                StoreError::TooLarge { what: format!("{}, unpacked,", self.name), limit: format!("{limit} bytes") }
            }
            None if matches!(self.form, Form::File(_)) => StoreError::malformed(&self.name, error.to_string()),
            None => StoreError::malformed(&self.name, format!("cannot be decompressed: {error}")),
        }
    }

    pub(crate) fn extract_failed(&self, error: ExtractError) -> StoreError {
        let kind = if matches!(self.form, Form::File(_)) { "file" } else { "tar entry" };
        match error {
            ExtractError::Malformed { entry, reason } => {
                StoreError::malformed(&self.name, format!("{kind} {entry:?}: {reason}"))
            }
            ExtractError::TooLarge { entry, limit } => {
                StoreError::TooLarge { what: format!("{}: {kind} {entry:?}", self.name), limit }
            }
            ExtractError::Io { entry, operation, source } => {
                StoreError::io(format!("{}: {kind} {entry:?}: {operation}", self.name), source)
            }
            ExtractError::Read(source) => self.read_failed(&source),
        }
    }
}

pub(super) enum Decoder<'a, 'b> {
    Plain(&'a mut Chunks<'b>),
    Gzip(Box<Members<&'a mut Chunks<'b>>>),
    Zstd(Frames<'a, 'b>),
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

/// Decompressed blocks as a stream that counts what passes.
struct Stream {
    blocks: Receiver<Sent>,
    current: Option<Arc<Block>>,
    at: usize,
    seen: u64,
    limit: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct TooLong(u64);

impl Stream {
    fn new(blocks: Receiver<Sent>, limit: u64) -> Self {
        Self { blocks, current: None, at: 0, seen: 0, limit }
    }

    /// Goes on to the next block; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        self.current = None;
        self.at = 0;
        self.current = self.blocks.recv().ok().transpose()?;
        self.seen += self.current.as_ref().map_or(0, |block| block.len() as u64);
        if self.seen > self.limit {
            return Err(io::Error::other(TooLong(self.limit)));
        }
        Ok(self.current.is_some())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.current.as_ref().map(|block| &block[self.at..]).unwrap_or_default();
            if !rest.is_empty() {
                let length = rest.len().min(buffer.len());
                buffer[..length].copy_from_slice(&rest[..length]);
                self.at += length;
                return Ok(length);
            }
            if !self.next()? {
                return Ok(0);
            }
        }
    }
}

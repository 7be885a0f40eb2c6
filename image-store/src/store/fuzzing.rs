//! The decompression of a layer in one thread, for the fuzz targets.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;

use super::budget::{Budget, Pulse};
use super::chunks::Chunks;
use super::unpack::{Gate, Job};
use crate::flow::queue;

/// Decompressed bytes that are looked at.
const MOST: u64 = 4 << 20;

/// Decompresses `blob`, which comes in pieces of `piece` bytes; answers what is in it, if it is
/// whole.
pub fn decompress(blob: &[u8], piece: usize) -> Option<Vec<u8>> {
    let (sink, mut source) = queue(u32::MAX >> 4);
    let budget = Budget::new(1, Duration::from_secs(60));
    let gate = Gate { budget, pulse: Pulse::new(sink.stopper()) };
    for piece in blob.chunks(piece.max(1)) {
        let room = futures::executor::block_on(sink.room(piece.len()))?;
        room.send(Bytes::copy_from_slice(piece));
    }
    drop(sink);
    let mut chunks = Chunks::new(&mut source, &gate, blob.len() as u64);
    let mut content = Vec::new();
    let decoder = Job::decoder(&mut chunks).ok()?;
    decoder.take(MOST).read_to_end(&mut content).ok()?;
    Some(content)
}

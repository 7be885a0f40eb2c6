//! A zstd stream, frame by frame: each says how much memory it wants before its first byte (RFC
//! 8878, section 3.1.1.1), and waits until the store has that much to give.

use std::io::{self, BufRead, Read};

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::chunks::Chunks;
use super::pool::Share;

/// A frame's window may be so large (2^27 = 128 MiB, zstd's own default).
const WINDOW_LOG: u32 = 27;
/// The longest header of a frame, with its magic number.
const HEADER: usize = 18;
const MAGIC: u32 = 0xfd2f_b528;
/// Sixteen magic numbers of frames that decompress to nothing.
const SKIPPABLE: u32 = 0x184d_2a50;
/// What a decompressor takes beside its window: its state and a block of input.
const BESIDE: u64 = 384 << 10;

/// The decompressed stream.
pub(super) struct Frames<'a, 'b> {
    chunks: &'a mut Chunks<'b>,
    /// Kept from frame to frame: files of some layers have a frame each.
    decoder: Option<Held>,
    /// In the middle of a frame.
    within: bool,
}

struct Held {
    decoder: Decoder<'static>,
    window: u64,
    _memory: Share,
}

impl<'a, 'b> Frames<'a, 'b> {
    pub(super) fn new(chunks: &'a mut Chunks<'b>) -> Self {
        Self { chunks, decoder: None, within: false }
    }

    /// Begins the next frame; false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        let header = self.chunks.peek(HEADER)?;
        if header.is_empty() {
            return Ok(false);
        }
        let window = window(header).ok_or_else(|| io::Error::other("a zstd frame has no valid header"))?;
        match &mut self.decoder {
            Some(held) if held.window >= window => held.decoder.reinit()?,
            other => {
                // Given back first: who holds memory does not wait for more.
                *other = None;
                let memory = self.chunks.window(window.saturating_add(BESIDE))?;
                let mut decoder = Decoder::new()?;
                decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
                *other = Some(Held { decoder, window, _memory: memory });
            }
        }
        self.within = true;
        Ok(true)
    }
}

impl Read for Frames<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.within && !self.begin()? {
                return Ok(0);
            }
            let Some(held) = &mut self.decoder else {
                return Ok(0);
            };
            let available = self.chunks.fill_buf()?;
            let ended = available.is_empty();
            let mut input = InBuffer::around(available);
            let mut output = OutBuffer::around(buffer);
            let left = held.decoder.run(&mut input, &mut output)?;
            let (used, made) = (input.pos(), output.pos());
            self.chunks.consume(used);
            self.within = left != 0;
            if made > 0 {
                return Ok(made);
            }
            if ended && self.within {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a zstd frame is not complete"));
            }
        }
    }
}

/// The window that a frame asks for, by its header.
fn window(header: &[u8]) -> Option<u64> {
    let magic = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
    if magic & !0xf == SKIPPABLE {
        return Some(0);
    }
    if magic != MAGIC {
        return None;
    }
    let descriptor = *header.get(4)?;
    if descriptor & 0x20 == 0 {
        let byte = u64::from(*header.get(5)?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    // One segment: the window is the content.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let mut size = [0; 8];
    size[..length].copy_from_slice(header.get(at..at + length)?);
    let size = u64::from_le_bytes(size);
    Some(if length == 2 { size + 256 } else { size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_the_header_says() {
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58]), Some(2 << 20));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x88 + 1]), Some((128 << 20) / 8 * 9));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 200]), Some(200));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 1]), Some(512));
        assert_eq!(window(&[0x28, 0xb5, 0x2f, 0xfd, 0xe3, 1, 1, 1, 1, 0, 0, 0, 8, 0, 0, 0, 0]), Some(128 << 20));
        assert_eq!(window(&[0x5f, 0x2a, 0x4d, 0x18]), Some(0));
        for bad in [&b"PK\x03\x04xx"[..], &[0x28, 0xb5], &[0x28, 0xb5, 0x2f, 0xfd]] {
            assert_eq!(window(bad), None);
        }
        for length in [10, 300, 100_000, 3 << 20] {
            let packed = zstd::encode_all(&vec![7; length][..], 3).unwrap();
            let window = window(&packed).unwrap();
            assert!(window >= 1024 || window >= length as u64, "{length}: {window}");
        }
    }
}

//! A layer's compressed bytes as its threads read them.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes};

use super::budget::TURN;
use super::pool::Share;
use super::unpack::Gate;
use crate::flow::{Next, Source};

/// The chunks as one stream that ends where the blob ends; before that, a closed queue is an error.
/// Holds the layer's slot while there is something to decompress.
pub(super) struct Chunks<'a> {
    source: &'a mut Source,
    gate: &'a Gate,
    current: Bytes,
    left: u64,
    slot: Option<Share>,
    /// Bytes since the slot was got.
    turn: u64,
}

impl<'a> Chunks<'a> {
    pub(super) fn new(source: &'a mut Source, gate: &'a Gate, left: u64) -> Self {
        Self { source, gate, current: Bytes::new(), left, slot: None, turn: 0 }
    }

    fn next(&mut self) -> io::Result<Option<Bytes>> {
        let next = match self.source.next_now() {
            Some(next) => next,
            None => {
                self.slot = None;
                self.gate.pulse.waits();
                self.source.next()
            }
        };
        let chunk = match next {
            Next::Bytes(chunk) => chunk,
            Next::End if self.left == 0 => return Ok(None),
            Next::End => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download ended early")),
            Next::Stopped => return Err(stopped()),
        };
        let length = chunk.len() as u64;
        self.gate.pulse.goes_on(length);
        self.left = self.left.saturating_sub(length);
        self.turn += length;
        if self.turn > TURN && self.gate.budget.slots.wanted() {
            self.slot = None;
        }
        self.take_slot()?;
        Ok(Some(chunk))
    }

    /// Whether there are bytes that nobody has read.
    pub(super) fn has_more(&self) -> bool {
        !self.current.is_empty() || self.left > 0
    }

    fn take_slot(&mut self) -> io::Result<()> {
        if self.slot.is_none() {
            let pulse = &self.gate.pulse;
            self.slot = Some(self.gate.budget.slots.take(1, || !pulse.is_stopped()).ok_or_else(stopped)?);
            self.turn = 0;
        }
        Ok(())
    }

    /// Waits for a window of so many bytes, without the slot.
    pub(super) fn window(&mut self, bytes: u64) -> io::Result<Share> {
        self.slot = None;
        let window = self.gate.budget.window(bytes, &self.gate.pulse).ok_or_else(stopped)?;
        self.take_slot()?;
        Ok(window)
    }

    /// The next bytes, `length` of them unless the blob ends before that: they tell the format.
    pub(super) fn peek(&mut self, length: usize) -> io::Result<&[u8]> {
        while self.current.len() < length {
            let Some(chunk) = self.next()? else {
                break;
            };
            self.current =
                if self.current.is_empty() { chunk } else { [&self.current[..], &chunk[..]].concat().into() };
        }
        Ok(&self.current[..self.current.len().min(length)])
    }
}

fn stopped() -> io::Error {
    io::Error::other("the layer was stopped")
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

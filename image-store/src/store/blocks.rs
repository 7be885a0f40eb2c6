//! Blocks of decompressed bytes, which go back to a stock of the store when both threads that read
//! them have done so: a layer that waits for the network holds none.

use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::lock::lock;

/// Bytes of a block.
const SIZE: usize = 256 << 10;
/// Free blocks that are kept for each layer that may work.
const KEPT: usize = 6;

/// The stock.
pub(crate) struct Blocks {
    free: Mutex<Vec<Vec<u8>>>,
    kept: usize,
}

/// A block, with what was read into it.
pub(crate) struct Block {
    bytes: Vec<u8>,
    length: usize,
    stock: Arc<Blocks>,
}

impl Blocks {
    /// For so many layers that work at one time.
    pub(crate) fn new(layers: usize) -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), kept: layers * KEPT })
    }

    /// An empty block.
    pub(crate) fn take(self: &Arc<Self>) -> Block {
        let free = lock(&self.free).pop();
        Block { bytes: free.unwrap_or_else(|| vec![0; SIZE]), length: 0, stock: self.clone() }
    }
}

impl Block {
    /// Reads until it is full or the stream ends; gives how much it has.
    ///
    /// # Errors
    /// What the stream answers.
    pub(crate) fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        while self.length < SIZE {
            match stream.read(&mut self.bytes[self.length..]) {
                Ok(0) => break,
                Ok(read) => self.length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.length)
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = lock(&self.stock.free);
        if free.len() < self.stock.kept {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

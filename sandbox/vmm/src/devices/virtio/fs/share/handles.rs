//! The files that a guest has open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use super::descriptors::{Descriptors, Held};
use super::errno;

/// An open file.
pub(super) struct Handle {
    node: u64,
    pub(super) file: File,
    /// Locked for as long as the file's position is in use.
    pub(super) position: Mutex<()>,
    _held: Held,
}

/// All of them.
pub(super) struct Handles {
    by_number: HashMap<u64, Arc<Handle>>,
    last: u64,
    descriptors: Descriptors,
}

impl Handles {
    /// None yet; each one will count among `descriptors`.
    pub(super) fn new(descriptors: Descriptors) -> Self {
        Self { by_number: HashMap::new(), last: 0, descriptors }
    }

    /// Adds an open file of `node`.
    pub(super) fn insert(&mut self, node: u64, file: File) -> io::Result<u64> {
        let held = self.descriptors.hold()?;
        self.last += 1;
        self.by_number.insert(self.last, Arc::new(Handle { node, file, position: Mutex::default(), _held: held }));
        Ok(self.last)
    }

    /// The open file `number` of `node`.
    pub(super) fn get(&self, number: u64, node: u64) -> io::Result<Arc<Handle>> {
        let handle = self.by_number.get(&number).filter(|handle| handle.node == node);
        handle.cloned().ok_or_else(|| errno(libc::EBADF))
    }

    /// Takes it out; dropping it closes it, which may take long, so do that without the lock.
    pub(super) fn remove(&mut self, number: u64, node: u64) -> io::Result<Arc<Handle>> {
        let handle = self.get(number, node)?;
        self.by_number.remove(&number);
        Ok(handle)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.by_number.len()
    }

    /// Takes all out, to be dropped without the lock.
    pub(super) fn clear(&mut self) -> Vec<Arc<Handle>> {
        std::mem::take(&mut self.by_number).into_values().collect()
    }
}

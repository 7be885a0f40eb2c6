//! A saved VM: what is in its two files, and how they are written and read.
//!
//! ```text
//! state    magic | version | length | body: State, serialized | SHA-256 of all before
//! memory   RAM, page by page, holes for pages of zeros | one page: magic, pair, bytes of RAM
//! ```
//!
//! Both are memfds that the launcher hands over, and both are sealed when they are written, so that
//! nobody can change them under a clone. They are a pair: the same random number is in both. There
//! is no path in them, no descriptor, and nothing of what the devices have behind them on the node.

mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod memory;
mod origin;
#[cfg(test)]
mod tests;
mod warm;

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

pub(crate) use file::{FileError, read, write};
pub(crate) use memory::{MemoryError, map, write as write_memory};
pub(crate) use origin::{Mismatch, Origin};
pub(crate) use warm::copy as copy_beforehand;

use crate::devices::serial::SerialRegisters;
use crate::devices::virtio::saved::SavedDevice;
use crate::kvm::{MachineState, VcpuState};

/// A random number by which a state and a memory know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair([u8; 16]);

impl Pair {
    /// A new one.
    pub(crate) fn new() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom(&mut bytes, GetRandomFlags::empty())?; // up to 256 bytes are never short
        Ok(Self(bytes))
    }
}

/// All of a VM but its memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    /// Which memory it goes with.
    pub(crate) pair: Pair,
    /// What the clone must have in common with the VM that was saved.
    pub(crate) origin: Origin,
    /// vCPUs, by their numbers.
    pub(crate) vcpus: Vec<VcpuState>,
    /// Interrupt controllers and clock.
    pub(crate) machine: MachineState,
    /// The console's registers.
    pub(crate) serial: SerialRegisters,
    /// Devices, in the order of their slots.
    pub(crate) devices: Vec<SavedDevice>,
}

/// Seals `file` against every change, for good.
fn seal(file: impl std::os::fd::AsFd) -> io::Result<()> {
    Ok(rustix::fs::fcntl_add_seals(file, SEALS)?)
}

/// What nobody may do any more with a saved VM's files.
const SEALS: rustix::fs::SealFlags = rustix::fs::SealFlags::GROW
    .union(rustix::fs::SealFlags::SHRINK)
    .union(rustix::fs::SealFlags::WRITE)
    .union(rustix::fs::SealFlags::SEAL);

//! What of the device is worth keeping, and its configuration space.

use cofferdam_proto::monitor::MAX_SERIAL;
use serde::{Deserialize, Serialize};

use super::{DISCARD_ALIGNMENT, F_FLUSH, F_RO, MAX_RANGE_SECTORS, MAX_RANGES, PHYSICAL, SEG_MAX, SIZE_MAX};

/// Version of [`BlkState`].
pub(super) const STATE_VERSION: u32 = 2;

/// State of the device, queue apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlkState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// Size of the disk in sectors of 512 bytes.
    pub(super) capacity: u64,
    /// Bytes of a block, the least that is read or written.
    pub(super) block_size: u32,
    /// The guest cannot write, whatever it asks for.
    pub(super) read_only: bool,
    /// What GET_ID answers, filled up with zeros.
    pub(super) id: [u8; MAX_SERIAL],
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
}

/// A serial as GET_ID answers it; what is too long is cut.
pub(super) fn id(serial: &str) -> [u8; MAX_SERIAL] {
    let mut id = [0; MAX_SERIAL];
    id.iter_mut().zip(serial.bytes()).for_each(|(place, byte)| *place = byte);
    id
}

impl BlkState {
    /// Whether the driver flushes; otherwise each write is flushed (virtio 1.3 §5.2.6.2).
    pub(super) fn write_back(&self) -> bool {
        self.features & F_FLUSH != 0
    }

    /// The features that depend on what kind of disk it is.
    pub(super) fn access_features(&self, writable: u64) -> u64 {
        if self.read_only { F_RO } else { writable }
    }

    /// The configuration space (virtio 1.3 §5.2.4).
    pub(super) fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.capacity.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        let blocks = (PHYSICAL / self.block_size.max(1)).max(1); // in a physical one
        put(20, &self.block_size.to_le_bytes());
        put(24, &[blocks.ilog2() as u8]);
        put(26, &(blocks as u16).to_le_bytes()); // least good transfer, in blocks
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]); // write-zeroes may give space back
        config
    }
}

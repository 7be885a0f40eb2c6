//! What of the device is worth keeping, and its configuration space.

use serde::{Deserialize, Serialize};

use super::{DISCARD_ALIGNMENT, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR, SEG_MAX, SIZE_MAX};

/// Version of [`BlkState`].
pub(super) const STATE_VERSION: u32 = 1;

/// State of the device, queue apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlkState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// Size of the disk in sectors of 512 bytes.
    pub(super) capacity: u64,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
}

impl BlkState {
    /// The configuration space (virtio 1.3 §5.2.4).
    pub(super) fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &self.capacity.to_le_bytes());
        put(8, &SIZE_MAX.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[3]); // physical blocks of 2^3 sectors
        put(26, &8_u16.to_le_bytes()); // least good transfer, in sectors
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]); // write-zeroes may give space back
        config
    }
}

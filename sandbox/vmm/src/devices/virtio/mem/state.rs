//! What of the device is worth keeping.

use serde::{Deserialize, Serialize};

/// Version of [`MemState`].
pub(super) const STATE_VERSION: u32 = 1;

/// State of the device, queues apart. What the driver plugged survives a reset (virtio 1.3 §5.15.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
    /// Bytes that the guest should have plugged.
    pub(super) requested: u64,
    /// Which blocks are plugged, from the region's start.
    pub(super) plugged: Vec<bool>,
}

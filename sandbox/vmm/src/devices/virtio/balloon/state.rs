//! What of the device is worth keeping, and its configuration space.

use serde::{Deserialize, Serialize};

/// Version of [`BalloonState`].
pub(super) const STATE_VERSION: u32 = 1;

/// State of the device, queues apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BalloonState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
    /// How many pages the driver says that the balloon has. Nothing depends on it.
    pub(super) actual: u32,
}

impl BalloonState {
    /// The configuration space (virtio 1.3 section 5.5.4): the balloon is to have no page.
    pub(super) fn config(&self) -> [u8; 8] {
        let mut config = [0; 8];
        config[4..].copy_from_slice(&self.actual.to_le_bytes());
        config
    }
}

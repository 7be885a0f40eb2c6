//! What of the device is worth keeping, and its configuration space.

use serde::{Deserialize, Serialize};

use super::TAG;

/// Version of [`FsState`].
pub(super) const STATE_VERSION: u32 = 2;

/// State of the device, queues and the file server's tables apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FsState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// Name by which the guest mounts it.
    pub(super) tag: String,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
    /// The guest's kernel sends the longer form of requests to set an attribute, as was agreed on.
    pub(super) extended: bool,
}

impl FsState {
    /// The configuration space (virtio 1.3 §5.11.4).
    pub(super) fn config(&self) -> [u8; TAG + 4] {
        let mut config = [0; TAG + 4];
        let length = self.tag.len().min(TAG);
        config[..length].copy_from_slice(&self.tag.as_bytes()[..length]);
        config[TAG..].copy_from_slice(&1_u32.to_le_bytes()); // request queues
        config
    }
}

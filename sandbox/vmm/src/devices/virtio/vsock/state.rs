//! What of the device is worth keeping.

use serde::{Deserialize, Serialize};

/// Version of [`VsockState`].
pub(super) const STATE_VERSION: u32 = 1;

/// State of the device, queues and connections apart: connections do not outlive the process that has their sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VsockState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// The guest's address.
    pub(super) guest_cid: u64,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
    /// Port of the next connection that the node makes.
    pub(super) next_port: u32,
}

//! What of the device is worth keeping.

use serde::{Deserialize, Serialize};

/// Version of [`VsockState`].
pub(super) const STATE_VERSION: u32 = 2;

/// State of the device, queues and connections apart: connections do not outlive the process that has their sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VsockState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// The guest's address.
    pub(super) guest_cid: u64,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
    /// Port of the next connection that the node makes.
    pub(super) next_port: u32,
    /// The guest's agent said that it listens: who is refused now is refused for good.
    pub(super) agent_listened: bool,
    /// There were connections when it was saved, of which the guest is to be told that they are
    /// gone.
    pub(super) connected: bool,
}

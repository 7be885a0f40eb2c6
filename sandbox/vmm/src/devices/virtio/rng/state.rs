//! What of the device is worth keeping.

use serde::{Deserialize, Serialize};

/// Version of [`RngState`].
pub(super) const STATE_VERSION: u32 = 1;

/// State of the device, queues apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RngState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// What the driver accepted; zero while it is not active.
    pub(super) features: u64,
}

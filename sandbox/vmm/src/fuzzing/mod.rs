//! What the targets of `fuzz/` reach of the monitor: parsers of what a guest, a saved VM or the
//! daemon says. Behind the feature `fuzzing`, so the product has none of it.

mod devices;
mod driver;
pub(crate) mod listener;
mod registers;

use cofferdam_proto::monitor::{ExitReport, LaunchConfig, Reply, Request};
use cofferdam_proto::sink::SinkRequest;

pub use crate::devices::virtio::fs::fuzzing::Fuse;
pub use crate::devices::virtio::test_guest::{DATA, MEMORY};
pub use crate::log_sink::fuzzing::log_frames;
pub use crate::saved::fuzzing::{saved_state, saved_state_seed};
pub use devices::{Device, play};
pub use driver::Step;
pub(crate) use driver::carry_out;
pub use registers::{Access, registers};

/// Reads a launch configuration, and checks all of it but its descriptors.
pub fn launch_config(bytes: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<LaunchConfig>(bytes) {
        let _ = crate::launch::settings(&config);
    }
}

/// Reads what the daemon and a monitor tell each other.
pub fn packets(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Request>(bytes);
    let _ = serde_json::from_slice::<Reply>(bytes);
    let _ = serde_json::from_slice::<SinkRequest>(bytes);
    let _ = serde_json::from_slice::<ExitReport>(bytes);
}

//! The agent's API: messages, client and server. Documented in `proto/agent.proto`.

use std::ops::RangeInclusive;

/// Newest version that [`HelloRequest`] carries. It goes up when the daemon has to know whether an agent understands what is new.
pub const API_VERSION: u32 = 4;

/// Versions that a greeting may name, on both sides. One is left out when no pod that speaks nothing newer can be running any more:
/// docs/upgrade.md says for how long that is promised.
pub const API_VERSIONS: RangeInclusive<u32> = 1..=API_VERSION;

/// The first version with the call `Clock`.
pub const CLOCK_SINCE: u32 = 2;

/// The first version that heeds [`CreateContainerRequest::image_volumes`].
pub const IMAGE_VOLUMES_SINCE: u32 = 2;

/// The first version with the calls `AttachDisk` and `DetachDisk`.
pub const DISKS_SINCE: u32 = 3;

/// vsock port on which the agent in a microVM listens.
pub const VSOCK_PORT: u32 = 1024;

/// vsock port on the node's side (CID 2) to which a guest's agent sends container logs; see [`crate::sink`].
pub const LOG_VSOCK_PORT: u32 = crate::sink::VSOCK_PORT;

/// Where the pod's share (virtio-fs tag [`SHARE_TAG`]) is mounted in the guest.
pub const GUEST_SHARE: &str = "/run/cofferdam/share";

/// virtio-fs tag of the pod's share directory.
pub const SHARE_TAG: &str = "cofferdam";

mod generated {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("cofferdam.agent.v1");
}
pub use generated::*;

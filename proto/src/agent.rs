//! The agent's API: messages, client and server. Documented in `proto/agent.proto`.

/// Version that [`HelloRequest`] carries; a newer minor capability adds fields, a breaking change adds one here.
pub const API_VERSION: u32 = 1;

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

//! Container logs, on their way to the files that the kubelet reads.
//!
//! The files are written by the per-pod process on the node: the monitor for a `vm` pod, the agent for a
//! `host` pod. The daemon opens a log file (no-follow, below the sandbox's log directory) and hands the descriptor
//! over with a [`SinkRequest`]; the writer knows no paths.
//!
//! A `host` agent serves [`SinkRequest`]s on a socket of its own, one JSON packet each, answered by one
//! [`SinkReply`] packet; the monitor takes them in [`crate::monitor::Request::Sink`].
//!
//! **From a guest**, one vsock connection (port [`VSOCK_PORT`] of CID 2) per container:
//!
//! ```text
//! u8 length of id | id (64 hex digits) | frame | frame | ...
//! frame:  u8 stream (1 stdout, 2 stderr) | u32 length, little endian, 1..=65536 | bytes
//! ```
//!
//! A header with an unknown id, or a frame out of bounds, closes the connection.

use serde::{Deserialize, Serialize};

/// vsock port on the node's side (CID 2) to which a guest's agent sends container logs.
pub const VSOCK_PORT: u32 = 1025;

/// Longest payload of one frame, bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What the daemon asks of a log writer. Sent with one descriptor for `Open`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "sink", rename_all = "snake_case")]
pub enum SinkRequest {
    /// Write this container's output to the attached descriptor (`O_APPEND`). When the container already has one, the
    /// new file takes over at the next whole record; nothing is lost or doubled.
    Open {
        /// Container id.
        container: String,
    },
    /// Forget the container.
    Close {
        /// Container id.
        container: String,
    },
}

/// Answer to a [`SinkRequest`] on a host agent's sink socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReply {
    /// Absent: done. Else what failed and why.
    pub error: Option<String>,
}

/// Which of a container's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

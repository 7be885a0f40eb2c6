//! How the daemon starts a host pod's supervisor, version 1.
//!
//! **Launch.** `cofferdam-agent supervise --config-fd N` reads one JSON [`LaunchConfig`] from descriptor `N`. Sockets are
//! descriptors that were handed over. The program joins the network namespace, makes the other namespaces, forks, and the child
//! becomes the supervisor: PID 1 of the pod's pid namespace, with a mount namespace of its own. The parent writes one JSON
//! [`Ready`] to `ready_fd`, closes it and exits with status 0; on failure it writes what failed to standard error and exits with status 1.
//!
//! **Life.** The supervisor serves [`crate::agent`] on `socket_fd` and [`crate::sink`] on `sink_fd`. When it dies, the kernel kills every
//! process of the pod and drops every mount of it, since both live in its namespaces.
//!
//! **End.** On `Shutdown` it kills and unmounts everything and exits with status 0.

use serde::{Deserialize, Serialize};

/// Version of this API. Fields may be added within a version; unknown ones are ignored by readers.
pub const API_VERSION: u32 = 1;

/// What the supervisor of one host pod needs. Descriptor numbers are those of the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// [`API_VERSION`] of the writer; another one is refused.
    pub api_version: u32,
    /// Pod id, for log lines only.
    pub name: String,
    /// Listening `SOCK_STREAM` unix socket for the agent's API.
    pub socket_fd: i32,
    /// Listening `SOCK_SEQPACKET` unix socket for [`crate::sink::SinkRequest`]s.
    pub sink_fd: i32,
    /// Pipe for [`Ready`].
    pub ready_fd: i32,
    /// Network namespace to join; absent: stay in the node's.
    pub netns_fd: Option<i32>,
    /// Stay in the node's pid namespace (CRI: pid NODE).
    pub node_pid: bool,
    /// Stay in the node's ipc namespace (CRI: ipc NODE).
    pub node_ipc: bool,
    /// Stay in the node's uts namespace (with the node's network, the host name is the node's).
    pub node_uts: bool,
    /// Users of the pod's own; absent: the node's. With them, none of the namespaces above is the node's.
    #[serde(default)]
    pub users: Option<PodUsers>,
    /// Directory for writable layers on the node, 0700, the supervisor's alone:
    /// `<state_dir>/<container id>/{upper,work}`.
    pub state_dir: String,
    /// Directory for mount points (roots of containers), 0700, the supervisor's alone.
    pub run_dir: String,
}

/// Users of a pod: the same range for users and groups, 0 in the pod being `host_id` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRange {
    /// The first one's number on the node, never 0.
    pub host_id: u32,
    /// How many.
    pub length: u32,
}

/// A pod's user namespace and those that belong to it, as descriptors. The network namespace of `netns_fd` belongs to it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodUsers {
    /// User namespace, with its maps written.
    pub user_fd: i32,
    /// IPC namespace.
    pub ipc_fd: i32,
    /// Host name.
    pub uts_fd: i32,
    /// What the maps say.
    pub range: UserRange,
}

/// The supervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Process id of the supervisor in the node's pid namespace.
    pub pid: u32,
}

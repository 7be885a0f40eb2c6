//! Every message that crosses a process boundary of Cofferdam.
//!
//! - [`cri`]: CRI v1, as the kubelet speaks it (feature `cri`).
//! - [`legal`]: what a runtime may tell the kubelet, for tests.
//! - [`agent`]: the daemon to the agent, gRPC (feature `agent`).
//! - [`images`]: `cofferdam images` to the daemon, gRPC, what CRI has no call for (feature `cri`).
//! - [`monitor`]: the daemon to the monitor, JSON over a unix seqpacket socket.
//! - [`sink`]: the daemon to whatever writes container logs on the node.
//! - [`unshared`]: file systems that no guest gets, for the daemon and the monitor.
//! - [`supervisor`]: how a host pod's agent is started, JSON from a descriptor.
//! - [`usage`]: what the files of a cgroup say (feature `agent`).
//! - [`logline`]: the log file format that the kubelet reads.
//!
//! Nothing here depends on another crate of ours.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "cri")]
pub mod cri;
#[cfg(feature = "cri")]
pub mod images;
#[cfg(feature = "cri")]
pub mod legal;
pub mod logline;
pub mod monitor;
pub mod packet;
pub mod sink;
pub mod supervisor;
pub mod unshared;
#[cfg(feature = "agent")]
pub mod usage;

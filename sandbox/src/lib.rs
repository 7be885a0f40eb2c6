//! What a pod runs in: start it, find it again after a restart, stop it, tell what it can do.
//!
//! ```text
//!  Runtime ── launch(PodSpec) ──► Pod ── agent(): the agent's API, whatever the kind
//!     │                            ├──── export(): a directory of the node, as the agent sees it
//!     ├── adopt(id) ──► Pod | End  ├──── open_log(): where a container's output goes
//!     └── remove(id): idempotent   └──── ended(): how and when it ended by itself
//! ```
//!
//! It knows nothing of CRI or of images. Everything that it needs to find a pod again is in
//! `<run_dir>/pods/<id>/`, so it outlives the daemon and goes with the node's reboot, like the pod.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "a test may block: nothing else waits for its thread"))]

mod blocks;
mod cgroup;
mod clock;
mod cni;
mod connect;
mod devices;
mod dirs;
mod disk;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod launch;
mod link;
mod look;
pub mod mountinfo;
mod netns;
mod pod;
mod probe;
mod process;
mod quota;
mod resize;
mod runtime;
mod sealed;
mod share;
mod size;
mod spec;
mod step;
mod teardown;
mod template;
#[cfg(test)]
mod testing;
mod usage;
mod users;
mod versions;
mod watches;

pub use blocks::{BlockDevice, leads_to_block_device};
pub use error::SandboxError;
pub use look::{console, guest_size};
pub use pod::{End, Pod};
pub use quota::LiftedQuota;
pub use runtime::{Adopted, Runtime, Timeline};
pub use share::{Access, Exported, Submount};
pub use size::{SMALLEST_GUEST_MIB, guest_mib};
pub use spec::{
    Bandwidth, CniConfig, Config, Kind, NetworkSpec, NetworkStatus, PodSpec, PortMapping, Protocol, TemplateConfig,
    UserRange, VmConfig, VmSize,
};
pub use step::{SPANS, step};
pub use template::TemplateUsage;
pub use usage::{InterfaceUsage, PodUsage, Traffic};
pub use versions::{ProgramVersion, Programs};
pub use watches::{Watch, Watches};

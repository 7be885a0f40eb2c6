//! What pods and containers use.
//!
//! ```text
//!  a pod        its cgroup on the node and its network namespace: the VM with its overhead, nothing that the guest says
//!  a container  its cgroup, wherever that is: the pod's agent tells, and is believed within bounds
//! ```

mod bounds;
mod collect;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod metrics;
mod sampler;
mod show;

pub(crate) use collect::{Measured, containers, one, pods};
pub(crate) use sampler::Sampler;
pub(crate) use show::{container, pod, unmeasured};

//! The node's pods.

use std::collections::BTreeMap;

use crate::error::SandboxError;
use crate::pod::{End, Pod};
use crate::spec::{Config, Kind, PodSpec};

/// Launches pods and finds them again. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    _config: std::sync::Arc<Config>,
}

/// What became of a pod that was launched by an earlier daemon.
pub enum Adopted {
    /// It runs.
    Running(Pod),
    /// It ended; [`Runtime::remove`] frees what it has.
    Ended(End),
}

impl Runtime {
    /// Prepares the directories (0700) below `run_dir` and `state_dir`.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn open(config: Config) -> Result<Self, SandboxError> {
        Ok(Self { _config: std::sync::Arc::new(config) })
    }

    /// Whether this node can run pods of `kind`; tried once, then remembered while the answer is yes.
    ///
    /// # Errors
    /// [`SandboxError::Unusable`], with what to do.
    pub fn probe(&self, kind: Kind) -> Result<(), SandboxError> {
        Err(SandboxError::Invalid(format!("{kind:?} is not there yet")))
    }

    /// Whether CNI is configured, from the directory as it is now. Never runs a plugin.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn network_ready(&self) -> Result<(), SandboxError> {
        Err(SandboxError::Invalid("not there yet".into()))
    }

    /// Launches a pod: network, share and boot side by side. All or nothing: a failure undoes what was done, and so does
    /// [`Runtime::remove`] after a kill. `times` gets how long each step took, by name, in microseconds since the call began.
    ///
    /// # Errors
    /// Says which step failed and why.
    pub async fn launch(&self, spec: &PodSpec) -> Result<Pod, SandboxError> {
        Err(SandboxError::Ended { id: spec.id.clone() })
    }

    /// Finds a pod again after a restart of the daemon, by what is in its directory.
    ///
    /// # Errors
    /// When there is nothing of the pod, or its launch was not finished: [`Runtime::remove`] it.
    pub async fn adopt(&self, id: &str) -> Result<Adopted, SandboxError> {
        Err(SandboxError::Ended { id: id.into() })
    }

    /// Kills what runs of a pod, gives its network back, and deletes all that it has on the node: processes, mounts, network namespace,
    /// tap, cgroup, files. Idempotent; works on whatever an interrupted launch left.
    ///
    /// # Errors
    /// Says what could not be freed; calling it again goes on from there.
    pub async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let _ = id;
        Ok(())
    }

    /// Ids of all pods of which anything is there, run or not.
    pub fn known(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Step name to microseconds since the launch began: `cni_start`, `cni_end`, `monitor_spawned`, `kernel_loaded`, ...
pub type Timeline = BTreeMap<String, u64>;

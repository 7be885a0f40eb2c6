//! One running pod.

use std::os::fd::OwnedFd;
use std::path::Path;

use cofferdam_proto::agent::agent_client::AgentClient;
use tonic::transport::Channel;

use crate::error::SandboxError;
use crate::runtime::Timeline;
use crate::spec::{Kind, NetworkStatus};

/// A running pod. Cheap to clone; dropping it ends nothing.
#[derive(Clone)]
pub struct Pod {
    _inner: std::sync::Arc<()>,
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It was asked to.
    pub clean: bool,
    /// For people: `the guest's kernel panicked: ...`.
    pub detail: String,
    /// Nanoseconds since the epoch.
    pub at_unix_nanos: i64,
}

#[allow(clippy::unused_async)]
impl Pod {
    /// Its id.
    pub fn id(&self) -> &str {
        ""
    }

    /// What it runs in.
    pub fn kind(&self) -> Kind {
        Kind::Vm
    }

    /// What CNI answered; absent on the node's network.
    pub fn network(&self) -> Option<&NetworkStatus> {
        None
    }

    /// When the steps of its launch happened; empty for an adopted pod.
    pub fn timeline(&self) -> &Timeline {
        unimplemented!()
    }

    /// Process id of the monitor or supervisor.
    pub fn pid(&self) -> u32 {
        0
    }

    /// The agent. One connection, made once, that connects again by itself.
    pub fn agent(&self) -> AgentClient<Channel> {
        unimplemented!()
    }

    /// Parent cgroup for the containers as the agent wants it (`CreateContainerRequest.cgroup_parent`): empty in a microVM.
    pub fn container_cgroup_parent(&self) -> String {
        String::new()
    }

    /// Makes a file or directory of the node visible to the agent for `container` under a new name, and returns the path by which the
    /// agent reaches it. `read_only` is enforced on the node. `Kind::Vm`: a bind mount in the share, made through a descriptor
    /// that was opened by the caller's path once; `Kind::Host`: `source` itself is returned.
    ///
    /// # Errors
    /// When the source is not there or cannot be mounted.
    pub async fn export(&self, container: &str, source: &Path, read_only: bool) -> Result<String, SandboxError> {
        let _ = (container, source, read_only);
        Err(SandboxError::Ended { id: String::new() })
    }

    /// Takes back all exports of a container. Idempotent.
    ///
    /// # Errors
    /// When a mount cannot be taken away.
    pub async fn unexport(&self, container: &str) -> Result<(), SandboxError> {
        let _ = container;
        Ok(())
    }

    /// Gives the log writer of the pod the file for a container's output; again after a rotation or a restart of the daemon.
    ///
    /// # Errors
    /// When the writer is gone.
    pub async fn open_log(&self, container: &str, file: OwnedFd) -> Result<(), SandboxError> {
        let _ = (container, file);
        Ok(())
    }

    /// Tells the log writer to forget a container. Idempotent.
    ///
    /// # Errors
    /// When the writer is gone.
    pub async fn close_log(&self, container: &str) -> Result<(), SandboxError> {
        let _ = container;
        Ok(())
    }

    /// Waits until the pod's monitor or supervisor has ended, however it came to that. Any number may wait.
    pub async fn ended(&self) -> End {
        std::future::pending().await
    }

    /// Asks the agent to shut down, waits a little, kills. Gives back the network, memory, tap, namespace, cgroup and mounts; keeps nothing
    /// but what [`crate::Runtime::remove`] deletes. Idempotent.
    ///
    /// # Errors
    /// Says what could not be freed; calling it again goes on from there.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        Ok(())
    }
}

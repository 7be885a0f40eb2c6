//! What is kept of a pod.

use std::collections::HashMap;
use std::net::IpAddr;

use cofferdam_sandbox::{Kind, UserRange};
use serde::{Deserialize, Serialize};

use super::{Info, ResourcesRecord};

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodPhase {
    /// RunPodSandbox is at work: undone at start-up.
    Creating,
    /// Runs.
    Ready,
    /// Was stopped, or its process died.
    NotReady,
    /// RemovePodSandbox is at work: finished at start-up.
    Removing,
}

/// Namespace modes as CRI numbers them, echoed in the status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct NamespacesRecord {
    pub(crate) network: i32,
    pub(crate) pid: i32,
    pub(crate) ipc: i32,
    pub(crate) target_id: String,
    /// Users of the pod's own.
    pub(crate) users: Option<UserRange>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    pub(crate) attempt: u32,
    /// As it was asked for: may be empty.
    pub(crate) handler: String,
    pub(crate) kind: Kind,
    pub(crate) phase: PodPhase,
    /// Nanoseconds since the epoch, by the node's clock.
    pub(crate) created_at: i64,
    /// Byte-exact: the kubelet's database.
    pub(crate) labels: HashMap<String, String>,
    pub(crate) annotations: HashMap<String, String>,
    /// Empty: containers have no logs.
    pub(crate) log_directory: String,
    #[serde(default)]
    pub(crate) hostname: String,
    pub(crate) namespaces: NamespacesRecord,
    #[serde(default)]
    pub(crate) privileged: bool,
    /// The primary one first; empty on the node's network.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// Network, memory and processes were given back.
    #[serde(default)]
    pub(crate) freed: bool,
    /// Why it is not ready, when nobody asked for that.
    #[serde(default)]
    pub(crate) ended: String,
    /// Sums of its containers, as RunPodSandbox or UpdatePodSandboxResources said last.
    #[serde(default)]
    pub(crate) resources: Option<ResourcesRecord>,
    /// For people who inspect it.
    #[serde(default)]
    pub(crate) info: Info,
    /// What it costs beside them.
    #[serde(default)]
    pub(crate) overhead: Option<ResourcesRecord>,
}

impl PodRecord {
    /// It runs.
    pub(crate) fn launched(&mut self, addresses: Vec<IpAddr>) {
        self.phase = PodPhase::Ready;
        self.addresses = addresses;
    }

    /// It runs no longer, for `why` if nobody asked for that; false: that was known.
    pub(crate) fn not_ready(&mut self, why: &str) -> bool {
        let first = matches!(self.phase, PodPhase::Creating | PodPhase::Ready);
        if first {
            self.phase = PodPhase::NotReady;
            self.ended = why.to_owned();
        }
        first
    }

    /// The pod as people know it, for error texts.
    pub(crate) fn title(&self) -> String {
        format!("pod {}/{} (uid {}, attempt {})", self.namespace, self.name, self.uid, self.attempt)
    }
}

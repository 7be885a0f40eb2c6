//! A pod.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use cofferdam_proto::cri;
use cofferdam_sandbox::{LiftedQuota, Pod as Sandbox, SandboxError};
use tokio_util::sync::CancellationToken;

use super::events::{Told, pod_stage};
use super::listed::Listed;
use super::{Container, Node, lock};
use crate::error::{CriError, During};
use crate::ids::now_nanos;
use crate::records::{self, ContainerPhase, PODS, PodPhase, PodRecord, RecordError};
use crate::stats::Sampler;
use crate::translate::filters;

/// What became of a container whose pod went away under it.
const KILLED: i32 = 137;
/// And why.
const STOPPED: &str = "the pod was stopped";

/// A pod, running or not.
pub(crate) struct Pod {
    pub(crate) id: String,
    /// Held by whoever changes the pod or its containers.
    pub(crate) work: tokio::sync::Mutex<()>,
    /// Ends calls to the agent early; set when the pod is told to stop.
    pub(crate) stopping: CancellationToken,
    /// Why the daemon killed it, if it did: how its process ended tells nothing then.
    pub(crate) condemned: OnceLock<String>,
    record: Mutex<Listed<PodRecord>>,
    sandbox: Mutex<Option<Sandbox>>,
    removed: std::sync::atomic::AtomicBool,
    /// CPU time when it was last told.
    pub(crate) cpu: Sampler,
    /// What followers of events know.
    pub(super) told: Told,
}

impl Pod {
    /// A pod by its record, with what it runs in if it runs.
    pub(crate) fn new(record: PodRecord, sandbox: Option<Sandbox>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            work: tokio::sync::Mutex::default(),
            stopping: CancellationToken::new(),
            condemned: OnceLock::new(),
            told: Told::new(pod_stage(&record)),
            record: Mutex::new(Listed::new(record)),
            sandbox: Mutex::new(sandbox),
            removed: std::sync::atomic::AtomicBool::new(false),
            cpu: Sampler::default(),
        })
    }

    /// The record as it is now.
    pub(crate) fn record(&self) -> PodRecord {
        lock(&self.record).record().clone()
    }

    /// Looks at the record.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&PodRecord) -> T) -> T {
        look(lock(&self.record).record())
    }

    /// Changes the record; [`Pod::save`] keeps it.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut PodRecord) -> T) -> T {
        change(lock(&self.record).change())
    }

    /// The pod's item in a list, if it is to be seen and the filter (whose id is resolved) wants it.
    pub(crate) fn listed(&self, filter: &cri::PodSandboxFilter) -> Option<Bytes> {
        let kept = lock(&self.record);
        let encode = |r: &PodRecord| filters::pod_item(r).as_ref().map(cri::encoded);
        filters::wants_pod(filter, kept.record()).then(|| kept.item(encode)).flatten()
    }

    /// What it runs in.
    pub(crate) fn sandbox(&self) -> Result<Sandbox, CriError> {
        let ready = self.with(|r| r.phase == PodPhase::Ready);
        let sandbox = lock(&self.sandbox).clone();
        sandbox.filter(|_| ready).ok_or_else(|| CriError::State(format!("pod sandbox {} is not ready", self.id)))
    }

    /// What it runs in, whatever its phase.
    fn sandbox_or_rest(&self) -> Option<Sandbox> {
        lock(&self.sandbox).clone()
    }

    /// Lifts the pod's CPU quota while the answer is held, unless a program of one of its containers runs. Best effort: with the quota, a
    /// start is slow.
    pub(crate) async fn without_quota(&self, node: &Node, sandbox: &Sandbox) -> Option<LiftedQuota> {
        let busy = |c: &Arc<Container>| c.with(|r| r.phase == ContainerPhase::Running);
        if node.containers_of(&self.id).iter().any(busy) {
            return None;
        }
        sandbox.lift_quota().await.unwrap_or_else(|error| {
            tracing::warn!(pod = %self.id, error = crate::error::chain(&error), "CPU quota not lifted");
            None
        })
    }

    pub(crate) fn attach(&self, sandbox: Sandbox) {
        *lock(&self.sandbox) = Some(sandbox);
    }

    /// Writes the record as it is when its turn comes, then tells who follows events.
    pub(crate) async fn save(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        self.write(node).await?;
        if !self.removed.load(std::sync::atomic::Ordering::Acquire) {
            node.events.pod(node, self, false);
        }
        Ok(())
    }

    /// As [`Pod::save`], of what has happened whether it can be written now or later.
    pub(crate) async fn save_or_later(self: &Arc<Self>, node: &Node) {
        node.records.write_or_later(PODS, &self.id, self.latest()).await;
        if !self.removed.load(std::sync::atomic::Ordering::Acquire) {
            node.events.pod(node, self, false);
        }
    }

    async fn write(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        node.records
            .write(PODS, &self.id, self.latest())
            .await
            .map_err(|e| CriError::internal(format!("keep the record of pod {}", self.id), e))
    }

    /// Answers the record as it is then.
    fn latest(self: &Arc<Self>) -> impl Fn() -> Result<Option<Vec<u8>>, RecordError> + Send + Sync + 'static {
        let pod = self.clone();
        move || {
            let gone = pod.removed.load(std::sync::atomic::Ordering::Acquire);
            (!gone).then(|| pod.with(records::encode)).transpose()
        }
    }

    /// Deletes the record for good.
    pub(crate) async fn forget(self: &Arc<Self>, node: &Node) {
        self.removed.store(true, std::sync::atomic::Ordering::Release);
        node.records.write_or_later(PODS, &self.id, self.latest()).await;
        node.names.release(&self.id);
        node.drop_pod(&self.id);
        node.events.pod(node, self, true);
    }

    /// The pod's process ended without having been asked to.
    pub(crate) async fn died(self: &Arc<Self>, node: &Node, detail: &str, at: i64) {
        self.died_of(node, "Error", detail, at).await;
    }

    /// [`Pod::died`], with the reason that its containers get.
    pub(crate) async fn died_of(self: &Arc<Self>, node: &Node, reason: &str, detail: &str, at: i64) {
        if self.change(|r| r.not_ready(detail)) {
            tracing::warn!(pod = %self.id, detail, "pod died");
        }
        self.end_containers(node, reason, detail, at).await;
        self.save_or_later(node).await;
    }

    async fn end_containers(&self, node: &Node, reason: &str, detail: &str, at: i64) {
        for container in node.containers_of(&self.id) {
            let changed = container.change(|r| {
                if r.is_live() {
                    r.end(KILLED, reason, detail, at);
                    return true;
                }
                false
            });
            if changed {
                container.save_or_later(node).await;
            }
        }
    }

    /// Stops the pod and gives back what it has but its records, logs and writable layers. Idempotent.
    pub(crate) async fn stop(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        self.stopping.cancel();
        let _working = self.work.lock().await;
        self.stop_locked(node).await
    }

    async fn stop_locked(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        if self.with(|r| r.freed) {
            return Ok(());
        }
        self.change(|r| r.not_ready(""));
        // Nobody is told yet: the ends of its containers come first. What ends a pod does not wait for a disk that is full.
        node.records.write_or_later(PODS, &self.id, self.latest()).await;
        match self.sandbox_or_rest() {
            Some(sandbox) => self.stop_sandbox(node, &sandbox).await.during(|| format!("stop pod {}", self.id))?,
            // Nothing of it was found at start-up, or it was dead: its network may still be there.
            None => node.runtime.remove(&self.id).await.during(|| format!("stop pod {}", self.id))?,
        }
        self.end_containers(node, "Error", STOPPED, now_nanos()).await;
        *lock(&self.sandbox) = None;
        self.change(|r| r.freed = true);
        self.save_or_later(node).await;
        Ok(())
    }

    /// Its containers have ended when their processes have: they do not wait for plugins that give the network back, nor fail with them.
    async fn stop_sandbox(&self, node: &Node, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let told = async {
            sandbox.gone().await;
            self.end_containers(node, "Error", STOPPED, now_nanos()).await;
            std::future::pending().await
        };
        let stopped = tokio::select! {
            stopped = sandbox.stop() => stopped,
            never = told => never,
        };
        if sandbox.is_gone() {
            self.end_containers(node, "Error", STOPPED, now_nanos()).await;
        }
        stopped
    }

    /// Stops the pod and deletes all of it but its logs. Idempotent.
    pub(crate) async fn remove(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        self.stopping.cancel();
        let _working = self.work.lock().await;
        if self.removed.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(());
        }
        self.stop_locked(node).await?;
        self.change(|r| r.phase = PodPhase::Removing);
        self.save_or_later(node).await;
        for container in node.containers_of(&self.id) {
            container.remove_locked(node).await?;
        }
        node.runtime.remove(&self.id).await.during(|| format!("remove pod {}", self.id))?;
        self.forget(node).await;
        Ok(())
    }
}

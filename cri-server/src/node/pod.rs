//! A pod.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use cofferdam_proto::cri;
use cofferdam_sandbox::Pod as Sandbox;
use tokio_util::sync::CancellationToken;

use super::events::{Told, pod_stage};
use super::listed::Listed;
use super::{Node, lock};
use crate::error::{CriError, During};
use crate::ids::now_nanos;
use crate::records::{self, PODS, PodPhase, PodRecord};
use crate::stats::Sampler;
use crate::translate::filters;

/// What became of a container whose pod went away under it.
const KILLED: i32 = 137;

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

    async fn write(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        let pod = self.clone();
        let latest = move || {
            let gone = pod.removed.load(std::sync::atomic::Ordering::Acquire);
            (!gone).then(|| pod.with(records::encode))
        };
        node.records
            .write(PODS, &self.id, latest)
            .await
            .map_err(|e| CriError::internal(format!("keep the record of pod {}", self.id), e))
    }

    /// Deletes the record for good.
    pub(crate) async fn forget(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        self.removed.store(true, std::sync::atomic::Ordering::Release);
        self.save(node).await?;
        node.names.release(&self.id);
        node.drop_pod(&self.id);
        node.events.pod(node, self, true);
        Ok(())
    }

    /// The pod's process ended without having been asked to.
    pub(crate) async fn died(self: &Arc<Self>, node: &Node, detail: &str, at: i64) {
        if self.change(|r| r.not_ready(detail)) {
            tracing::warn!(pod = %self.id, detail, "pod died");
        }
        self.end_containers(node, detail, at).await;
        if let Err(error) = self.save(node).await {
            tracing::error!(pod = %self.id, error = crate::error::message(&error), "record not kept");
        }
    }

    async fn end_containers(&self, node: &Node, detail: &str, at: i64) {
        for container in node.containers_of(&self.id) {
            let changed = container.change(|r| {
                if r.is_live() {
                    r.end(KILLED, "Error", detail, at);
                    return true;
                }
                false
            });
            if changed {
                container.save_or_log(node).await;
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
        // Nobody is told yet: the ends of its containers come first.
        self.write(node).await?;
        match self.sandbox_or_rest() {
            Some(sandbox) => sandbox.stop().await.during(|| format!("stop pod {}", self.id))?,
            // Nothing of it was found at start-up, or it was dead: its network may still be there.
            None => node.runtime.remove(&self.id).await.during(|| format!("stop pod {}", self.id))?,
        }
        self.end_containers(node, "the pod was stopped", now_nanos()).await;
        *lock(&self.sandbox) = None;
        self.change(|r| r.freed = true);
        self.save(node).await
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
        self.save(node).await?;
        for container in node.containers_of(&self.id) {
            container.remove_locked(node).await?;
        }
        node.runtime.remove(&self.id).await.during(|| format!("remove pod {}", self.id))?;
        self.forget(node).await
    }
}

//! A container.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cofferdam_proto::agent::RemoveContainerRequest;
use cofferdam_proto::cri;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::agent::WORK;
use super::events::{Told, container_stage};
use super::listed::Listed;
use super::{Node, Pod};
use crate::error::{CriError, During};
use crate::records::{self, CONTAINERS, ContainerPhase, ContainerRecord, RecordError};
use crate::stats::Sampler;
use crate::translate::filters;

/// Who holds a lease for an image volume of a container; the lease for its own image is held under its id. `image` is an id.
pub(crate) fn volume_holder(container: &str, image: &str) -> String {
    format!("{container}+{image}")
}

/// The container for which a lease is held.
pub(crate) fn container_of(holder: &str) -> &str {
    holder.split('+').next().unwrap_or(holder)
}

/// A container, running or not.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) pod: Arc<Pod>,
    /// The stop signal was sent: it is sent once, however often StopContainer is called.
    pub(crate) signalled: AtomicBool,
    record: watch::Sender<Listed<ContainerRecord>>,
    removed: AtomicBool,
    /// CPU time when it was last told.
    pub(crate) cpu: Sampler,
    /// What followers of events know.
    pub(super) told: Told,
    /// Follow volumes of the container; see [`super::swaps`].
    pub(super) followers: Mutex<JoinSet<()>>,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord, pod: Arc<Pod>) -> Arc<Self> {
        Arc::new(Self {
            id: record.id.clone(),
            pod,
            signalled: AtomicBool::new(false),
            told: Told::new(container_stage(&record)),
            record: watch::Sender::new(Listed::new(record)),
            removed: AtomicBool::new(false),
            cpu: Sampler::default(),
            followers: Mutex::default(),
        })
    }

    /// The record as it is now.
    pub(crate) fn record(&self) -> ContainerRecord {
        self.record.borrow().record().clone()
    }

    /// Looks at the record.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&ContainerRecord) -> T) -> T {
        look(self.record.borrow().record())
    }

    /// Changes the record when `change` answers true, and wakes who waits; [`Container::save`] keeps it.
    pub(crate) fn change(&self, change: impl FnOnce(&mut ContainerRecord) -> bool) -> bool {
        self.record.send_if_modified(|kept| change(kept.change()))
    }

    /// The container's item in a list, if it is to be seen and the filter (whose ids are resolved) wants it.
    pub(crate) fn listed(&self, filter: &cri::ContainerFilter) -> Option<Bytes> {
        let kept = self.record.borrow();
        let encode = |r: &ContainerRecord| filters::container_item(r).as_ref().map(cri::encoded);
        filters::wants_container(filter, kept.record()).then(|| kept.item(encode)).flatten()
    }

    /// Waits until the container has ended.
    pub(crate) async fn exited(&self) {
        let mut changes = self.record.subscribe();
        let ended = |kept: &Listed<ContainerRecord>| {
            matches!(kept.record().phase, ContainerPhase::Exited | ContainerPhase::Removing)
        };
        // The sender lives in self.
        let _ = changes.wait_for(ended).await;
    }

    /// Writes the record as it is when its turn comes, then tells who follows events.
    pub(crate) async fn save(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        node.records
            .write(CONTAINERS, &self.id, self.latest())
            .await
            .map_err(|e| CriError::internal(format!("keep the record of container {}", self.id), e))?;
        if !self.removed.load(Ordering::Acquire) {
            node.events.container(node, self, false);
        }
        Ok(())
    }

    /// As [`Container::save`], of what has happened whether it can be written now or later.
    pub(crate) async fn save_or_later(self: &Arc<Self>, node: &Node) {
        node.records.write_or_later(CONTAINERS, &self.id, self.latest()).await;
        if !self.removed.load(Ordering::Acquire) {
            node.events.container(node, self, false);
        }
    }

    /// Answers the record as it is then.
    fn latest(self: &Arc<Self>) -> impl Fn() -> Result<Option<Vec<u8>>, RecordError> + Send + Sync + 'static {
        let container = self.clone();
        move || {
            let gone = container.removed.load(Ordering::Acquire);
            (!gone).then(|| container.with(records::encode)).transpose()
        }
    }

    /// Kills and deletes the container; the caller holds the pod's `work`. Idempotent.
    pub(crate) async fn remove_locked(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        if self.removed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.change(|r| {
            r.begin_removal(crate::ids::now_nanos());
            true
        });
        self.save_or_later(node).await;
        self.undo(node).await?;
        self.forget(node).await;
        Ok(())
    }

    /// Takes back what the container has in its pod and in the store. Idempotent.
    pub(crate) async fn undo(self: &Arc<Self>, node: &Node) -> Result<(), CriError> {
        self.follow_no_volumes();
        if let Ok(sandbox) = self.pod.sandbox() {
            let request = RemoveContainerRequest { id: self.id.clone() };
            let asked = self
                .pod
                .ask(&format!("remove container {}", self.id), WORK, |mut agent| async move {
                    agent.remove_container(request).await
                })
                .await;
            // A pod that ended meanwhile has nothing left of it.
            if let (Err(error), Ok(_)) = (asked, self.pod.sandbox())
                && !self.pod.stopping.is_cancelled()
            {
                return Err(error);
            }
            self.unplug(node, &sandbox).await?;
            if let Err(error) = sandbox.close_log(&self.id).await {
                tracing::debug!(container = %self.id, %error, "log not closed");
            }
            sandbox.unexport(&self.id).await.during(|| format!("take back what container {} sees", self.id))?;
        }
        let (store, id) = (node.store.clone(), self.id.clone());
        let release = move || {
            let mut holders = store.leases();
            holders.retain(|holder| container_of(holder) == id);
            holders.iter().for_each(|holder| store.release(holder));
        };
        tokio::task::spawn_blocking(release).await.map_err(|e| CriError::internal("release image layers", e))
    }

    /// Deletes the record for good.
    pub(crate) async fn forget(self: &Arc<Self>, node: &Node) {
        self.removed.store(true, Ordering::Release);
        node.records.write_or_later(CONTAINERS, &self.id, self.latest()).await;
        node.names.release(&self.id);
        node.drop_container(&self.id);
        node.events.container(node, self, true);
    }
}

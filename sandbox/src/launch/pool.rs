//! MicroVMs that were restored ahead of the pods that will get them.
//!
//! A waiting microVM has a directory, a cgroup and a network namespace under an id of its own, like
//! a pod that is being launched. Its guest has answered once and is paused. When a pod gets it, the
//! pod's launch moves what belongs to the microVM to the pod and frees the other things. After a
//! crash the next daemon finds waiting microVMs as pods that were never launched, and removes them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::cgroup::PodCgroup;
use crate::dirs::{Dirs, ProcessRecord};
use crate::netns::NetNs;
use crate::pod::Watched;
use crate::template::Template;
use crate::versions::Known;

/// A microVM that waits.
pub(crate) struct Waiting {
    /// Its own id, under which it has its files and its cgroup.
    pub(crate) id: String,
    pub(crate) dirs: Dirs,
    pub(crate) cgroup: PodCgroup,
    /// What it was restored from.
    pub(crate) template: Arc<Template>,
    pub(crate) netns: NetNs,
    pub(crate) process: ProcessRecord,
    pub(crate) watched: Watched,
    pub(crate) known: Known,
}

/// The node's waiting microVMs.
#[derive(Default)]
pub(crate) struct Pool {
    /// How many are to wait.
    size: usize,
    /// The one that waits the longest comes first.
    waiting: Mutex<Vec<Waiting>>,
    taken: AtomicU64,
    closed: AtomicBool,
    changed: Notify,
}

impl Pool {
    pub(crate) fn new(size: usize) -> Self {
        Self { size, ..Self::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A microVM that was restored from `template` and still runs.
    pub(crate) fn take(&self, template: &Arc<Template>) -> Option<Waiting> {
        let mut waiting = self.waiting();
        let fits = |vm: &Waiting| Arc::ptr_eq(&vm.template, template) && vm.watched.is_running();
        let at = waiting.iter().position(fits)?;
        Some(waiting.remove(at))
    }

    /// A pod runs in a microVM that had waited.
    pub(crate) fn was_taken(&self) {
        self.taken.fetch_add(1, Relaxed);
    }

    /// How many pods have got one.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Relaxed)
    }

    /// Adds one, unless the pool is closed: then it is given back.
    pub(crate) fn add(&self, vm: Waiting) -> Option<Waiting> {
        let mut waiting = self.waiting();
        if self.is_closed() {
            return Some(vm);
        }
        waiting.push(vm);
        None
    }

    /// Takes out those that have ended, and those of other templates than `template`.
    pub(crate) fn useless(&self, template: Option<&Arc<Template>>) -> Vec<Waiting> {
        let is_of_use = |vm: &Waiting| {
            template.is_some_and(|template| Arc::ptr_eq(&vm.template, template)) && vm.watched.is_running()
        };
        self.waiting().extract_if(.., |vm| !is_of_use(vm)).collect()
    }

    /// Whether one more is to be made.
    pub(crate) fn wants_more(&self) -> bool {
        !self.is_closed() && self.waiting().len() < self.size
    }

    /// Takes out all of them, and lets no more in.
    pub(crate) fn close(&self) -> Vec<Waiting> {
        let mut waiting = self.waiting();
        self.closed.store(true, Relaxed);
        std::mem::take(&mut waiting)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Something may have to be made or removed.
    pub(crate) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Waits for [`Self::look_again`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// How many wait, and the memory of the node that their cgroups are charged with, bytes. Blocks
    /// for a moment.
    pub(crate) fn usage(&self) -> (usize, u64) {
        let waiting = self.waiting();
        (waiting.len(), waiting.iter().map(|vm| vm.cgroup.memory_used()).sum())
    }
}

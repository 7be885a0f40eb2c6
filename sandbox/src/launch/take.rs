//! Gives a pod a microVM that has waited for it.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use super::pool::Waiting;
use super::{Launch, unowned};
use crate::connect;
use crate::dirs::{Dirs, ProcessRecord};
use crate::error::{Doing, SandboxError, blocking};
use crate::netns::NetNs;
use crate::pod::Watched;
use crate::process::{self, Started};
use crate::runtime::Shared;
use crate::spec::Kind;
use crate::versions::Known;

/// A microVM that is a pod's now. Its files are moved to the pod's in the course of the launch.
pub(super) struct Taken {
    dirs: Dirs,
    process: ProcessRecord,
    known: Known,
}

/// What is to be freed after a pod has taken a microVM: all that it had under its own id.
pub(super) struct Remains {
    id: String,
    dirs: Dirs,
}

impl Taken {
    /// Of a microVM that waited, and its network namespace. Nothing watches its process any more.
    pub(super) async fn new(vm: Waiting) -> (Self, NetNs) {
        vm.watched.stop().await;
        (Self { dirs: vm.dirs, process: vm.process, known: vm.known }, vm.netns)
    }
}

impl Remains {
    pub(super) fn of(vm: &Waiting) -> Self {
        Self { id: vm.id.clone(), dirs: vm.dirs.clone() }
    }

    /// Frees them in the background. If the microVM's process was not moved, it ends.
    pub(super) fn remove(self, shared: &Arc<Shared>) {
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            let _lock = shared.lock(&self.id).await;
            unowned::remove(&shared, &self.dirs, &self.id).await;
        });
    }
}

/// Moves a microVM to the pod and lets it go on.
pub(super) async fn take(launch: &Arc<Launch>, taken: &Taken) -> Result<(Watched, Known), SandboxError> {
    let (moving, from, process) = (Arc::clone(launch), taken.dirs.clone(), taken.process);
    let started = blocking(move || move_to_pod(&moving, &from, process)).await?;
    launch.clock.mark("taken");
    let watched = Watched::new(started, &launch.dirs, Kind::Vm, &launch.cgroup, &launch.shared.watches);
    Ok((watched, taken.known.clone()))
}

/// The process comes first: whatever happens then, it is in the cgroup of one of two ids, and the
/// next daemon cleans up both.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn move_to_pod(launch: &Launch, from: &Dirs, record: ProcessRecord) -> Result<Started, SandboxError> {
    let step = || "move a microVM to its pod".to_owned();
    let place = launch.cgroup.create("monitor", false)?;
    // Opened first: afterwards the id can only be this process's.
    let pidfd = process::find(record).ok_or("it has ended").doing(step)?;
    (&place.procs).write_all(record.pid.to_string().as_bytes()).doing(step)?;
    for (old, new) in from.of_microvm().iter().zip(launch.dirs.of_microvm()) {
        fs::rename(old, &new).doing(|| format!("move {} to {}", old.display(), new.display()))?;
    }
    process::rate(record, launch.spec.oom_score_adj)?;
    connect::resume(&launch.dirs)?;
    Ok(Started { record, pidfd })
}

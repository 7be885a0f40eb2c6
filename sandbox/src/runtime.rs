//! The node's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};
use tracing::Instrument;

use crate::cgroup::PodCgroup;
use crate::clock::{self, Steps};
use crate::cni::{NetworkList, Networks};
use crate::dirs::{self, Dirs, ProcessRecord, ReadyRecord};
use crate::error::{Doing, SandboxError, blocking};
use crate::pod::{End, Pod, Watched};
use crate::process::{self, Started};
use crate::sealed::Sealed;
use crate::spec::{Config, Kind, PodSpec};
use crate::template::{Origin, TemplateUsage, Templates};
use crate::versions::Known;
use crate::watches::Watches;
use crate::{connect, launch, probe, quota, teardown, users};

/// Launches pods and finds them again. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
}

/// What all pods have in common.
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// One lock for each pod that is being worked on.
    locks: Mutex<BTreeMap<String, Weak<AsyncMutex<()>>>>,
    /// Which networks have had a pod.
    pub(crate) networks: Networks,
    /// The agent that host pods run.
    pub(crate) sealed: Sealed,
    vm_works: AtomicBool,
    host_works: AtomicBool,
    /// Why pods cannot have users of their own.
    pub(crate) no_users: Option<String>,
    pub(crate) watches: Watches,
    pub(crate) clock_steps: Steps,
    pub(crate) templates: Templates,
    pub(crate) pool: launch::Pool,
}

impl Shared {
    /// A microVM came up.
    pub(crate) fn came_up(&self, origin: Origin) {
        match origin {
            Origin::Pool => self.pool.was_taken(),
            Origin::Template => self.templates.came_up(true),
            Origin::Boot => self.templates.came_up(false),
        }
    }

    /// Launch, export, stop and remove of one pod exclude each other.
    pub(crate) async fn lock(&self, id: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(id.to_owned(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
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
        for root in [&config.run_dir, &config.state_dir] {
            dirs::make_private(&dirs::pods(root))?;
        }
        let longest = Dirs::of(&config, &"0".repeat(64))?.control();
        connect::check_length(longest)?;
        let (locks, vm_works, host_works) = (Mutex::default(), AtomicBool::new(false), AtomicBool::new(false));
        let no_users = users::try_out(&config.state_dir).err();
        let (networks, sealed, watches) = (Networks::default(), Sealed::default(), Watches::default());
        let (clock_steps, templates) = (Steps::default(), Templates::open(&config.vm));
        let pool = launch::Pool::new(config.vm.template.as_ref().map_or(0, |template| template.pool));
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                locks,
                networks,
                sealed,
                vm_works,
                host_works,
                no_users,
                watches,
                clock_steps,
                templates,
                pool,
            }),
        })
    }

    /// Whether this node can run pods of `kind`; tried once, then remembered while the answer is yes. Blocks.
    ///
    /// # Errors
    /// [`SandboxError::Unusable`], with what to do.
    pub fn probe(&self, kind: Kind) -> Result<(), SandboxError> {
        let works = if kind == Kind::Vm { &self.shared.vm_works } else { &self.shared.host_works };
        if !works.load(Ordering::Relaxed) {
            probe::probe(&self.shared.config, kind)?;
            works.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes templates for microVMs in the background from now on, the usual pod's at once. For a node that can run microVMs ([`Runtime::probe`]).
    pub fn make_templates(&self) {
        tokio::spawn(launch::make_templates(Arc::clone(&self.shared)));
        if self.shared.config.vm.template.as_ref().is_some_and(|template| template.pool > 0) {
            tokio::spawn(launch::fill(Arc::clone(&self.shared)));
        }
    }

    /// What templates there are, and what they were used for. Blocks for a moment.
    pub fn templates(&self) -> TemplateUsage {
        let (waiting, waiting_bytes) = self.shared.pool.usage();
        TemplateUsage { waiting, waiting_bytes, taken: self.shared.pool.taken(), ..self.shared.templates.usage() }
    }

    /// Ends the microVMs that wait for pods; no more are made. Pods go on.
    pub async fn close_pool(&self) {
        launch::remove(&self.shared, self.shared.pool.close()).await;
    }

    /// Watches files of the node.
    pub fn watches(&self) -> &Watches {
        &self.shared.watches
    }

    /// Why pods cannot have users of their own on this node, if so; tried once, when the daemon started.
    pub fn user_namespaces(&self) -> Option<&str> {
        self.shared.no_users.as_deref()
    }

    /// Whether CNI is configured, from the directory as it is now. Never runs a plugin. Blocks.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn network_ready(&self) -> Result<(), SandboxError> {
        NetworkList::load(&self.shared.config.cni).map(drop).doing(|| "use the pod network".into())
    }

    /// Launches a pod: network, share and boot side by side. All or nothing: a failure undoes what was done, and so does
    /// [`Runtime::remove`] after a kill. The pod's timeline says how long each step took. When the caller gives up, the launch is
    /// undone as soon as it can be.
    ///
    /// # Errors
    /// Says which step failed and why.
    pub async fn launch(&self, spec: &PodSpec) -> Result<Pod, SandboxError> {
        let (shared, spec) = (Arc::clone(&self.shared), spec.clone());
        let (sender, receiver) = oneshot::channel();
        // A task of its own, which goes on when the caller hangs up: nothing is ever left half done.
        let work = async move {
            let _lock = shared.lock(&spec.id).await;
            let outcome = launch::launch(&shared, &spec).await;
            if let Err(Ok(pod)) = sender.send(outcome) {
                tracing::info!(pod = pod.id(), "nobody waits for the pod any more, removing it");
                if let Ok(dirs) = Dirs::of(&shared.config, &spec.id)
                    && let Err(error) = teardown::remove(&shared, &dirs, &spec.id).await
                {
                    tracing::error!(pod = %spec.id, %error, "cannot undo a launch");
                }
            }
        };
        tokio::spawn(work.in_current_span());
        receiver.await.unwrap_or_else(|error| Err(SandboxError::step("launch the pod", error)))
    }

    /// Finds a pod again after a restart of the daemon, by what is in its directory. Its programs may be of another version:
    /// [`Pod::programs`].
    ///
    /// # Errors
    /// When there is nothing of the pod, or its launch was not finished: [`Runtime::remove`] it.
    pub async fn adopt(&self, id: &str) -> Result<Adopted, SandboxError> {
        let shared = &self.shared;
        let dirs = Dirs::of(&shared.config, id)?;
        let _lock = shared.lock(id).await;
        let (config, looked_in, named) = (shared.config.clone(), dirs.clone(), id.to_owned());
        let Found { spec, ready, cgroup, process } = blocking(move || find(&config, &looked_in, &named)).await?;
        let started = match process {
            Ok(started) => started,
            Err(end) => return Ok(Adopted::Ended(end)),
        };
        let watched = Watched::new(started, &dirs, spec.kind, &cgroup, &shared.watches);
        let cgroup = cgroup.name().to_owned();
        let channel = connect::agent(&dirs, spec.kind);
        let pod = Pod::new(Arc::clone(shared), spec, dirs, cgroup, Known::default(), channel, &watched);
        pod.launched(ready.network, Timeline::new());
        pod.get_acquainted();
        clock::follow(shared, &pod, true);
        Ok(Adopted::Running(pod))
    }

    /// Kills what runs of a pod, gives its network back, and deletes all that it has on the node: processes, mounts, network namespace,
    /// tap, cgroup, files. Idempotent; works on whatever an interrupted launch left.
    ///
    /// # Errors
    /// Says what could not be freed; calling it again goes on from there.
    pub async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let shared = Arc::clone(&self.shared);
        let dirs = Dirs::of(&shared.config, id)?;
        let id = id.to_owned();
        let removing = tokio::spawn(async move {
            let _lock = shared.lock(&id).await;
            teardown::remove(&shared, &dirs, &id).await
        });
        removing.await.unwrap_or_else(|error| Err(SandboxError::step("remove the pod", error)))
    }

    /// Ids of all pods of which anything is there, run or not. Blocks.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub fn known(&self) -> Vec<String> {
        let config = &self.shared.config;
        let mut ids = BTreeSet::new();
        for root in [&config.run_dir, &config.state_dir] {
            for entry in fs::read_dir(dirs::pods(root)).into_iter().flatten().flatten() {
                ids.extend(entry.file_name().into_string().ok().filter(|id| Dirs::of(config, id).is_ok()));
            }
        }
        ids.into_iter().collect()
    }
}

/// What an earlier daemon left of a pod.
struct Found {
    spec: PodSpec,
    ready: ReadyRecord,
    cgroup: PodCgroup,
    /// Its process, or how that ended.
    process: Result<Started, End>,
}

/// Looks what is there of pod `id`, and puts its CPU quota back. Blocks.
fn find(config: &Config, dirs: &Dirs, id: &str) -> Result<Found, SandboxError> {
    let spec = dirs::read::<PodSpec>(&dirs.spec())?;
    let process = dirs::read::<ProcessRecord>(&dirs.process())?;
    let ready = dirs::read::<ReadyRecord>(&dirs.ready())?;
    let (Some(spec), Some(record), Some(ready)) = (spec, process, ready) else {
        let why = "its launch was not finished, or the node was rebooted";
        return Err(SandboxError::step(format!("find pod {id}"), why));
    };
    quota::put_back(dirs);
    let cgroup = PodCgroup::new(config, &spec.cgroup_parent, id)?;
    let process = match process::find(record) {
        Some(pidfd) => Ok(Started { record, pidfd }),
        None => Err(End::read(dirs, spec.kind, &cgroup)),
    };
    Ok(Found { spec, ready, cgroup, process })
}

/// Step name to microseconds since the launch began: `cni_start`, `cni_end`, `monitor_spawned`, `kernel_loaded`, ...
pub type Timeline = BTreeMap<String, u64>;

//! What the agent knows: its place, the pod, the containers.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use cofferdam_proto::agent::ContainerState;
use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::supervisor::UserRange;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{broadcast, watch};

use crate::before_pod::BeforePod;
use crate::container::Container;
use crate::container::swapped::Volumes;
use crate::error::{Doing, Error, Kind, Result};
use crate::lock;
use crate::logs::Logs;
use crate::reaper::Reaper;
use crate::sys;
use crate::users::Users;

/// Most open files of a process.
const MAX_OPEN: u64 = 524_288;

/// Where the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a microVM.
    Vm,
    /// Supervisor of a host pod.
    Host,
}

/// Folders of the agent's own.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// Writable layers.
    pub state: PathBuf,
    /// Everything else.
    pub run: PathBuf,
}

impl Dirs {
    /// The pod's /dev/shm.
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// Where a container that is being set up has its layers with mapped owners; an empty directory to all others.
    pub fn mapped_layers(&self) -> PathBuf {
        self.run.join("layers")
    }

    /// Volumes in memory.
    pub fn memory(&self) -> PathBuf {
        self.run.join("memory")
    }

    /// A file that each container sees in its /etc.
    pub fn pod_file(&self, name: &str) -> PathBuf {
        self.run.join("etc").join(name)
    }
}

/// Which namespaces of its surroundings the agent stayed in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shared {
    /// The network.
    pub net: bool,
    /// Process ids.
    pub pid: bool,
    /// System V and POSIX ipc.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
}

/// One change, for those who follow [`Agent::events`].
#[derive(Debug, Clone)]
pub struct Change {
    /// As it is now, but for the time since the exit.
    pub state: ContainerState,
    /// When it ended.
    pub exited_at: Option<Instant>,
}

impl Change {
    /// The message, dated now.
    pub fn message(&self) -> ContainerState {
        let ago = self.exited_at.map_or(0, |at| u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX));
        ContainerState { exited_ago_nanos: ago, ..self.state.clone() }
    }
}

/// A container, or the place where one is being made.
#[derive(Debug, Clone)]
enum Slot {
    Busy,
    There(Arc<Container>),
}

/// The agent.
#[derive(Debug)]
pub struct Agent {
    /// Where it runs.
    pub mode: Mode,
    /// Its folders.
    pub dirs: Dirs,
    /// cgroup v2.
    pub cgroup_root: PathBuf,
    /// The mount namespace that sources of bind mounts are looked up in.
    pub node_mounts: OwnedFd,
    /// Its own pid namespace, to come back to after a fork into another one.
    own_pids: OwnedFd,
    /// In the node's pid namespace.
    pub node_pid: bool,
    /// In the node's ipc namespace.
    pub node_ipc: bool,
    /// What it shares with its surroundings.
    pub shared: Shared,
    /// Users of the pod's own; in a microVM, they come with ConfigurePod.
    users: OnceLock<Users>,
    /// Limit on open files for containers; the agent's own is higher.
    pub nofile: Rlimit,
    /// Ended children.
    pub reaper: Reaper,
    /// Output of containers.
    pub logs: Logs,
    /// What a microVM does before it has a pod.
    pub before_pod: BeforePod,
    /// What ConfigurePod said.
    pub pod: tokio::sync::Mutex<Option<cofferdam_proto::agent::ConfigurePodRequest>>,
    /// Volumes that the node swaps.
    pub volumes: Volumes,
    /// Held while the guest's vCPUs change.
    pub resizing: tokio::sync::Mutex<()>,
    /// Held while disks come or go.
    pub disks: tokio::sync::Mutex<()>,
    /// The one process of the pid namespace that containers share.
    pause: Mutex<Option<sys::Child>>,
    containers: Mutex<HashMap<String, Slot>>,
    changes: broadcast::Sender<Change>,
    /// Shutdown was asked for and done.
    stopping: watch::Sender<bool>,
    projects: std::sync::atomic::AtomicU32,
}

impl Agent {
    /// An agent without containers. Must run on the runtime's thread.
    ///
    /// # Errors
    /// When the system lacks what it needs.
    pub fn new(
        mode: Mode,
        dirs: Dirs,
        node_mounts: OwnedFd,
        shared: Shared,
        users: Option<Users>,
        logs: Logs,
    ) -> Result<Arc<Self>> {
        let own_pids = open_namespace("pid")?;
        let before = getrlimit(Resource::Nofile);
        // A guest's kernel starts with a low limit; on a node, whoever started the supervisor has decided.
        let most = match (mode, before.maximum) {
            (Mode::Host, Some(most)) if most < MAX_OPEN => most,
            _ => MAX_OPEN,
        };
        let nofile = Rlimit { current: Some(most.min(1024)), maximum: Some(most) };
        let own = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(Resource::Nofile, own).doing("raise the limit on open files")?;
        Ok(Arc::new(Self {
            mode,
            dirs,
            cgroup_root: crate::container::cgroup::find_root(),
            node_mounts,
            own_pids,
            node_pid: shared.pid,
            node_ipc: shared.ipc,
            shared,
            users: users.map(OnceLock::from).unwrap_or_default(),
            nofile,
            reaper: Reaper::start()?,
            logs,
            before_pod: BeforePod::default(),
            pod: tokio::sync::Mutex::new(None),
            volumes: Volumes::default(),
            resizing: tokio::sync::Mutex::default(),
            disks: tokio::sync::Mutex::default(),
            pause: Mutex::new(None),
            containers: Mutex::new(HashMap::new()),
            changes: broadcast::channel(256).0,
            stopping: watch::Sender::new(false),
            projects: std::sync::atomic::AtomicU32::new(1),
        }))
    }

    /// Users of the pod's own.
    pub fn users(&self) -> Option<&Users> {
        self.users.get()
    }

    /// Users whose numbers this agent has to show files with: a microVM's come from the node with them.
    pub fn mapping(&self) -> Option<&Users> {
        self.users().filter(|_| self.mode == Mode::Host)
    }

    /// Makes the pod's users, once, unless they are there.
    ///
    /// # Errors
    /// When the pod has others, or the kernel refuses.
    pub async fn make_users(&self, range: UserRange) -> Result<()> {
        match self.users() {
            Some(users) if users.range() == range => Ok(()),
            Some(_) => Err(Error::invalid("the pod has other users already")),
            None => {
                let users = Users::make(range).await?;
                self.users.set(users).map_err(|_| Error::invalid("the pod has other users already"))
            }
        }
    }

    /// A quota project that was not used before.
    pub fn next_project(&self) -> u32 {
        self.projects.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    /// Takes an id for a container that is about to be made.
    ///
    /// # Errors
    /// When it is taken.
    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation> {
        let mut containers = lock(&self.containers);
        if containers.contains_key(id) {
            return Err(Error::new(Kind::Exists, format!("container {id} exists already")));
        }
        containers.insert(id.to_owned(), Slot::Busy);
        Ok(Reservation { agent: self.clone(), id: id.to_owned(), kept: false })
    }

    /// A container.
    ///
    /// # Errors
    /// When there is none.
    pub fn container(&self, id: &str) -> Result<Arc<Container>> {
        match lock(&self.containers).get(id) {
            Some(Slot::There(container)) => Ok(container.clone()),
            Some(Slot::Busy) => Err(Error::precondition(format!("container {id} is being created"))),
            None => Err(Error::no_container(id)),
        }
    }

    /// All containers.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let slots = lock(&self.containers);
        let there = |slot: &Slot| match slot {
            Slot::There(container) => Some(container.clone()),
            Slot::Busy => None,
        };
        slots.values().filter_map(there).collect()
    }

    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        if lock(&self.containers).remove(id).is_some() {
            let state = ContainerState { id: id.to_owned(), phase: Phase::Removed.into(), ..ContainerState::default() };
            self.announce(Change { state, exited_at: None });
        }
    }

    /// Tells those who listen.
    pub fn announce(&self, change: Change) {
        let _ = self.changes.send(change);
    }

    /// Changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Forks with children's pid namespace being `pids`, then comes back.
    ///
    /// # Errors
    /// When the namespace is gone or the kernel refuses.
    pub fn fork_in(
        &self,
        pids: Option<&OwnedFd>,
        flags: libc::c_int,
        cgroup: &OwnedFd,
        run: impl FnOnce() -> u8,
    ) -> Result<sys::Child> {
        if let Some(pids) = pids {
            rustix::thread::move_into_thread_name_spaces(pids.as_fd(), rustix::thread::ThreadNameSpaceType::PROCESS_ID)
                .map_err(|e| match e {
                    rustix::io::Errno::SRCH => Error::precondition("the process has ended"),
                    _ => Error::new(Kind::Internal, format!("cannot enter the pid namespace: {e}")),
                })?;
        }
        let child = sys::fork(flags, Some(cgroup.as_fd()), run).doing("start a process");
        if pids.is_some() {
            move_into_link_name_space(self.own_pids.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .doing("come back from a pid namespace")?;
        }
        child
    }

    /// The process that holds the pid namespace which the pod's containers share; made when it is first needed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn pod_pids(&self) -> Result<OwnedFd> {
        let mut pause = lock(&self.pause);
        if pause.is_none() {
            let child = sys::fork(libc::CLONE_NEWPID, None, || {
                sys::default_signals();
                let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
                let _ = rustix::thread::set_name(c"pause");
                let _ = sys::close_range(0, u32::MAX);
                sys::pause_for_ever()
            })
            .doing("start the pod's pid namespace")?;
            *pause = Some(child);
        }
        let held = pause.as_ref().map(|p| p.pidfd.try_clone());
        held.ok_or_else(|| Error::new(Kind::Internal, "there is no pause process"))?.doing("copy a descriptor")
    }

    /// Ends the serving of calls.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Waits until [`Agent::stop`].
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move {
            let _ = stopping.wait_for(|s| *s).await;
        }
    }

    /// Ends the pod's shared pid namespace.
    pub fn end_pause(&self) {
        if let Some(pause) = lock(&self.pause).take() {
            let _ = sys::pidfd_kill(&pause.pidfd, libc::SIGKILL);
        }
    }
}

/// An id that is taken, until it is dropped or a container is put there.
#[derive(Debug)]
pub struct Reservation {
    agent: Arc<Agent>,
    id: String,
    kept: bool,
}

impl Reservation {
    /// The container is there.
    pub fn fill(mut self, container: Arc<Container>) {
        self.kept = true;
        lock(&self.agent.containers).insert(self.id.clone(), Slot::There(container));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.agent.containers).remove(&self.id);
        }
    }
}

/// One of this process' namespaces.
///
/// # Errors
/// When /proc is not there.
pub fn open_namespace(name: &str) -> Result<OwnedFd> {
    let path = Path::new("/proc/self/ns").join(name);
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).doing(format!("open {}", path.display()))
}

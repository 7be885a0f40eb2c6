//! One container, from CREATED to REMOVED.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::{ContainerState, GUEST_SHARE};
use rustix::process::Pid;
use tokio::sync::{oneshot, watch};

use super::attach::Stdin;
use super::cgroup::Cgroup;
use super::channel::Outer;
use super::rootfs::Layer;
use super::spec::Spec;
use super::stats::Usage;
use super::stdio::End;
use super::swapped::{Volume, check_link};
use super::user::Resolved;
use crate::agent::{Agent, Change};
use crate::error::{Error, Kind, Result};
use crate::lock;
use crate::logs::Pump;
use crate::logs::tee::Tee;

/// How long an ended container's output may take to reach its log before the end is announced without it.
const DRAIN: Duration = Duration::from_secs(10);
/// How long killed processes may take to end.
const KILL: Duration = Duration::from_secs(60);

/// A container.
#[derive(Debug)]
pub struct Container {
    /// As it was asked for.
    pub spec: Spec,
    /// Its init process.
    pub pid: Pid,
    /// Same.
    pub pidfd: OwnedFd,
    /// Its user.
    pub user: Resolved,
    /// Limits.
    pub cgroup: Cgroup,
    /// Its writable layer.
    pub layer: Layer,
    /// Its instance of devpts.
    pub devpts: OwnedFd,
    /// What the writable layer holds.
    pub usage: Usage,
    /// The CPU quota while it is lifted: from the creation to the start. Held by whoever
    /// changes limits: one change is whole before the next begins.
    pub(super) updating: tokio::sync::Mutex<Option<String>>,
    pub(super) channel: tokio::sync::Mutex<Option<Outer>>,
    pub(super) phase: watch::Sender<State>,
    pub(super) pump: Mutex<Option<Pump>>,
    /// Held open while the container lives, for Attach.
    pub(super) stdin: Mutex<Stdin>,
    /// Its terminal, if it has one.
    pub(super) terminal: Mutex<Option<Arc<End>>>,
    /// Output for those who are attached.
    pub(super) tee: Tee,
    /// Volumes that the node swaps, by their destinations.
    pub(super) swapped: Vec<(PathBuf, Arc<Volume>)>,
}

/// Where it is.
#[derive(Debug, Clone, Default)]
pub struct State {
    phase: Phase,
    exit_code: i32,
    oom_killed: bool,
    exited_at: Option<Instant>,
    message: String,
}

impl Container {
    /// Its state, for callers.
    pub fn change(&self) -> Change {
        let state = self.phase.borrow();
        Change {
            state: ContainerState {
                id: self.spec.id.clone(),
                phase: state.phase.into(),
                pid: self.pid.as_raw_nonzero().get().unsigned_abs(),
                exit_code: state.exit_code,
                oom_killed: state.oom_killed,
                exited_ago_nanos: 0,
                message: state.message.clone(),
            },
            exited_at: state.exited_at,
        }
    }

    /// Whether it has ended.
    pub fn ended(&self) -> bool {
        self.phase.borrow().phase == Phase::Exited
    }

    /// Whether its program runs.
    pub fn running(&self) -> bool {
        self.phase.borrow().phase == Phase::Running
    }

    /// Waits until it has ended.
    pub async fn wait(&self) {
        let _ = self.phase.subscribe().wait_for(|s| s.phase == Phase::Exited).await;
    }

    fn enter(&self, agent: &Agent, change: impl FnOnce(&mut State)) {
        self.phase.send_modify(change);
        agent.announce(self.change());
    }

    /// Lets its program run.
    ///
    /// # Errors
    /// When it is not CREATED, or the program cannot be run: then it is EXITED with code 128.
    pub async fn start(&self, agent: &Agent) -> Result<()> {
        let mut slot = self.channel.lock().await;
        let Some(channel) = slot.take() else {
            let phase = self.phase.borrow().phase.as_str_name();
            return Err(Error::precondition(format!("container {} is {phase}, not CREATED", self.spec.id)));
        };
        // Before its program, which may size itself by it, begins.
        self.put_quota_back(&mut *self.updating.lock().await);
        match channel.go().await {
            Ok(()) => {
                self.enter(agent, |s| s.phase = Phase::Running);
                Ok(())
            }
            Err(error) => {
                self.phase.send_modify(|s| s.message = error.chain());
                drop(slot);
                self.wait().await;
                Err(error)
            }
        }
    }

    /// Follows the init process to its end.
    pub(super) async fn follow(self: Arc<Self>, agent: Arc<Agent>, exit: oneshot::Receiver<i32>) {
        let code = exit.await.unwrap_or(255);
        // A start that is under way says first whether it worked.
        drop(self.channel.lock().await.take());
        if self.spec.pid != PidMode::Container {
            // Nothing else ends what the init process leaves behind.
            self.cgroup.kill();
        }
        *lock(&self.stdin) = Stdin::Closed;
        lock(&self.terminal).take();
        // A turn for the carrier of output, which may not have seen yet that there is any.
        tokio::task::yield_now().await;
        let flowing = |pump: &&Pump| agent.logs.flows(&self.spec.id, pump);
        let drained = lock(&self.pump).as_ref().filter(flowing).map(Pump::drained);
        if let Some(mut drained) = drained {
            let all = drained.wait_for(|done| *done);
            if tokio::time::timeout(DRAIN, all).await.is_err() {
                tracing::warn!(container = self.spec.id, "output is still on its way after the exit");
            }
        }
        let oom_killed = self.cgroup.oom_kills() > 0;
        self.enter(&agent, |s| {
            s.phase = Phase::Exited;
            s.exit_code = code;
            s.oom_killed = oom_killed;
            s.exited_at = Some(Instant::now());
        });
    }

    /// Sends a signal to its init process or to all its processes.
    ///
    /// # Errors
    /// For a number that is no signal.
    pub fn signal(&self, signal: u32, all: bool) -> Result<()> {
        let signal = i32::try_from(signal).ok().filter(|s| (0..=64).contains(s));
        let signal = signal.ok_or_else(|| Error::invalid("there is no such signal"))?;
        if all && signal == libc::SIGKILL {
            self.cgroup.kill();
            return Ok(());
        }
        if all {
            for pid in self.cgroup.pids() {
                let _ = crate::sys::kill(pid, signal);
            }
            return Ok(());
        }
        match crate::sys::pidfd_kill(&self.pidfd, signal) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::new(Kind::Internal, format!("cannot send signal {signal}: {e}")))
            }
            _ => Ok(()),
        }
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// When it has ended, or a limit is refused: then all are as before.
    pub async fn update(&self, agent: &Agent, resources: &cofferdam_proto::agent::Resources) -> Result<()> {
        if self.ended() {
            return Err(Error::precondition(format!(
                "container {} has ended: it has no limits any more",
                self.spec.id
            )));
        }
        let mut lifted = self.updating.lock().await;
        self.put_quota_back(&mut lifted);
        self.cgroup.change_limits(resources, &agent.reaper).await
    }

    fn put_quota_back(&self, lifted: &mut Option<String>) {
        if let Some(quota) = lifted.take() {
            self.cgroup.put_quota_back(&quota);
        }
    }

    /// Tells those who watch the volume at `destination` that the node swapped it.
    ///
    /// # Errors
    /// When there is no such volume, or it cannot be told.
    pub async fn volume_swapped(&self, destination: &str, link: &str) -> Result<()> {
        check_link(link)?;
        let volume = self.swapped.iter().find(|(path, _)| path == Path::new(destination)).map(|(_, volume)| volume);
        let volume = volume.ok_or_else(|| {
            Error::invalid(format!("container {} has no volume at {destination:?} that is swapped", self.spec.id))
        })?;
        volume.swapped(Path::new(GUEST_SHARE), link).await
    }

    /// Kills what is left and deletes all that it has. May be repeated after a failure.
    ///
    /// # Errors
    /// When a process does not end, or something cannot be deleted.
    pub async fn remove(&self, agent: &Agent) -> Result<()> {
        self.end().await?;
        self.cgroup.remove()?;
        self.layer.remove_aside(agent).await
    }

    /// Kills what is left, and waits until it is gone.
    ///
    /// # Errors
    /// When a process does not end.
    pub async fn end(&self) -> Result<()> {
        self.cgroup.kill();
        let _ = crate::sys::pidfd_kill(&self.pidfd, libc::SIGKILL);
        // Its output must not keep it: whoever removes a container has its log, or does not want it.
        if tokio::time::timeout(DRAIN + KILL, self.wait()).await.is_err() {
            return Err(Error::new(Kind::Internal, format!("the processes of container {} do not end", self.spec.id)));
        }
        empty(&self.cgroup).await;
        lock(&self.pump).take();
        Ok(())
    }
}

/// Waits until killed processes are gone: the kernel takes a moment.
pub async fn empty(cgroup: &Cgroup) {
    let mut pause = Duration::from_millis(1);
    let end = Instant::now() + KILL;
    while cgroup.populated() && Instant::now() < end {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

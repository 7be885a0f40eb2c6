//! One running pod.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU8;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent::ShutdownRequest;
use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::monitor::{ExitReason, ExitReport};
use cofferdam_proto::sink::SinkRequest;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::cgroup::PodCgroup;
use crate::dirs::{self, Dirs};
use crate::error::{SandboxError, blocking};
use crate::process::{self, Started};
use crate::quota::{self, LiftedQuota};
use crate::runtime::{Shared, Timeline};
use crate::share::{Access, Exported};
use crate::spec::{Config, Kind, NetworkStatus, PodSpec, VmSize};
use crate::usage::{self, PodUsage};
use crate::versions::Known;
use crate::watches::Watches;
use crate::{connect, resize, share, teardown, users};

/// How long a pod may take to end by itself when it is asked to, before it is killed.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(15);

/// A running pod. Cheap to clone; dropping it ends nothing.
#[derive(Clone)]
pub struct Pod {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    shared: Arc<Shared>,
    pub(crate) spec: PodSpec,
    pub(crate) dirs: Dirs,
    cgroup: String,
    /// Both are told when the launch knows them.
    network: OnceLock<NetworkStatus>,
    timeline: OnceLock<Timeline>,
    pid: u32,
    channel: Channel,
    ended: watch::Receiver<Option<End>>,
    /// All its processes were ended by [`Pod::stop`].
    gone: watch::Sender<bool>,
    /// A namespace of the pod's own users, by which mounts are mapped; made when it is first needed.
    mapping: OnceLock<OwnedFd>,
    /// Which programs it runs in.
    pub(crate) known: Known,
    /// How many vCPUs its guest has online, or [`resize::UNKNOWN`].
    pub(crate) online: AtomicU8,
}

impl Inner {
    pub(crate) fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Users of the pod's own. Blocks for a moment the first time.
    fn mapping(&self) -> Result<Option<&OwnedFd>, SandboxError> {
        let Some(range) = self.spec.users else { return Ok(None) };
        if self.mapping.get().is_none() {
            let _ = self.mapping.set(users::mapping(range)?);
        }
        Ok(self.mapping.get())
    }
}

/// How a pod ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It was asked to.
    pub clean: bool,
    /// For people: `the guest's kernel panicked: ...`.
    pub detail: String,
    /// The node's kernel killed it because memory was short, in the pod's cgroup or on the node.
    pub out_of_memory: bool,
    /// Nanoseconds since the epoch.
    pub at_unix_nanos: i64,
}

/// The process of a pod, watched.
pub(crate) struct Watched {
    pub(crate) pid: u32,
    pub(crate) ended: watch::Receiver<Option<End>>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Watches a started process from now on, whoever holds the pod.
    pub(crate) fn new(started: Started, dirs: &Dirs, kind: Kind, cgroup: &PodCgroup, watches: &Watches) -> Self {
        let (sender, ended) = watch::channel(None);
        let (dirs, cgroup, watches) = (dirs.clone(), cgroup.clone(), watches.clone());
        let pid = started.record.pid;
        let task = tokio::spawn(async move {
            let stderr = dirs.stderr();
            let signal = tokio::select! {
                signal = process::wait(started.pidfd) => signal,
                () = process::keep_short(&stderr, &watches) => None,
            };
            let run = dirs.run.clone();
            let read = blocking(move || Ok(End::read(&dirs, kind, &cgroup))).await;
            // The runtime ends, and nobody will be told.
            let Ok(end) = read.map(|end| end.by_signal(signal)) else { return };
            tracing::debug!(pod = %run.display(), clean = end.clean, detail = %end.detail, "pod ended");
            let _ = sender.send(Some(end));
        });
        Self { pid, ended, task }
    }

    /// Whether it has not ended yet.
    pub(crate) fn is_running(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Watches the process no longer.
    pub(crate) async fn stop(self) {
        self.task.abort();
        // Ended by the abort: its error says no more than that.
        let _ = self.task.await;
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> End {
        ended(self.ended.clone()).await
    }
}

async fn ended(mut receiver: watch::Receiver<Option<End>>) -> End {
    let end = receiver.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
    match end {
        Some(end) => end,
        // The watching task is gone: so is this runtime, and nobody will be told.
        None => std::future::pending().await,
    }
}

impl End {
    /// What is known of a pod whose process has ended. Blocks.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub(crate) fn read(dirs: &Dirs, kind: Kind, cgroup: &PodCgroup) -> Self {
        let clean = dirs.stopping().exists();
        let report: Option<ExitReport> = dirs::read(&dirs.exit_report()).ok().flatten();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_unix_nanos =
            report.as_ref().map_or(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX), |report| report.at_unix_nanos);
        // Only the monitor is in a vm pod's cgroup; in a host pod's a container may have been the one that was killed.
        let out_of_memory = kind == Kind::Vm && report.is_none() && !clean && cgroup.oom_kills() > 0;
        let what = match (kind, report.as_ref().map(|report| report.reason)) {
            (Kind::Host, _) if clean => "the pod's supervisor ended as asked",
            (Kind::Host, _) => "the pod's supervisor died",
            (Kind::Vm, Some(ExitReason::PowerOff)) => "the guest powered off",
            (Kind::Vm, Some(ExitReason::GuestReset)) => "the guest's kernel panicked",
            (Kind::Vm, Some(ExitReason::TripleFault)) => "the guest's kernel crashed with a triple fault",
            (Kind::Vm, Some(ExitReason::Killed)) => "the monitor was told to kill the VM",
            (Kind::Vm, Some(ExitReason::MonitorError)) => "the monitor failed",
            (Kind::Vm, None) if out_of_memory => {
                "the pod ran out of memory: the node's kernel killed its monitor (raise the containers' memory limits, or \
                 overhead.podFixed.memory of the RuntimeClass; or the node itself is short of memory)"
            }
            (Kind::Vm, None) => "the monitor died",
        };
        let more = match report {
            Some(report) if !report.detail.is_empty() => report.detail,
            _ => process::last_words(&dirs.stderr()),
        };
        let detail = if more.is_empty() { what.to_owned() } else { format!("{what}: {more}") };
        Self { clean, detail, out_of_memory, at_unix_nanos }
    }

    /// Adds what the signal says that ended the process.
    fn by_signal(mut self, signal: Option<i32>) -> Self {
        if signal == Some(libc::SIGSYS) {
            self.detail = format!(
                "the monitor made a system call that it is not allowed, and the node's kernel killed it (a guest broke into it, or \
                 this is a bug; `journalctl -k` names the call in a line with type=1326 and sig=31): {}",
                self.detail
            );
        }
        self
    }
}

impl Pod {
    pub(crate) fn new(
        shared: Arc<Shared>,
        spec: PodSpec,
        dirs: Dirs,
        cgroup: String,
        known: Known,
        channel: Channel,
        watched: &Watched,
    ) -> Self {
        let (pid, ended) = (watched.pid, watched.ended.clone());
        let (network, timeline) = (OnceLock::new(), OnceLock::new());
        let (gone, mapping) = (watch::Sender::new(false), OnceLock::new());
        let online = AtomicU8::new(resize::UNKNOWN);
        let inner =
            Inner { shared, spec, dirs, cgroup, network, timeline, pid, channel, ended, gone, mapping, known, online };
        Self { inner: Arc::new(inner) }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.inner.spec.id
    }

    /// What it runs in.
    pub fn kind(&self) -> Kind {
        self.inner.spec.kind
    }

    /// Tells the pod what CNI answered, and when the steps of its launch happened. Only the first time
    /// counts.
    pub(crate) fn launched(&self, network: Option<NetworkStatus>, timeline: Timeline) {
        if let Some(network) = network {
            let _ = self.inner.network.set(network);
        }
        let _ = self.inner.timeline.set(timeline);
    }

    /// What CNI answered; absent on the node's network.
    pub fn network(&self) -> Option<&NetworkStatus> {
        self.inner.network.get()
    }

    /// When the steps of its launch happened; empty for an adopted pod.
    pub fn timeline(&self) -> &Timeline {
        self.inner.timeline.get_or_init(Timeline::default)
    }

    /// Process id of the monitor or supervisor.
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// Changes how the node's kernel rates a microVM's monitor when memory is short; nothing is done for [`Kind::Host`], where each
    /// container has a score of its own.
    ///
    /// # Errors
    /// When the monitor has ended.
    pub async fn set_oom_score_adj(&self, score: i16) -> Result<(), SandboxError> {
        if self.kind() == Kind::Host {
            return Ok(());
        }
        self.must_run()?;
        let dirs = self.inner.dirs.clone();
        blocking(move || match dirs::read(&dirs.process())? {
            Some(record) => process::rate(record, score),
            None => Err(SandboxError::step("set the monitor's oom_score_adj", "its process is not recorded")),
        })
        .await
    }

    /// Lifts the CPU quota of the cgroup above the pod's until the answer is dropped, if it has one and only this pod is below it. For
    /// while none of the pod's containers runs: what is done then is done for the node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn lift_quota(&self) -> Result<Option<LiftedQuota>, SandboxError> {
        let inner = Arc::clone(&self.inner);
        let cgroup = PodCgroup::new(&inner.shared.config, &inner.spec.cgroup_parent, &inner.spec.id)?;
        blocking(move || quota::lift(&cgroup, &inner.dirs)).await
    }

    /// The agent. One connection, made once, that connects again by itself.
    pub fn agent(&self) -> AgentClient<Channel> {
        AgentClient::new(self.inner.channel.clone())
    }

    /// The agent over a connection of its own, made with the first call and closed when the client is dropped: whatever a user's
    /// session leaves unread holds up nothing but itself.
    pub fn agent_for_session(&self) -> AgentClient<Channel> {
        AgentClient::new(connect::agent(&self.inner.dirs, self.kind()))
    }

    /// Parent cgroup for the containers as the agent wants it (`CreateContainerRequest.cgroup_parent`): empty in a microVM.
    pub fn container_cgroup_parent(&self) -> String {
        if self.kind() == Kind::Vm { String::new() } else { self.inner.cgroup.clone() }
    }

    /// Makes a file or directory of the node, a path without symlinks, visible to the agent for `container`. `Kind::Vm`: a bind mount in
    /// the share, where `access` is enforced on the node; `Kind::Host`: `source` itself, whose access is the agent's to shape.
    ///
    /// # Errors
    /// When the source is not there, cannot be mounted, or is of no use in a microVM (a socket, a device).
    pub async fn export(&self, container: &str, source: &Path, access: Access) -> Result<Exported, SandboxError> {
        if self.kind() == Kind::Host {
            return match source.to_str() {
                Some(path) => Ok(Exported { path: path.to_owned(), ..Exported::default() }),
                None => Err(SandboxError::Invalid(format!("path {} is not UTF-8", source.display()))),
            };
        }
        let (inner, container, source) = (Arc::clone(&self.inner), container.to_owned(), source.to_owned());
        let _lock = inner.shared.lock(&inner.spec.id).await;
        self.must_run()?;
        blocking(move || {
            let users = if access.mapped { inner.mapping()? } else { None };
            share::export(&inner.dirs, &container, &source, access, users)
        })
        .await
    }

    /// As [`Pod::export`], read-only, for a directory that never changes as long as it is there (an image's layer): a microVM may cache
    /// all of it for as long as it likes. `mapped`: its owners are shown as the pod's users, if it has some of its own.
    ///
    /// # Errors
    /// As [`Pod::export`].
    pub async fn export_layer(&self, container: &str, source: &Path, mapped: bool) -> Result<String, SandboxError> {
        if self.kind() == Kind::Host {
            return self.export(container, source, Access::default()).await.map(|exported| exported.path);
        }
        let (inner, container, source) = (Arc::clone(&self.inner), container.to_owned(), source.to_owned());
        let _lock = inner.shared.lock(&inner.spec.id).await;
        self.must_run()?;
        blocking(move || {
            let users = if mapped { inner.mapping()? } else { None };
            share::export_layer(&inner.dirs, &container, &source, users)
        })
        .await
    }

    /// Takes back all exports of a container. Idempotent.
    ///
    /// # Errors
    /// When a mount cannot be taken away.
    pub async fn unexport(&self, container: &str) -> Result<(), SandboxError> {
        if self.kind() == Kind::Host {
            return Ok(());
        }
        let (inner, container) = (Arc::clone(&self.inner), container.to_owned());
        let _lock = inner.shared.lock(&inner.spec.id).await;
        blocking(move || share::unexport(&inner.dirs, &container)).await
    }

    /// Gives the log writer of the pod the file for a container's output; again after a rotation or a restart of the daemon.
    ///
    /// # Errors
    /// When the writer is gone.
    pub async fn open_log(&self, container: &str, file: OwnedFd) -> Result<(), SandboxError> {
        self.must_run()?;
        self.sink(SinkRequest::Open { container: container.into() }, Some(file)).await
    }

    /// Tells the log writer to forget a container. Idempotent.
    ///
    /// # Errors
    /// When the writer is gone.
    pub async fn close_log(&self, container: &str) -> Result<(), SandboxError> {
        if self.inner.ended.borrow().is_some() {
            return Ok(()); // the writer forgot everything
        }
        self.sink(SinkRequest::Close { container: container.into() }, None).await
    }

    async fn sink(&self, request: SinkRequest, file: Option<OwnedFd>) -> Result<(), SandboxError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || connect::sink(&inner.dirs, inner.spec.kind, request, file)).await
    }

    /// What the pod uses of the node now: its whole cgroup, and its interfaces.
    ///
    /// # Errors
    /// When it is being taken down.
    pub async fn usage(&self) -> Result<PodUsage, SandboxError> {
        let inner = Arc::clone(&self.inner);
        let cgroup = PodCgroup::new(&inner.shared.config, &inner.spec.cgroup_parent, &inner.spec.id)?;
        blocking(move || usage::read(&cgroup, &inner.dirs, inner.spec.network.is_some())).await
    }

    /// Its cgroup below the root, `/kubepods/.../<id>`.
    pub fn cgroup(&self) -> &str {
        &self.inner.cgroup
    }

    /// The directory of the node below which what containers write is kept: their layers themselves, or the disk file of a microVM.
    /// It is that of all pods, so it is there whatever becomes of this one.
    pub fn backing(&self) -> PathBuf {
        dirs::pods(&self.inner.shared.config.state_dir)
    }

    /// Length of the microVM's disk file: no layer in it is longer.
    pub async fn disk_size(&self) -> Option<u64> {
        tokio::fs::metadata(self.inner.dirs.disk()).await.ok().map(|m| m.len())
    }

    /// The most that its microVM can ever have had.
    pub fn most(&self) -> VmSize {
        self.inner.spec.vm.at_least(self.inner.spec.vm_max)
    }

    pub(crate) fn must_run(&self) -> Result<(), SandboxError> {
        if self.inner.ended.borrow().is_some() { Err(SandboxError::Ended { id: self.id().into() }) } else { Ok(()) }
    }

    /// Waits until the pod's monitor or supervisor has ended, however it came to that. Any number may wait.
    pub async fn ended(&self) -> End {
        ended(self.inner.ended.clone()).await
    }

    /// Asks the agent to shut down, waits a little, kills. Gives back the network, memory, tap, namespace, cgroup and mounts; keeps nothing
    /// but what [`crate::Runtime::remove`] deletes. Idempotent.
    ///
    /// # Errors
    /// Says what could not be freed; calling it again goes on from there.
    pub async fn stop(&self) -> Result<(), SandboxError> {
        let pod = self.clone();
        // A task of its own: a caller that hangs up leaves nothing half done.
        let stopping = tokio::spawn(async move {
            let inner = &pod.inner;
            let _lock = inner.shared.lock(&inner.spec.id).await;
            let shutdown = async {
                if inner.ended.borrow().is_none() {
                    pod.shut_down().await;
                }
            };
            let gone = || {
                let _ = inner.gone.send_replace(true);
            };
            teardown::free(&inner.shared, &inner.dirs, &inner.spec.id, shutdown, gone).await
        });
        match stopping.await {
            Ok(result) => result,
            Err(error) => Err(SandboxError::step(format!("stop pod {}", self.id()), error)),
        }
    }

    /// Waits until [`Pod::stop`] has ended all processes of the pod, for ever if it cannot. Plugins that give its network back may take
    /// longer, or fail.
    pub async fn gone(&self) {
        let mut gone = self.inner.gone.subscribe();
        // The sender lives in self.
        let _ = gone.wait_for(|gone| *gone).await;
    }

    /// Whether [`Pod::gone`] is over.
    pub fn is_gone(&self) -> bool {
        *self.inner.gone.borrow()
    }

    async fn shut_down(&self) {
        let polite = async {
            // The agent may be gone before its answer is through: what counts is that it ends.
            if let Err(status) = self.agent().shutdown(ShutdownRequest {}).await {
                tracing::debug!(pod = self.id(), error = %status, "agent did not answer to shutdown");
            }
            self.ended().await
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, polite).await.is_err() {
            tracing::warn!(pod = self.id(), seconds = SHUTDOWN_LIMIT.as_secs(), "pod does not end, killing it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_system_call_is_named() {
        let end = || End { clean: false, detail: "the monitor died".into(), out_of_memory: false, at_unix_nanos: 0 };
        let detail = end().by_signal(Some(libc::SIGSYS)).detail;
        assert!(detail.starts_with("the monitor made a system call that it is not allowed"), "{detail}");
        assert!(detail.ends_with(": the monitor died"), "{detail}");
        for other in [None, Some(libc::SIGKILL)] {
            assert_eq!(end().by_signal(other), end());
        }
    }
}

//! Starts a host pod's supervisor.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use cofferdam_proto::supervisor::{API_VERSION, LaunchConfig, PodUsers, Ready};
use rustix::net::SocketType;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::Launch;
use crate::connect::listener;
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError, blocking};
use crate::pod::Watched;
use crate::process::{self, Program, Started};
use crate::spec::Kind;

/// The supervisor is a member of the pod's cgroup and small. When memory is short there, a container has to go and not the supervisor,
/// with which all of the pod would go: so it is rated below the containers of Guaranteed pods, which have -997.
const SUPERVISOR_OOM_SCORE_ADJ: i16 = -998;

const STEP: &str = "start the pod's supervisor";

/// Starts it and waits until it serves.
pub(super) async fn start(launch: &Arc<Launch>) -> Result<Watched, SandboxError> {
    let (starter, ready) = {
        let launch = Arc::clone(launch);
        blocking(move || spawn(&launch)).await?
    };
    // The starter ends when the supervisor is ready; it is our child, and reaped in any case.
    let starter = tokio::spawn(process::wait(starter.pidfd));
    let limit = launch.shared.config.vm.boot_timeout;
    let read = async {
        let ready = read_ready(ready).await.doing(|| STEP.into())?;
        let _ = starter.await;
        Ok::<_, SandboxError>(ready)
    };
    let Ok(ready) = tokio::time::timeout(limit, read).await else {
        return Err(SandboxError::TimedOut { step: "starting the pod's supervisor".into(), seconds: limit.as_secs() });
    };
    let (ready, dirs) = (ready?, launch.dirs.clone());
    let started = blocking(move || record(&dirs, ready)).await?;
    launch.clock.mark("supervisor_started");
    Ok(Watched::new(started, &launch.dirs, Kind::Host, &launch.cgroup, &launch.shared.watches))
}

/// Records the supervisor that says it is ready. Blocks.
fn record(dirs: &Dirs, ready: Option<Ready>) -> Result<Started, SandboxError> {
    let failed = || SandboxError::step(STEP, why(&dirs.stderr()));
    let started = process::identify(ready.ok_or_else(failed)?.pid).map_err(|_| failed())?;
    dirs::write(&dirs.process(), &started.record)?;
    Ok(started)
}

/// Reads the one message; nothing when there will be none.
async fn read_ready(pipe: OwnedFd) -> std::io::Result<Option<Ready>> {
    let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
    let (mut text, mut buffer) = (Vec::new(), [0; 512]);
    // Not to the end of the pipe: the supervisor may have a copy of the other end.
    while text.len() < 4096 {
        match pipe.read(&mut buffer).await? {
            0 => return Ok(None),
            length => text.extend_from_slice(&buffer[..length]),
        }
        if let Ok(ready) = serde_json::from_slice(&text) {
            return Ok(Some(ready));
        }
    }
    Err(std::io::Error::other("its message is malformed"))
}

fn why(stderr: &Path) -> String {
    let words = process::last_words(stderr);
    if words.is_empty() { "it ended and said nothing".into() } else { words }
}

fn spawn(launch: &Launch) -> Result<(Started, OwnedFd), SandboxError> {
    let (dirs, spec) = (&launch.dirs, &launch.spec);
    let cgroup = launch.cgroup.create("supervisor", true)?;
    let (containers, roots) = (dirs.containers(), dirs.roots());
    dirs::make_private(&containers)?;
    dirs::make_private(&roots)?;
    let socket = listener(&dirs.agent(), SocketType::STREAM)?;
    let sink = listener(&dirs.sink(), SocketType::SEQPACKET)?;
    let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC).doing(|| "make a pipe".into())?;
    let netns = launch.netns.as_ref().map(|netns| netns.fd.as_fd());
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| SandboxError::Invalid(format!("path {} is not UTF-8", path.display())))
    };
    let users = launch.users.as_ref().zip(spec.users).map(|(spaces, range)| PodUsers {
        user_fd: spaces.user.as_raw_fd(),
        ipc_fd: spaces.ipc.as_raw_fd(),
        uts_fd: spaces.uts.as_raw_fd(),
        range,
    });
    let config = process::config_fd(&LaunchConfig {
        api_version: API_VERSION,
        name: spec.id.clone(),
        socket_fd: socket.as_raw_fd(),
        sink_fd: sink.as_raw_fd(),
        ready_fd: ready_writer.as_raw_fd(),
        netns_fd: netns.map(|fd| fd.as_raw_fd()),
        node_pid: spec.node_pid,
        node_ipc: spec.node_ipc,
        node_uts: spec.network.is_none(),
        users,
        state_dir: text(&containers)?,
        run_dir: text(&roots)?,
    })?;
    let mut inherit = vec![config.as_fd(), socket.as_fd(), sink.as_fd(), ready_writer.as_fd()];
    inherit.extend(netns);
    inherit.extend(launch.users.iter().flat_map(|s| [s.user.as_fd(), s.ipc.as_fd(), s.uts.as_fd()]));
    let number = config.as_raw_fd().to_string();
    let agent = &launch.shared.config.agent;
    let copy = launch.shared.sealed.get(agent)?;
    let program = Program {
        path: agent,
        copy: Some((*copy).as_fd()),
        args: &["supervise", "--config-fd", &number],
        inherit,
        cgroup: &cgroup.procs,
        netns: None,
        stderr: &dirs.stderr(),
        oom_score_adj: SUPERVISOR_OOM_SCORE_ADJ,
        apart: false,
    };
    let started = program.start()?;
    launch.clock.mark("supervisor_spawned");
    Ok((started, ready))
}

//! CreateContainer: everything up to a process that waits for its start.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::{CreateContainerReply, CreateContainerRequest, ResolvedUser};
use tokio::sync::watch;

use super::attach::Stdin;
use super::cgroup::Cgroup;
use super::channel::{self, Outer, Report};
use super::init;
use super::lifecycle::{Container, State, empty};
use super::memory;
use super::rootfs::Layer;
use super::spec::{Propagation, Spec};
use super::stats::Usage;
use super::stdio::{self, End, Inside, Outside};
use super::user::Resolved;
use crate::agent::{Agent, Mode};
use crate::error::{Error, Kind, Result};
use crate::logs::tee::Tee;

/// Where containers' cgroups are in a microVM.
pub const GUEST_PARENT: &str = "pod";

/// Creates a container.
///
/// # Errors
/// Says what failed; nothing is left then.
pub async fn create(agent: Arc<Agent>, request: CreateContainerRequest) -> Result<CreateContainerReply> {
    let spec = Spec::parse(request)?;
    check_users(&agent, &spec)?;
    let reservation = agent.reserve(&spec.id)?;
    let pids = pid_namespace(&agent, &spec)?;
    for mount in spec.mounts.iter().filter(|m| m.is_memory()) {
        memory::prepare(&agent.dirs, mount)?;
    }
    let layer = Layer::create(&agent.dirs.state, &spec.id, &spec.lower[0], agent.mapping())?;
    let usage = Usage::start(&agent, &layer);
    let result = with_cgroup(&agent, spec, pids, layer, usage).await;
    let container = result?;
    let reply = CreateContainerReply {
        pid: container.pid.as_raw_nonzero().get().unsigned_abs(),
        user: Some(ResolvedUser {
            uid: container.user.uid,
            gid: container.user.gid,
            groups: container.user.groups.clone(),
        }),
    };
    reservation.fill(container.clone());
    agent.announce(container.change());
    Ok(reply)
}

/// What goes with users of the pod's own, and what only with them.
fn check_users(agent: &Agent, spec: &Spec) -> Result<()> {
    for m in &spec.mounts {
        let name = m.destination.display();
        match agent.users() {
            None if m.idmap => {
                return Err(Error::invalid(format!("mount {name}: mapped owners need users of the pod's own")));
            }
            Some(_) if m.propagation == Propagation::Shared => {
                return Err(Error::invalid(format!(
                    "mount {name}: a pod with users of its own cannot mount for others (bidirectional propagation)"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Namespace of another process to join, if any, and whether a new one is made.
enum Pids {
    New,
    Own,
    Of(OwnedFd),
}

fn pid_namespace(agent: &Agent, spec: &Spec) -> Result<Pids> {
    match spec.pid {
        PidMode::Container => Ok(Pids::New),
        PidMode::Pod => agent.pod_pids().map(Pids::Of),
        PidMode::Node if agent.mode == Mode::Vm || agent.node_pid => Ok(Pids::Own),
        PidMode::Node => Err(Error::precondition("the pod was not started in the node's pid namespace")),
        PidMode::Target => {
            let target = agent.container(&spec.pid_target)?;
            if target.ended() {
                return Err(Error::precondition(format!("container {} has ended", spec.pid_target)));
            }
            let fd = target.pidfd.try_clone().map_err(|e| Error::new(Kind::Internal, e.to_string()))?;
            Ok(Pids::Of(fd))
        }
    }
}

async fn with_cgroup(agent: &Arc<Agent>, spec: Spec, pids: Pids, layer: Layer, usage: Usage) -> Result<Arc<Container>> {
    let parent = if agent.mode == Mode::Vm { GUEST_PARENT.into() } else { spec.cgroup_parent.clone() };
    let cgroup = match Cgroup::create(&agent.cgroup_root, &parent, &spec.id) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let _ = layer.remove();
            return Err(error);
        }
    };
    let mut exit = None;
    match launch(agent, &spec, &pids, &layer, &cgroup, &mut exit).await {
        Ok(parts) => Ok(assemble(agent, spec, layer, cgroup, usage, parts, exit)),
        Err(error) => {
            cgroup.kill();
            if let Some(exit) = exit {
                let _ = exit.await;
            }
            empty(&cgroup).await;
            for result in [cgroup.remove(), layer.remove()] {
                if let Err(e) = result {
                    tracing::error!(container = spec.id, error = e.chain(), "a failed create left something");
                }
            }
            Err(error)
        }
    }
}

struct Parts {
    child: crate::sys::Child,
    channel: Outer,
    outside: Outside,
    devpts: OwnedFd,
    user: Resolved,
    quota: Option<String>,
}

async fn launch(
    agent: &Arc<Agent>,
    spec: &Spec,
    pids: &Pids,
    layer: &Layer,
    cgroup: &Cgroup,
    exit: &mut Option<tokio::sync::oneshot::Receiver<i32>>,
) -> Result<Parts> {
    cgroup.limit(&spec.resources)?;
    spec.devices.enforce(cgroup)?;
    // It counts for the container's program, not for what it takes to set the container up.
    let quota = cgroup.lift_quota();
    let (inside, mut outside) =
        if spec.process.terminal { (Inside::Terminal, Outside::default()) } else { stdio::pipes(spec.stdin)? };
    let (outer, inner) = channel::pair()?;
    let place = cgroup.open()?;
    let (join, flags) = match pids {
        Pids::New => (None, libc::CLONE_NEWPID),
        Pids::Own => (None, 0),
        Pids::Of(fd) => (Some(fd), 0),
    };
    let child = agent.fork_in(join, flags, &place, move || init::run(agent, spec, layer, inside, inner))?;
    *exit = Some(agent.reaper.watch(child.pid));

    let mut devpts = None;
    let user = loop {
        match outer.next().await? {
            Some((Report::Devpts, Some(fd))) => devpts = Some(fd),
            Some((Report::Terminal, Some(fd))) => outside.stdout = Some(End::new(fd)?),
            Some((Report::Ready(user), _)) => break user,
            Some((Report::Failed(kind, message), _)) => return Err(Error::new(kind, message)),
            Some((other, _)) => return Err(Error::new(Kind::Internal, format!("unexpected report {other:?}"))),
            None => return Err(Error::new(Kind::Internal, "the container's process died while it was set up")),
        }
    };
    let devpts = devpts.ok_or_else(|| Error::new(Kind::Internal, "the container's process sent no devpts"))?;
    Ok(Parts { child, channel: outer, outside, devpts, user, quota })
}

fn assemble(
    agent: &Arc<Agent>,
    spec: Spec,
    layer: Layer,
    cgroup: Cgroup,
    usage: Usage,
    parts: Parts,
    exit: Option<tokio::sync::oneshot::Receiver<i32>>,
) -> Arc<Container> {
    let Outside { stdin, stdout, stderr } = parts.outside;
    let terminal = stdout.as_ref().filter(|_| spec.process.terminal).and_then(|e| e.try_clone().ok()).map(Arc::new);
    let stdin = match &terminal {
        Some(terminal) if spec.stdin => Stdin::Open(terminal.clone()),
        _ => Stdin::new(stdin),
    };
    let tee = Tee::default();
    let swapped = spec.mounts.iter().filter(|m| !m.data_link.is_empty());
    let swapped = swapped.map(|m| (m.destination.clone(), agent.volumes.get(&m.source, &m.data_link))).collect();
    let pump = agent.logs.pump(&spec.id, tee.clone(), stdout, stderr);
    let container = Arc::new(Container {
        spec,
        pid: parts.child.pid,
        pidfd: parts.child.pidfd,
        user: parts.user,
        cgroup,
        layer,
        devpts: parts.devpts,
        usage,
        updating: tokio::sync::Mutex::new(parts.quota),
        channel: tokio::sync::Mutex::new(Some(parts.channel)),
        phase: watch::Sender::new(State::default()),
        pump: Mutex::new(Some(pump)),
        stdin: Mutex::new(stdin),
        terminal: Mutex::new(terminal),
        tee,
        swapped,
    });
    if let Some(exit) = exit {
        tokio::spawn(container.clone().follow(agent.clone(), exit));
    }
    container
}

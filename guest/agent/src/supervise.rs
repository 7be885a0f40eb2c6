//! The supervisor of a host pod: see `proto/src/supervisor.rs`.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_proto::supervisor::{API_VERSION, LaunchConfig, Ready};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::agent::{Agent, Dirs, Mode, Shared, open_namespace};
use crate::error::{Doing, Error, Result};
use crate::logs::Logs;
use crate::logs::host::Sinks;
use crate::users::Users;
use crate::{service, sys};

/// Longest configuration.
const MAX_CONFIG: usize = 64 * 1024;

/// Becomes the supervisor; returns when the pod is shut down, and in the parent when the supervisor runs.
///
/// # Errors
/// What failed.
pub fn run(config_fd: i32) -> Result<()> {
    run_sealed()?;
    let config =
        sys::read_bounded(File::from(sys::take_fd(config_fd).doing("use the configuration's descriptor")?), MAX_CONFIG)
            .doing("read the configuration")?;
    let config: LaunchConfig = serde_json::from_slice(&config).asked("understand the configuration")?;
    if config.api_version != API_VERSION {
        return Err(Error::invalid(format!("version {} of the configuration, not {API_VERSION}", config.api_version)));
    }
    let take = |number, what: &str| sys::take_fd(number).doing(format!("use the descriptor of {what}"));
    let socket = take(config.socket_fd, "the agent's socket")?;
    let sink = take(config.sink_fd, "the sink socket")?;
    let ready = take(config.ready_fd, "the ready pipe")?;
    let netns = config.netns_fd.map(|fd| take(fd, "the network namespace")).transpose()?;

    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing("keep others from looking into the supervisor")?;
    let node_mounts = open_namespace("mnt")?;
    if let Some(netns) = &netns {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
            .doing("enter the pod's network namespace")?;
    }
    drop(netns);
    let users = match config.users {
        Some(users) => {
            for (fd, kind, what) in [
                (users.ipc_fd, LinkNameSpaceType::InterProcessCommunication, "IPC namespace"),
                (users.uts_fd, LinkNameSpaceType::HostNameAndNISDomainName, "host name's namespace"),
            ] {
                let namespace = take(fd, what)?;
                move_into_link_name_space(namespace.as_fd(), Some(kind)).doing(format!("enter the pod's {what}"))?;
            }
            Some(Users::new(take(users.user_fd, "the user namespace")?, users.range))
        }
        None => None,
    };
    own_namespaces(&config)?;
    // A copy of the node's mounts that learns of what goes away there, and tells nothing.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC).doing("detach the mounts")?;

    let (up_read, up_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).doing("make a pipe")?;
    let pids = if config.node_pid { 0 } else { libc::CLONE_NEWPID };
    let mut parts = Some((socket, sink, up_write, node_mounts, users));
    let child = sys::fork(pids, None, || {
        let Some((socket, sink, up, node_mounts, users)) = parts.take() else { return 1 };
        // Whoever reads the ready pipe waits for its end; and nothing that leaked into the parent belongs here.
        let kept = [&socket, &sink, &up, &node_mounts];
        let kept: Vec<&OwnedFd> = kept.into_iter().chain(users.iter().map(Users::descriptor)).collect();
        sys::close_all_but(&kept);
        if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
            let _ = sys::dup_to(&null, 0);
            let _ = sys::dup_to(&null, 1);
        }
        match supervise(&config, socket, sink, up, node_mounts, users) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("cofferdam-agent: pod {}: {}", config.name, error.chain());
                1
            }
        }
    })
    .doing("start the supervisor")?;
    drop(parts);
    let mut up = [0u8; 1];
    let running = rustix::io::read(&up_read, &mut up).doing("wait for the supervisor")? == 1;
    if !running {
        return Err(Error::new(crate::error::Kind::Internal, "the supervisor died while it started"));
    }
    let ready_line = Ready { pid: child.pid.as_raw_nonzero().get().unsigned_abs() };
    serde_json::to_writer(File::from(ready), &ready_line).doing("say that the supervisor runs")
}

#[allow(unsafe_code)] // unshare
fn own_namespaces(config: &LaunchConfig) -> Result<()> {
    let mut flags = UnshareFlags::NEWNS;
    // With users of the pod's own, these exist already and belong to them.
    if !config.node_ipc && config.users.is_none() {
        flags |= UnshareFlags::NEWIPC;
    }
    if !config.node_uts && config.users.is_none() {
        flags |= UnshareFlags::NEWUTS;
    }
    // SAFETY: neither flag makes descriptors or memory unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.doing("make the pod's namespaces")
}

fn supervise(
    config: &LaunchConfig,
    socket: OwnedFd,
    sink: OwnedFd,
    up: OwnedFd,
    node_mounts: OwnedFd,
    users: Option<Users>,
) -> Result<()> {
    rustix::process::setsid().doing("start a session")?;
    rustix::process::chdir("/").doing("go to the root")?;
    let pid = Some(rustix::process::getpid());
    rustix::process::set_child_subreaper(pid).doing("become the reaper of orphans")?;
    let dirs = Dirs { state: PathBuf::from(&config.state_dir), run: PathBuf::from(&config.run_dir) };
    for dir in [&dirs.state, &dirs.run] {
        if !dir.is_dir() {
            return Err(Error::invalid(format!("{} is not a directory", dir.display())));
        }
    }
    let shared =
        Shared { net: config.netns_fd.is_none(), pid: config.node_pid, ipc: config.node_ipc, uts: config.node_uts };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start the runtime")?;
    runtime.block_on(async {
        let sinks = Sinks::default();
        let agent = Agent::new(Mode::Host, dirs, node_mounts, shared, users, Logs::Host(sinks.clone()))?;
        tokio::spawn(async move {
            if let Err(error) = sinks.serve(sink).await {
                tracing::error!(error = error.chain(), "the sink socket failed");
            }
        });
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true).doing("make the agent's socket non-blocking")?;
        let listener = tokio::net::UnixListener::from_std(listener).doing("watch the agent's socket")?;
        rustix::io::write(&up, b"+").doing("say that the supervisor runs")?;
        drop(up);
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        service::serve(agent, incoming).await.doing("serve the agent's API")
    })
}

/// Runs this program again from a copy that nobody can write to, unless it is one: a container may reach the program
/// of its init process through /proc and would change what runs as root on the node.
fn run_sealed() -> Result<()> {
    let own = File::open("/proc/self/exe").doing("open the agent's program")?;
    let sealed = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    if rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(sealed)) {
        return Ok(());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = rustix::fs::memfd_create("cofferdam-agent", flags | MemfdFlags::EXEC)
        .or_else(|_| rustix::fs::memfd_create("cofferdam-agent", flags))
        .doing("make a file in memory")?;
    let size = own.metadata().doing("look at the agent's program")?.len();
    let mut done = 0;
    while done < size {
        let n = rustix::fs::sendfile(&copy, &own, None, usize::try_from(size - done).unwrap_or(usize::MAX))
            .doing("copy the agent's program")?;
        if n == 0 {
            return Err(Error::new(crate::error::Kind::Internal, "the agent's program became shorter"));
        }
        done += n as u64;
    }
    rustix::fs::fcntl_add_seals(&copy, sealed).doing("seal the copy of the agent's program")?;
    let strings = |list: Vec<std::ffi::OsString>| -> Result<Vec<CString>> {
        use std::os::unix::ffi::OsStringExt;
        list.into_iter().map(|s| sys::c_string(s.into_vec()).doing("copy an argument")).collect()
    };
    let args = strings(std::env::args_os().collect())?;
    let env = strings(
        std::env::vars_os()
            .map(|(mut key, value)| {
                key.push("=");
                key.push(value);
                key
            })
            .collect(),
    )?;
    Err(sys::exec_fd(&copy, &args, &env)).doing("run the sealed copy of the agent")
}

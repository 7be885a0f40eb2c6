//! Exec: one more process in a running container, in the container's own cgroup: programs look for their limits there.

use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::exec_input::Kind as In;
use cofferdam_proto::agent::exec_output::Kind as Out;
use cofferdam_proto::agent::{ExecExited, ExecInput, ExecOutput, ExecStart, ExecStarted};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::channel::{self, Inner, Report};
use super::descendants::{self, Why};
use super::lifecycle::Container;
use super::process::{self, Launch};
use super::spec::ProcessSpec;
use super::stdio::{self, End, Inside, Outside};
use super::user::Resolved;
use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::sys::Child;

/// Most that is read at once.
const CHUNK: usize = 32 * 1024;
/// A terminal passes on what was written to it a moment later.
const SETTLE: Duration = Duration::from_millis(200);

/// Where output goes.
pub type Output = mpsc::Sender<Result<ExecOutput, Status>>;

/// One running exec.
struct Exec {
    container: Arc<Container>,
    child: Child,
    exit: oneshot::Receiver<i32>,
    outside: Outside,
}

/// Serves one exec to its end.
pub async fn serve(agent: Arc<Agent>, start: ExecStart, input: Streaming<ExecInput>, output: Output) {
    let result = async {
        let container = agent.container(&start.container_id)?;
        if !container.running() {
            return Err(Error::precondition(format!("container {} does not run", start.container_id)));
        }
        let exec = begin(&agent, container, &start).await?;
        run(exec, &start, input, &output).await
    };
    if let Err(error) = result.await {
        let _ = output.send(Err(error.into())).await;
    }
}

async fn begin(agent: &Arc<Agent>, container: Arc<Container>, start: &ExecStart) -> Result<Exec> {
    let mut spec = container.spec.process.clone();
    if start.args.first().is_none_or(String::is_empty) {
        return Err(Error::invalid("there is no command to run"));
    }
    spec.args = start.args.iter().map(crate::sys::c_string).collect::<Result<_, _>>().asked("use an argument")?;
    spec.terminal = start.terminal;
    if start.terminal {
        // The terminal is the caller's: what the image says of TERM is not about it.
        spec.env.retain(|entry| !entry.as_bytes().starts_with(b"TERM="));
    }

    let (inside, outside, terminal) = if start.terminal {
        let (master, slave) = stdio::terminal(&container.devpts)?;
        let outside = Outside { stdout: Some(End::new(master)?), ..Outside::default() };
        (Inside::Terminal, outside, Some(slave))
    } else {
        let (inside, outside) = stdio::pipes(start.stdin)?;
        (inside, outside, None)
    };
    let (outer, inner) = channel::pair()?;
    let mut parts = Some((inside, terminal, inner));
    let child = fork(agent, &container, || {
        let Some((inside, terminal, inner)) = parts.take() else { return 128 };
        match become_program(agent, &container, &spec, inside, terminal, &inner) {
            Ok(never) => match never {},
            Err(error) => {
                let _ = inner.report(&Report::Failed(error.kind(), error.chain()), None);
                128
            }
        }
    })?;
    let exit = agent.reaper.watch(child.pid);
    drop(parts);
    if let Err(error) = outer.running().await {
        let _ = crate::sys::pidfd_kill(&child.pidfd, libc::SIGKILL);
        let _ = exit.await;
        return Err(error);
    }
    Ok(Exec { container, child, exit, outside })
}

/// Forks into the container's cgroup. A container that made cgroups of its own with controllers (systemd, docker) has
/// no processes in the one that it was given, and can have none; then its first process' is the place.
fn fork(agent: &Agent, container: &Container, mut run: impl FnMut() -> u8) -> Result<Child> {
    let first = agent.fork_in(Some(&container.pidfd), 0, &container.cgroup.open()?, &mut run);
    match first {
        Err(error) if error.is_busy() => {}
        other => return other,
    }
    let inner = super::stats::proc()
        .and_then(|proc| fs::read_to_string(format!("{proc}/{}/cgroup", container.pid.as_raw_nonzero())).ok())
        .and_then(|text| container.cgroup.of_process(&agent.cgroup_root, &text))
        .ok_or_else(|| Error::precondition("the container's first process is in no cgroup of the container"))?;
    agent.fork_in(Some(&container.pidfd), 0, &inner.open()?, run)
}

fn become_program(
    agent: &Agent,
    container: &Container,
    spec: &ProcessSpec,
    inside: Inside,
    terminal: Option<std::os::fd::OwnedFd>,
    channel: &Inner,
) -> Result<std::convert::Infallible> {
    rustix::process::setsid().doing("start a session")?;
    crate::sys::default_signals();
    process::early(spec)?;
    let spaces = ThreadNameSpaceType::MOUNT | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(container.pidfd.as_fd(), spaces).doing("enter the container")?;
    let launch = Launch::new(agent, spec, &container.user, channel);
    match (inside, terminal) {
        (Inside::Pipes { stdin, stdout, stderr }, _) => {
            launch.prepare(process::or_null(stdin)?, Some((stdout, stderr)))?;
        }
        (Inside::Terminal, Some(slave)) => launch.prepare(slave, None)?,
        (Inside::Terminal, None) => return Err(Error::invalid("there is no terminal")),
    }
    let entered = launch.enter_directory()?;
    // The container may have changed its /etc/passwd since it began.
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let root = root.doing("open the container's root")?;
    let user = Resolved { home: super::user::home(root, container.user.uid), ..container.user.clone() };
    let env = process::environment(spec, &user, &super::init::hostname());
    if let Some(users) = agent.users() {
        users.enter()?;
    }
    launch.drop_rights(entered)?;
    Err(launch.exec(&env))
}

/// How an exec came to its end.
enum Ending {
    Exited(i32),
    TimedOut,
    HungUp,
}

async fn run(exec: Exec, start: &ExecStart, mut input: Streaming<ExecInput>, output: &Output) -> Result<()> {
    let Exec { container, child, mut exit, outside } = exec;
    let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
    let say = |kind| output.send(Ok(ExecOutput { kind: Some(kind) }));
    let alive = say(Out::Started(ExecStarted { pid })).await.is_ok();

    let Outside { stdin, stdout, stderr } = outside;
    let terminal = if start.terminal { stdout.as_ref().and_then(|e| e.try_clone().ok()) } else { None };
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let out = tokio::spawn(copy(stdout, output.clone(), Out::Stdout, stopped.clone(), start.terminal));
    let err = tokio::spawn(copy(stderr, output.clone(), Out::Stderr, stopped, false));

    let limit = async {
        match start.timeout_ms {
            0 => std::future::pending().await,
            ms => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    };
    let feed = feed(&mut input, stdin, terminal, start.stdin);
    let end = if alive {
        tokio::select! {
            biased;
            code = &mut exit => Ending::Exited(code.unwrap_or(255)),
            () = limit => Ending::TimedOut,
            () = output.closed() => Ending::HungUp,
            () = feed => Ending::HungUp,
        }
    } else {
        Ending::HungUp
    };
    let (code, timed_out) = match end {
        Ending::Exited(code) => (code, false),
        Ending::TimedOut | Ending::HungUp => {
            let timed_out = matches!(end, Ending::TimedOut);
            let why = if timed_out { Why::TimedOut } else { Why::HungUp };
            descendants::kill(&container.cgroup, child.pid, &child.pidfd, why).await;
            (exit.await.unwrap_or(255), timed_out)
        }
    };
    stop.send_replace(true);
    if matches!(end, Ending::HungUp) {
        out.abort();
        err.abort();
    } else {
        let _ = tokio::join!(out, err);
    }
    // What a finished command left in the background lives on.
    let _ = say(Out::Exited(ExecExited { exit_code: code, timed_out })).await;
    Ok(())
}

/// Passes input on. Ends when the caller has gone; a caller that has only nothing more to say keeps the call.
async fn feed(input: &mut Streaming<ExecInput>, stdin: Option<End>, terminal: Option<End>, wanted: bool) {
    let mut stdin = stdin;
    loop {
        match input.message().await {
            Ok(Some(ExecInput { kind })) => match kind {
                Some(In::Stdin(bytes)) if wanted => {
                    let to = terminal.as_ref().or(stdin.as_ref());
                    let Some(to) = to else { continue };
                    if to.write_all(&bytes).await.is_err() {
                        stdin = None;
                    }
                }
                Some(In::StdinClosed(true)) => {
                    stdin = None;
                    if let (Some(terminal), true) = (&terminal, wanted) {
                        // End of file, typed.
                        let _ = terminal.write_all(&[4]).await;
                    }
                }
                Some(In::Resize(size)) => {
                    if let Some(terminal) = &terminal {
                        let _ = terminal.resize(size.width, size.height);
                    }
                }
                _ => {}
            },
            Ok(None) => {
                drop(stdin.take());
                std::future::pending::<()>().await;
            }
            Err(_) => return,
        }
    }
}

/// Carries output until its end, or, once the process has ended, until nothing more is there: what it left in the background may
/// hold the pipe open for ever.
async fn copy(
    end: Option<End>,
    output: Output,
    wrap: fn(Vec<u8>) -> Out,
    mut stopped: tokio::sync::watch::Receiver<bool>,
    terminal: bool,
) {
    let Some(end) = end else { return };
    let send = |bytes: Vec<u8>| output.send(Ok(ExecOutput { kind: Some(wrap(bytes)) }));
    loop {
        let mut buffer = vec![0u8; CHUNK];
        let over = *stopped.borrow();
        let n = if over {
            match end.try_read(&mut buffer) {
                Ok(Some(n)) => n,
                Ok(None) if terminal => match tokio::time::timeout(SETTLE, end.read(&mut buffer)).await {
                    Ok(Ok(n)) => n,
                    _ => return,
                },
                _ => return,
            }
        } else {
            tokio::select! {
                biased;
                n = end.read(&mut buffer) => match n {
                    Ok(n) => n,
                    Err(_) => return,
                },
                _ = stopped.wait_for(|s| *s) => continue,
            }
        };
        if n == 0 {
            return;
        }
        buffer.truncate(n);
        buffer.shrink_to_fit();
        if send(buffer).await.is_err() {
            return;
        }
    }
}

#![allow(unsafe_code)] // what happens between fork and exec
//! The pod's process on the node: started with what it needs and nothing else, watched by a pidfd.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, inotify};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::Serialize;
use tokio::io::unix::AsyncFd;

use crate::devices;
use crate::dirs::ProcessRecord;
use crate::error::{Doing, SandboxError};
use crate::watches::Watches;

/// Longest file of a process's standard error; a little more for a moment.
const MAX_STDERR: u64 = 256 << 10;

/// A program to start.
pub(crate) struct Program<'a> {
    /// Its file.
    pub(crate) path: &'a Path,
    /// A copy of the file that is run in its place.
    pub(crate) copy: Option<BorrowedFd<'a>>,
    /// Its arguments.
    pub(crate) args: &'a [&'a str],
    /// Descriptors that it inherits, under the same numbers; all others close.
    pub(crate) inherit: Vec<BorrowedFd<'a>>,
    /// `cgroup.procs` of the cgroup it starts in.
    pub(crate) cgroup: &'a File,
    /// Network namespace it starts in, if another.
    pub(crate) netns: Option<BorrowedFd<'a>>,
    /// Gets its standard error.
    pub(crate) stderr: &'a Path,
    /// How the kernel rates it when memory is short; the daemon's own score must not be inherited.
    pub(crate) oom_score_adj: i16,
    /// It is alone in a PID namespace, where it can name no other process, and has no file of the node as standard input or output that
    /// it could change.
    pub(crate) apart: bool,
}

/// A started program.
pub(crate) struct Started {
    /// Its identity.
    pub(crate) record: ProcessRecord,
    /// Tells when it ends.
    pub(crate) pidfd: OwnedFd,
}

/// A descriptor with `config` to read from.
pub(crate) fn config_fd<T: Serialize>(config: &T) -> Result<OwnedFd, SandboxError> {
    let step = || "pass a configuration on".to_owned();
    let bytes = serde_json::to_vec(config).doing(step)?;
    let mut file = File::from(rustix::fs::memfd_create("config", MemfdFlags::CLOEXEC).doing(step)?);
    file.write_all(&bytes).and_then(|()| file.seek(SeekFrom::Start(0))).doing(step)?;
    Ok(file.into())
}

impl Program<'_> {
    /// Starts it in a session of its own. Blocks until it has been exec'ed.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub(crate) fn start(&self) -> Result<Started, SandboxError> {
        let step = || format!("start {}", self.path.display());
        let stderr = File::options().create(true).append(true).open(self.stderr).doing(step)?;
        let inherit: Vec<i32> = self.inherit.iter().map(AsRawFd::as_raw_fd).collect();
        let cgroup = self.cgroup.as_raw_fd();
        let netns = self.netns.map(|fd| fd.as_raw_fd());
        // Looked up by the child, which has the descriptor until the exec is through.
        let copy = self.copy.map(|fd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        let mut command = Command::new(copy.as_deref().unwrap_or(self.path));
        let null = || if self.apart { devices::open("null").map(Stdio::from) } else { Ok(Stdio::null()) };
        command
            .arg0(self.path)
            .args(self.args)
            .env_clear()
            .current_dir("/")
            .stdin(null()?)
            .stdout(null()?)
            .stderr(stderr);
        let score_text = self.oom_score_adj.to_string();
        let child_side = move || {
            // SAFETY: system calls only, on descriptors that the parent keeps open until the exec, and literals.
            unsafe {
                check(libc::write(cgroup, b"0".as_ptr().cast(), 1))?;
                check(libc::setsid() as isize)?;
                let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                if score >= 0 {
                    libc::write(score, score_text.as_ptr().cast(), score_text.len());
                    libc::close(score);
                }
                if let Some(netns) = netns {
                    check(libc::setns(netns, libc::CLONE_NEWNET) as isize)?;
                }
                for fd in &inherit {
                    check(libc::fcntl(*fd, libc::F_SETFD, 0) as isize)?;
                }
            }
            Ok(())
        };
        // SAFETY: the closure makes system calls alone: it neither allocates nor takes locks.
        unsafe { command.pre_exec(child_side) };
        let child = if self.apart { born_apart(command) } else { command.spawn() }.doing(step)?;
        // The child is not reaped before the pidfd is open, so its id cannot be another's.
        let pidfd = open(child.id()).doing(step)?;
        let (_, start_time) = state(child.id()).ok_or("it is not in /proc").doing(step)?;
        Ok(Started { record: ProcessRecord { pid: child.id(), start_time }, pidfd })
    }
}

/// Starts `command` as process 1 of a PID namespace of its own.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn born_apart(mut command: Command) -> io::Result<Child> {
    let born = move || {
        // SAFETY: this changes nothing but where the children of this thread are born, which ends soon.
        unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
        command.spawn()
    };
    // The thread's children are the whole daemon's: any of its threads can wait for them.
    std::thread::Builder::new()
        .name("spawn".into())
        .spawn(born)?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
}

fn check(result: isize) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    // NONBLOCK: waitid on it does not wait.
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// The process of a record, if it still is the same one and not dead. Blocks.
pub(crate) fn find(record: ProcessRecord) -> Option<OwnedFd> {
    let pidfd = open(record.pid).ok()?;
    // Compared with the pidfd open: afterwards the id can only be this process's.
    (start_time(record.pid) == Some(record.start_time)).then_some(pidfd)
}

/// Changes how the kernel rates a process when memory is short.
///
/// # Errors
/// When the process has ended, or the kernel refuses.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn rate(record: ProcessRecord, oom_score_adj: i16) -> Result<(), SandboxError> {
    let step = || format!("set the oom_score_adj of process {} to {oom_score_adj}", record.pid);
    let path = format!("/proc/{}/oom_score_adj", record.pid);
    let mut file = File::options().write(true).open(path).doing(step)?;
    // The open file belongs to one process for good, so it is enough to see now that it is the right one.
    if start_time(record.pid) != Some(record.start_time) {
        return Err("it has ended").doing(step);
    }
    file.write_all(oom_score_adj.to_string().as_bytes()).doing(step)
}

/// The record of a running process. Blocks.
pub(crate) fn identify(pid: u32) -> Result<Started, SandboxError> {
    let step = || format!("find process {pid}");
    let pidfd = open(pid).doing(step)?;
    let start_time = start_time(pid).ok_or("it has ended").doing(step)?;
    Ok(Started { record: ProcessRecord { pid, start_time }, pidfd })
}

/// Start time of a process that is not dead.
fn start_time(pid: u32) -> Option<u64> {
    state(pid).filter(|(state, _)| !matches!(state, 'Z' | 'X')).map(|(_, start_time)| start_time)
}

/// State and start time, in ticks since boot, of a process (proc(5), `/proc/pid/stat`, fields 3 and 22).
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn state(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything but ends at the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Waits for the end of the process, and reaps it if it is our child. Answers the signal that ended it, as far as that is known:
/// the kernel tells it to the parent only, which a restarted daemon is not.
pub(crate) async fn wait(pidfd: OwnedFd) -> Option<i32> {
    let pidfd = Arc::new(pidfd);
    let ended = async {
        // SAFETY: the Arc keeps one OwnedFd open, which is the same descriptor for all its life.
        if let Ok(watched) = unsafe { AsyncFd::register(Arc::clone(&pidfd)) }
            && watched.readable().await.is_ok()
        {
            return;
        }
        // The kernel's limit of watches is reached: a thread waits instead.
        let pidfd = Arc::clone(&pidfd);
        let _ = tokio::task::spawn_blocking(move || wait_on_this_thread(&pidfd)).await;
    };
    ended.await;
    reap(pidfd.as_fd())
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn wait_on_this_thread(pidfd: &OwnedFd) {
    while poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], None) == Err(Errno::INTR) {}
}

/// Reaps a dead child; anything else is left alone. Answers the signal that ended it.
fn reap(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let ended = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    ended.ok().flatten()?.terminating_signal()
}

/// Keeps the file with a process's standard error short, for ever: a guest may make its monitor complain as often as it likes.
pub(crate) async fn keep_short(stderr: &Path, watches: &Watches) {
    if let Err(error) = cut(stderr, watches).await {
        tracing::warn!(file = %stderr.display(), %error, "cannot keep a pod's standard error short");
    }
    std::future::pending().await
}

async fn cut(stderr: &Path, watches: &Watches) -> io::Result<()> {
    let (watches, path) = (watches.clone(), stderr.to_owned());
    let watching = tokio::task::spawn_blocking(move || watches.watch(&path, inotify::WatchFlags::MODIFY));
    let watch = watching.await.map_err(io::Error::other)??;
    let file = tokio::fs::OpenOptions::new().write(true).open(stderr).await?;
    while watch.changed().await {
        if file.metadata().await?.len() > MAX_STDERR {
            file.set_len(0).await?; // the writer appends
        }
        // One look a second is enough, however much is written.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// The last of what the process had to say, at most 2 KiB. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn last_words(stderr: &Path) -> String {
    const LIMIT: u64 = 2048;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(stderr)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LIMIT)))?;
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LIMIT), &mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests;

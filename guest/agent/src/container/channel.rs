//! The socket between the agent and a container's process that has not run its program yet.
//!
//! ```text
//!  process ── Terminal (fd), Devpts (fd) ──► agent     once each, if there are any
//!  process ── Ready ───────────────────────► agent     everything is set up: CREATED
//!  agent   ── Go ──────────────────────────► process   StartContainer
//!  process ── Failed ──────────────────────► agent     at any time; then it exits with status 128
//!  process ── end of file ─────────────────► agent     the program runs (the socket is close-on-exec)
//! ```
//!
//! An exec has only the last two. The process dies when the agent's end is closed.

use std::os::fd::{AsFd, OwnedFd};

use cofferdam_proto::packet::{self, PacketError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use super::user::Resolved;
use crate::error::{Doing, Error, Kind, Result};

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The attached descriptor is the agent's end of its terminal.
    Terminal,
    /// The attached descriptor is its devpts.
    Devpts,
    /// It waits for [`Go`].
    Ready(Resolved),
    /// It ends.
    Failed(Kind, String),
}

/// To the process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Go;

/// The process' end.
#[derive(Debug)]
pub struct Inner(OwnedFd);

/// The agent's end.
#[derive(Debug)]
pub struct Outer(AsyncFd<OwnedFd>);

/// Both ends.
///
/// # Errors
/// Without descriptors.
pub fn pair() -> Result<(Outer, Inner)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .doing("make a socket pair")?;
    rustix::io::ioctl_fionbio(&ours, true).doing("make a socket non-blocking")?;
    Ok((Outer(crate::sys::watch(ours).doing("watch a socket")?), Inner(theirs)))
}

impl Inner {
    /// Tells the agent something.
    ///
    /// # Errors
    /// When the agent is gone.
    pub fn report(&self, report: &Report, fd: Option<&OwnedFd>) -> Result<()> {
        packet::send(&self.0, report, fd.map(AsFd::as_fd)).doing("report to the agent")
    }

    /// Waits until the program may run.
    ///
    /// # Errors
    /// When the agent is gone or the container is removed.
    pub fn wait_for_go(&self) -> Result<()> {
        match packet::recv::<Go>(&self.0).doing("wait for the start")? {
            Some(_) => Ok(()),
            None => Err(Error::precondition("the container was removed before it was started")),
        }
    }

    /// Its number, which stays open until exec.
    pub fn number(&self) -> u32 {
        use std::os::fd::AsRawFd;
        self.0.as_raw_fd() as u32
    }
}

impl Outer {
    /// The next report; `None` when the program runs, or the process is gone.
    ///
    /// # Errors
    /// When the process sent nonsense.
    pub async fn next(&self) -> Result<Option<(Report, Option<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await.doing("wait for a container's process")?;
            match packet::recv(self.0.get_ref()) {
                Err(PacketError::Socket(rustix::io::Errno::AGAIN)) => ready.clear_ready(),
                Err(PacketError::Socket(rustix::io::Errno::CONNRESET)) => return Ok(None),
                other => return other.doing("hear from a container's process"),
            }
        }
    }

    /// Lets the program run, and waits until it does.
    ///
    /// # Errors
    /// What kept it from running.
    pub async fn go(&self) -> Result<()> {
        packet::send(self.0.get_ref(), &Go, None)
            .map_err(|_| Error::precondition("the container's process has ended before it was started"))?;
        self.running().await
    }

    /// Waits until the program runs.
    ///
    /// # Errors
    /// What kept it from running.
    pub async fn running(&self) -> Result<()> {
        match self.next().await? {
            None => Ok(()),
            Some((Report::Failed(kind, message), _)) => Err(Error::new(kind, message)),
            Some((other, _)) => Err(Error::new(Kind::Internal, format!("unexpected report {other:?}"))),
        }
    }
}

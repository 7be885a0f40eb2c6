//! Standard input and output: pipes and terminals whose other ends the agent holds.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;

use crate::error::{Doing, Result};

/// The process' ends.
#[derive(Debug)]
pub enum Inside {
    /// Three descriptors; `None` is /dev/null.
    Pipes {
        /// 0
        stdin: Option<OwnedFd>,
        /// 1
        stdout: OwnedFd,
        /// 2
        stderr: OwnedFd,
    },
    /// The terminal is made inside.
    Terminal,
}

/// The agent's ends.
#[derive(Debug, Default)]
pub struct Outside {
    /// Writes to its standard input.
    pub stdin: Option<End>,
    /// Its standard output, or its terminal's.
    pub stdout: Option<End>,
    /// Its standard error.
    pub stderr: Option<End>,
}

/// One non-blocking end of a pipe, or of a terminal.
#[derive(Debug)]
pub struct End(AsyncFd<OwnedFd>);

/// Pipes for a process.
///
/// # Errors
/// Without descriptors.
pub fn pipes(stdin: bool) -> Result<(Inside, Outside)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC).doing("make a pipe");
    let (mut inner_in, mut outer_in) = (None, None);
    if stdin {
        let (read, write) = pipe()?;
        inner_in = Some(read);
        outer_in = Some(End::new(write)?);
    }
    let (out_read, stdout) = pipe()?;
    let (err_read, stderr) = pipe()?;
    let outside = Outside { stdin: outer_in, stdout: Some(End::new(out_read)?), stderr: Some(End::new(err_read)?) };
    Ok((Inside::Pipes { stdin: inner_in, stdout, stderr }, outside))
}

/// The null device of the root that this process is in.
///
/// # Errors
/// When it is missing or something else.
pub fn null() -> Result<OwnedFd> {
    let fd = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .doing("open the container's /dev/null")?;
    let stat = rustix::fs::fstat(&fd).doing("look at the container's /dev/null")?;
    if stat.st_rdev != rustix::fs::makedev(1, 3) {
        return Err(crate::error::Error::invalid("the container's /dev/null is not the null device"));
    }
    Ok(fd)
}

/// A new terminal of the instance `devpts`: the agent's end, and the process'.
///
/// # Errors
/// When there are too many.
pub fn terminal(devpts: impl AsFd) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::openat(devpts, "ptmx", flags, Mode::empty()).doing("make a terminal")?;
    unlockpt(&master).doing("unlock a terminal")?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).doing("open a terminal")?;
    Ok((master, slave))
}

impl End {
    /// Watches `fd`.
    ///
    /// # Errors
    /// Without memory.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).doing("make a pipe non-blocking")?;
        Ok(Self(crate::sys::watch(fd).doing("watch a pipe")?))
    }

    /// A second handle of the same terminal.
    ///
    /// # Errors
    /// Without descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(self.0.get_ref(), 3).doing("copy a descriptor")?;
        Self::new(fd)
    }

    /// Waits until something can be read.
    ///
    /// # Errors
    /// As epoll.
    pub async fn wait_readable(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        guard.retain_ready();
        Ok(())
    }

    /// What is there now, 0 bytes at the end; `None` when there is nothing yet.
    ///
    /// # Errors
    /// As read; the end of a terminal is no error.
    pub fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(self.0.get_ref(), buffer) {
            Ok(n) => Ok(Some(n)),
            Err(rustix::io::Errno::IO) => Ok(Some(0)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Same, for one who then waits: what is not there now will wake it.
    ///
    /// # Errors
    /// As read.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.try_io(tokio::io::Interest::READABLE, |fd| match rustix::io::read(fd, buffer) {
            Err(rustix::io::Errno::IO) => Ok(0),
            Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other?),
        }) {
            Ok(n) => Ok(Some(n)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads; 0 bytes are the end.
    ///
    /// # Errors
    /// As read.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match self.try_read(buffer)? {
                Some(n) => return Ok(n),
                None => guard.clear_ready(),
            }
        }
    }

    /// Writes all.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Says how large the window is.
    ///
    /// # Errors
    /// When it is no terminal.
    pub fn resize(&self, width: u32, height: u32) -> io::Result<()> {
        let size = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let window = Winsize { ws_row: size(height), ws_col: size(width), ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), window)?)
    }
}

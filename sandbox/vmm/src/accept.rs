//! Listening sockets of the main loop, which must not make it spin.
//!
//! A connection that cannot be accepted since there is no descriptor for it stays in the queue, and the listener stays
//! readable: a loop that only reports the error would do so for ever. So each listener holds one spare descriptor. When
//! there is no other one, it gives that up, accepts the connection, closes it and takes a spare again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;

/// How long the loop rests when even the spare descriptor is gone.
const REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// A listening socket.
pub(crate) struct Listener {
    socket: OwnedFd,
    spare: Option<OwnedFd>,
}

impl Listener {
    /// Takes `socket` over; it does not block from now on.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let spare = Some(socket.try_clone()?);
        Ok(Self { socket, spare })
    }

    /// The next connection, which does not block; `None` when there is none.
    ///
    /// # Errors
    /// When there is one and it cannot be accepted. It is closed then.
    pub(crate) fn accept(&mut self) -> io::Result<Option<OwnedFd>> {
        match self.accept_one() {
            Ok(socket) => Ok(Some(socket)),
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => Ok(None),
            // Linux wants the descriptor before it looks whether there is a connection.
            Err(error) => {
                if self.refuse_one() {
                    Err(error.into())
                } else {
                    Ok(None)
                }
            }
        }
    }

    fn accept_one(&self) -> rustix::io::Result<OwnedFd> {
        rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    }

    /// Accepts and closes the next connection; false when there is none.
    fn refuse_one(&mut self) -> bool {
        self.spare = None;
        let refused = self.accept_one();
        if !matches!(refused, Ok(_) | Err(Errno::AGAIN)) {
            // The node itself is out of descriptors or memory. A signal may end the rest early, which does no harm.
            let _ = poll(&mut [], Some(&REST));
        }
        let some = !matches!(refused, Err(Errno::AGAIN));
        drop(refused);
        self.spare = self.socket.try_clone().ok();
        some
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    const CHILD: &str = "COFFERDAM_TEST_WITHOUT_DESCRIPTORS";

    /// Runs in a process of its own, whose limit it lowers.
    #[test]
    fn without_descriptors_connections_are_refused_and_nothing_spins() {
        if std::env::var_os(CHILD).is_some() {
            return in_child();
        }
        let name = "accept::tests::without_descriptors_connections_are_refused_and_nothing_spins";
        let child = Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(CHILD, "1").output();
        let child = child.unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    }

    fn in_child() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut listener = Listener::new(UnixListener::bind(&path).unwrap().into()).unwrap();
        let mut clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let limit = Rlimit { current: Some(64), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| listener.as_fd().try_clone_to_owned().ok()).collect();
        assert!(held.len() > 10);

        let begun = Instant::now();
        for client in &mut clients {
            let error = listener.accept().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            assert_eq!(io::Read::read(client, &mut [0]).unwrap(), 0, "the client hears of it");
        }
        assert!(listener.accept().unwrap().is_none(), "nothing is left that would wake the loop");
        assert!(begun.elapsed() < Duration::from_secs(2));
        drop(held);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(listener.accept().unwrap().is_some());
    }
}

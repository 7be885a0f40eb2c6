//! Container logs, from the guest's frames to the files that the kubelet reads (`cofferdam_proto::sink`).
//!
//! The daemon hands over one open file per container. Output of a container that has none yet is
//! not taken, so the guest's credit runs out and its agent waits; nothing is lost and at most one
//! connection's buffer is held here. A thread of its own writes (`writer`), so a log disk that is
//! slow, or never answers, makes the programs wait whose output it does not take, and nothing else
//! of the pod. Records are written whole, so a new file takes over at a record's boundary.

mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod state;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use cofferdam_proto::sink::SinkRequest;
use vmm_sys_util::eventfd::EventFd;

use crate::event_loop::lock;
use crate::lock_in::{ThreadKind, start_thread};
use file::LogFile;
pub(crate) use state::{Progress, StreamEnd};
use writer::Shared;

/// Length of a container id: 64 hex digits.
const ID_LENGTH: usize = 64;
/// Containers with a file at once.
const MAX_FILES: usize = 1024;
/// Requests of the daemon that wait at once for a disk that does not answer; each holds a file.
const MAX_REQUESTS: usize = 64;
/// Bytes of a connection that are written until the main thread is told.
pub(crate) const TOLD_AFTER: usize = 32 << 10;
/// Stack of the writer.
const STACK: usize = 64 << 10;

/// The files, and the thread that writes them.
pub(crate) struct LogSink {
    shared: Arc<Shared>,
    /// Starts with the first file or connection.
    writer: Option<JoinHandle<()>>,
    containers: HashSet<String>,
}

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    /// The id is none.
    #[error("a container id is {ID_LENGTH} lower-case hex digits, not {0:?}")]
    Id(String),
    /// No file came with it.
    #[error("the log of container {0} came without a file")]
    NoFile(String),
    /// What came is not a file.
    #[error("the log of container {0} must be a regular file")]
    NotRegular(String),
    /// Too many.
    #[error("there are {MAX_FILES} logs already")]
    TooMany,
    /// The disk does not answer.
    #[error("the disk of the logs does not answer: {MAX_REQUESTS} requests wait for it already")]
    Busy,
    /// There is no writer.
    #[error("cannot start the thread that writes logs")]
    Thread(#[source] io::Error),
}

/// A request that was accepted.
pub(crate) struct Ticket(Arc<AtomicBool>);

impl Ticket {
    /// Whether it is done: everything that came before it is written, and an old file is closed.
    pub(crate) fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl LogSink {
    /// Without files.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { shared: Arc::new(Shared::new()?), writer: None, containers: HashSet::new() })
    }

    /// Accepts a request of the daemon. [`Self::changed`] tells when it is done.
    pub(crate) fn request(&mut self, request: &SinkRequest, file: Option<OwnedFd>) -> Result<Ticket, SinkError> {
        let (SinkRequest::Open { container } | SinkRequest::Close { container }) = request;
        if !is_id(container.as_bytes()) {
            return Err(SinkError::Id(container.chars().take(ID_LENGTH + 1).collect()));
        }
        if matches!(request, SinkRequest::Close { .. }) {
            return self.change(container, None);
        }
        let file = file.ok_or_else(|| SinkError::NoFile(container.clone()))?;
        let file = LogFile::new(file).ok_or_else(|| SinkError::NotRegular(container.clone()))?;
        self.change(container, Some(file))
    }

    fn change(&mut self, container: &str, file: Option<LogFile>) -> Result<Ticket, SinkError> {
        if file.is_some() && !self.containers.contains(container) && self.containers.len() >= MAX_FILES {
            return Err(SinkError::TooMany);
        }
        if lock(&self.shared.state).requests >= MAX_REQUESTS {
            return Err(SinkError::Busy);
        }
        self.start().map_err(SinkError::Thread)?;
        if file.is_some() {
            self.containers.insert(container.to_owned());
        } else {
            self.containers.remove(container);
        }
        Ok(Ticket(self.shared.request(container, file)))
    }

    fn start(&mut self) -> io::Result<()> {
        if self.writer.is_none() {
            let shared = self.shared.clone();
            self.writer = Some(start_thread(ThreadKind::Logs, "logs", STACK, move || shared.run())?);
        }
        Ok(())
    }

    /// The node's end of a new connection from the guest; `token` is what [`Self::take_moved`]
    /// tells.
    pub(crate) fn stream(&mut self, token: u32) -> io::Result<LogStream> {
        self.start()?;
        Ok(LogStream { number: lock(&self.shared.state).add(token), shared: self.shared.clone() })
    }

    /// How many connections there are, those included whose rest is still to be written.
    pub(crate) fn count(&self) -> usize {
        lock(&self.shared.state).count()
    }

    /// Readable once connections can go on.
    pub(crate) fn moved(&self) -> &EventFd {
        &self.shared.moved
    }

    /// The connections that can go on, or are over.
    pub(crate) fn take_moved(&self) -> Vec<u32> {
        let mut state = lock(&self.shared.state);
        let _ = self.shared.moved.read();
        std::mem::take(&mut state.moved)
    }

    /// Readable once a request is done.
    pub(crate) fn changed(&self) -> Arc<EventFd> {
        self.shared.changed.clone()
    }

    /// Waits until everything is written. No connection may be left.
    pub(crate) fn finish(&mut self) {
        self.shared.stop();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            complain!("log: the writer panicked");
        }
    }

    /// Waits until the writer has nothing to do.
    #[cfg(test)]
    pub(crate) fn wait_idle(&self) {
        while !lock(&self.shared.state).is_idle() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Gives a container a file of any kind, one that blocks too.
    #[cfg(test)]
    pub(crate) fn open_unchecked(&mut self, container: &str, fd: OwnedFd) -> Ticket {
        self.change(container, Some(LogFile::unchecked(fd))).unwrap()
    }
}

impl Drop for LogSink {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// The node's end of a connection from the guest. When it is dropped, what the guest sent is
/// written all the same, if the container has a file.
pub(crate) struct LogStream {
    shared: Arc<Shared>,
    number: u64,
}

impl LogStream {
    /// Takes what the guest sent; the caller sees to it that no more waits than it has credit for.
    pub(crate) fn push(&self, bytes: &[u8]) {
        self.shared.change(self.number, |stream| stream.push(bytes));
    }

    /// The guest sends no more.
    pub(crate) fn end(&self) {
        self.shared.change(self.number, |stream| stream.end());
    }

    /// How far it is written.
    pub(crate) fn progress(&self) -> Progress {
        self.shared.change(self.number, |_| {})
    }
}

impl Drop for LogStream {
    fn drop(&mut self) {
        self.shared.change(self.number, |stream| stream.forget());
    }
}

fn is_id(bytes: &[u8]) -> bool {
    bytes.len() == ID_LENGTH && bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

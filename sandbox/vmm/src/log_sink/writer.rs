//! The thread that writes the logs, and what it shares with the main thread.
//!
//! ```text
//! main thread      bytes of a connection, at most its credit ->   the writer: records, into files
//!                  requests of the daemon ->
//!                  <- bytes that were taken (which are new credit), ends, requests that are done
//! ```
//!
//! Work is done in the order in which it came, so a request finds everything written that came
//! before it. No lock is held while a file is written.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::LogFile;
use super::state::{Change, Changing, Job, Output, Progress, State};
use super::stream::Files;
use crate::event_loop::lock;

/// What the main thread and the writer share.
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    wake: Condvar,
    /// Readable once there are tokens in [`State::moved`].
    pub(super) moved: EventFd,
    /// Readable once a request of the daemon is done.
    pub(super) changed: Arc<EventFd>,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (state, wake) = (Mutex::default(), Condvar::new());
        Ok(Self { state, wake, moved: event()?, changed: Arc::new(event()?) })
    }

    /// Changes a connection and has the writer look at it.
    pub(super) fn change(&self, number: u64, change: impl FnOnce(&mut Changing<'_>)) -> Progress {
        let (progress, work) = lock(&self.state).change(number, change);
        if work {
            self.wake.notify_one();
        }
        progress
    }

    /// Has the writer replace a container's file, or forget the container.
    pub(super) fn request(&self, container: &str, file: Option<LogFile>) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let change = Change { container: container.to_owned(), file, done: done.clone() };
        lock(&self.state).request(change);
        self.wake.notify_one();
        done
    }

    /// Lets the writer end once nothing is left to do.
    pub(super) fn stop(&self) {
        lock(&self.state).stopping = true;
        self.wake.notify_one();
    }

    /// The writer's life.
    pub(super) fn run(&self) {
        let mut files = Files::new();
        while let Some(job) = self.next() {
            match job {
                Job::Stream(number, output) => self.serve(number, output, &mut files),
                Job::Change(Change { container, file: Some(file), done }) => {
                    drop(files.insert(container, file)); // the old one is closed when it is done
                    self.done(&done, None);
                }
                Job::Change(Change { container, file: None, done }) => {
                    drop(files.remove(&container));
                    self.done(&done, Some(&container));
                }
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = lock(&self.state);
        loop {
            match state.next() {
                None if state.stopping => return None,
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                job => return job,
            }
        }
    }

    /// Writes what a connection has.
    fn serve(&self, number: u64, output: Output, files: &mut Files) {
        let Output { mut parser, bytes, ends } = output;
        let taken = parser.take(&bytes, files);
        let whole = ends && taken.as_ref().is_ok_and(|taken| *taken == bytes.len());
        if whole {
            parser.finish(files);
        }
        let mut state = lock(&self.state);
        if state.served(number, parser, |stream| stream.took(bytes, taken, whole)) {
            signal(&self.moved);
        }
    }

    fn done(&self, done: &AtomicBool, closed: Option<&str>) {
        let mut state = lock(&self.state);
        if state.done(closed) {
            signal(&self.moved);
        }
        done.store(true, Ordering::Release);
        signal(&self.changed);
    }
}

fn signal(event: &EventFd) {
    if let Err(error) = event.write(1) {
        complain!("log: cannot wake the main loop: {error}");
    }
}

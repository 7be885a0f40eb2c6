//! How a VM ends: the first reason wins, whichever thread has it, and stops the main loop.
//!
//! The process must end soon after its guest, also when the main loop or a device's thread hangs on the node's files. So the first
//! reason starts a thread that ends the process when its time is up, unless it has ended by itself.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cofferdam_proto::monitor::ExitReason;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd, lock};
use crate::lock_in::{ThreadKind, start_thread};

/// Stack of the thread that ends the process; writing the exit report is the deepest that it goes.
const STACK: usize = 128 << 10;

/// Why the VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Class.
    pub(crate) reason: ExitReason,
    /// Detail for people.
    pub(crate) detail: String,
}

/// Where the end is told. Shared by all threads.
pub(crate) struct Ending {
    first: Mutex<Option<End>>,
    event: EventFd,
    guard: Mutex<Option<Guard>>,
}

/// What is to be done some time after the end.
struct Guard {
    limit: Duration,
    overdue: Box<dyn FnOnce(&End) + Send>,
}

impl Ending {
    /// Nothing ended yet.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Self { first: Mutex::new(None), event, guard: Mutex::new(None) }))
    }

    /// Calls `overdue` when the process is still there `limit` after the end, on a thread of its own.
    pub(crate) fn guard(&self, limit: Duration, overdue: impl FnOnce(&End) + Send + 'static) {
        *lock(&self.guard) = Some(Guard { limit, overdue: Box::new(overdue) });
    }

    /// Ends the VM; only the first call counts.
    pub(crate) fn finish(&self, reason: ExitReason, detail: impl Into<String>) {
        let mut first = lock(&self.first);
        if first.is_none() {
            let end = first.insert(End { reason, detail: detail.into() });
            if let Some(guard) = lock(&self.guard).take() {
                guard.start(end.clone());
            }
            if let Err(error) = self.event.write(1) {
                complain!("cannot wake the main loop for the end: {error}");
            }
        }
    }

    /// The end, if there was one.
    pub(crate) fn end(&self) -> Option<End> {
        lock(&self.first).clone()
    }
}

impl Guard {
    fn start(self, end: End) {
        let body = move || {
            let until = Instant::now() + self.limit;
            while let Some(rest) = until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
                std::thread::park_timeout(rest);
            }
            (self.overdue)(&end);
        };
        if let Err(error) = start_thread(ThreadKind::End, "end", STACK, body) {
            complain!("cannot start the thread that limits how long the end takes: {error}");
        }
    }
}

/// Stops the main loop at the end.
pub(crate) struct EndWatcher(pub(crate) Arc<Ending>);

impl EventHandler for EndWatcher {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(event_fd(&self.0.event), 0, EventFlags::IN)
    }

    fn ready(&mut self, _token: u32, _events: EventFlags) -> Flow {
        Flow::Stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;

    #[test]
    fn an_end_that_takes_too_long_is_made() {
        let ending = Ending::new().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        ending.guard(Duration::from_millis(20), move |end| sender.send(end.clone()).unwrap());
        assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "nothing ended yet");
        let told = Instant::now();
        ending.finish(ExitReason::Killed, "one");
        ending.finish(ExitReason::PowerOff, "two");
        let end = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(end, End { reason: ExitReason::Killed, detail: "one".into() });
        assert!(told.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn the_first_reason_wins_and_stops_the_loop() {
        let ending = Ending::new().unwrap();
        let mut events = EventLoop::new().unwrap();
        events.add(Arc::new(Mutex::new(EndWatcher(ending.clone())))).unwrap();
        assert_eq!(ending.end(), None);
        let other = ending.clone();
        let thread = std::thread::spawn(move || other.finish(ExitReason::TripleFault, "one"));
        events.run().unwrap();
        thread.join().unwrap();
        ending.finish(ExitReason::Killed, "two");
        assert_eq!(ending.end(), Some(End { reason: ExitReason::TripleFault, detail: "one".into() }));
    }
}

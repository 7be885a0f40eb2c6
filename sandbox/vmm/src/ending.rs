//! How a VM ends: the first reason wins, whichever thread has it, and stops the main loop.

use std::io;
use std::sync::{Arc, Mutex};

use cofferdam_proto::monitor::ExitReason;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd, lock};

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
}

impl Ending {
    /// Nothing ended yet.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { first: Mutex::new(None), event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? }))
    }

    /// Ends the VM; only the first call counts.
    pub(crate) fn finish(&self, reason: ExitReason, detail: impl Into<String>) {
        let mut first = lock(&self.first);
        if first.is_none() {
            *first = Some(End { reason, detail: detail.into() });
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

//! The main loop: one blocking epoll over every descriptor that the main thread serves.
//!
//! A handler is added once, and gets a [`Poller`] of its own by which it adds, changes and removes descriptors at any time and
//! from any thread. No time-outs: when nothing happens the thread sleeps.
//!
//! Handlers live in `Arc<Mutex<_>>`, because the vCPU threads reach the same devices through the
//! transport's registers. **Stale events**: an event that was fetched before its descriptor was removed is
//! still delivered, so `ready` must bear a token whose descriptor is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll;
pub(crate) use rustix::event::epoll::EventFlags;

/// How many events one wait fetches.
const BATCH: usize = 32;

/// Something with descriptors in the main loop.
pub(crate) trait EventHandler: Send {
    /// Called once, when the handler is added; keep `poller` to add descriptors with.
    fn register(&mut self, poller: Poller) -> io::Result<()>;
    /// `events` happened on the descriptor that was added with `token`.
    fn ready(&mut self, token: u32, events: EventFlags) -> Flow;
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Wait for the next event.
    Continue,
    /// [`EventLoop::run`] returns.
    Stop,
}

/// Adds and removes one handler's descriptors. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Poller {
    epoll: Arc<OwnedFd>,
    handler: u32,
}

impl Poller {
    fn data(&self, token: u32) -> epoll::EventData {
        epoll::EventData::new_u64(u64::from(self.handler) << 32 | u64::from(token))
    }

    /// Starts to watch `fd` for `events`, which reach the handler with `token`.
    pub(crate) fn add(&self, fd: impl AsFd, token: u32, events: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, self.data(token), events)?)
    }

    /// Starts to watch all of `fds` for input, each with its token, or none of them.
    pub(crate) fn add_all(&self, fds: &[(BorrowedFd<'_>, u32)]) -> io::Result<()> {
        for (done, (fd, token)) in fds.iter().enumerate() {
            if let Err(error) = self.add(fd, *token, EventFlags::IN) {
                // What stayed would be reported to a device that does not expect it, for ever.
                fds[..done].iter().for_each(|(fd, _)| drop(self.remove(fd)));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Changes what `fd` is watched for (also re-arms `ONESHOT`, and re-checks `ET`).
    pub(crate) fn modify(&self, fd: impl AsFd, token: u32, events: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, self.data(token), events)?)
    }

    /// Stops watching `fd`; one that is not watched is no error. (Closing the last reference does the same.)
    pub(crate) fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        match epoll::delete(&self.epoll, fd) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The loop itself.
pub(crate) struct EventLoop {
    epoll: Arc<OwnedFd>,
    handlers: Vec<Arc<Mutex<dyn EventHandler>>>,
}

impl EventLoop {
    /// An empty loop.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?), handlers: Vec::new() })
    }

    /// Adds a handler, and calls its [`EventHandler::register`].
    pub(crate) fn add(&mut self, handler: Arc<Mutex<dyn EventHandler>>) -> io::Result<()> {
        let number = u32::try_from(self.handlers.len()).map_err(io::Error::other)?;
        lock(&handler).register(Poller { epoll: self.epoll.clone(), handler: number })?;
        self.handlers.push(handler);
        Ok(())
    }

    /// Serves events until a handler answers [`Flow::Stop`].
    pub(crate) fn run(&self) -> io::Result<()> {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            if self.turn(&mut batch)? == Flow::Stop {
                return Ok(());
            }
        }
    }

    /// Serves what there is without waiting; answers whether there was something.
    #[cfg(test)]
    pub(crate) fn turn_now(&self) -> bool {
        crate::lock_in::run_as(crate::lock_in::ThreadKind::Main, || self.turn_unfiltered())
    }

    /// As `turn_now`, without the filter of the main thread.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn turn_unfiltered(&self) -> bool {
        let mut batch = Vec::with_capacity(BATCH);
        let served = self.serve(&mut batch, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }));
        served.is_ok() && !batch.is_empty()
    }

    /// Waits once and serves what came.
    fn turn(&self, batch: &mut Vec<epoll::Event>) -> io::Result<Flow> {
        self.serve(batch, None)
    }

    fn serve(&self, batch: &mut Vec<epoll::Event>, limit: Option<&rustix::event::Timespec>) -> io::Result<Flow> {
        batch.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(batch), limit) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Flow::Continue),
            Err(error) => return Err(error.into()),
        }
        for event in batch.iter() {
            let data = event.data.u64();
            let (handler, token) = ((data >> 32) as usize, data as u32);
            if let Some(handler) = self.handlers.get(handler)
                && lock(handler).ready(token, event.flags) == Flow::Stop
            {
                return Ok(Flow::Stop);
            }
        }
        Ok(Flow::Continue)
    }
}

/// The descriptor of a `vmm_sys_util` eventfd, which knows only `AsRawFd`.
pub(crate) fn event_fd(fd: &vmm_sys_util::eventfd::EventFd) -> BorrowedFd<'_> {
    #![allow(unsafe_code)] // a borrow of a descriptor that the reference keeps open
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor stays open as long as `fd`, which the returned borrow outlives not.
    unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) }
}

/// Locks, also after a panic elsewhere: the monitor aborts on panics, so a poisoned lock only exists in tests.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Recorder {
        event: EventFd,
        poller: Option<Poller>,
        seen: Vec<u32>,
        stop_at: usize,
    }

    impl EventHandler for Recorder {
        fn register(&mut self, poller: Poller) -> io::Result<()> {
            poller.add(event_fd(&self.event), 7, EventFlags::IN)?;
            self.poller = Some(poller);
            Ok(())
        }
        fn ready(&mut self, token: u32, _events: EventFlags) -> Flow {
            self.event.read().unwrap();
            self.seen.push(token);
            if self.seen.len() == self.stop_at { Flow::Stop } else { Flow::Continue }
        }
    }

    #[test]
    fn descriptors_are_watched_all_or_none() {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let poller = Poller { epoll, handler: 0 };
        let [one, two] = [0, 1].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        let (one, two) = (event_fd(&one), event_fd(&two));
        assert!(poller.add_all(&[(one, 0), (two, 1), (one, 2)]).is_err(), "one is there already");
        poller.add_all(&[(one, 0), (two, 1)]).unwrap();
    }

    #[test]
    fn events_reach_their_handler_and_stop_ends_the_loop() {
        let recorders: Vec<_> = [2, usize::MAX]
            .map(|stop_at| {
                let event = EventFd::new(EFD_NONBLOCK).unwrap();
                Arc::new(Mutex::new(Recorder { event, poller: None, seen: vec![], stop_at }))
            })
            .into();
        let mut events = EventLoop::new().unwrap();
        for recorder in &recorders {
            events.add(recorder.clone()).unwrap();
        }
        let writers: Vec<_> = recorders.iter().map(|r| lock(r).event.try_clone().unwrap()).collect();
        let mut batch = Vec::with_capacity(4);
        writers[1].write(1).unwrap();
        assert_eq!(events.turn(&mut batch).unwrap(), Flow::Continue);
        writers[0].write(1).unwrap();
        assert_eq!(events.turn(&mut batch).unwrap(), Flow::Continue);
        writers[0].write(1).unwrap();
        events.run().unwrap();
        assert_eq!(lock(&recorders[0]).seen, [7, 7]);
        assert_eq!(lock(&recorders[1]).seen, [7]);
        let removed = lock(&recorders[1]);
        removed.poller.as_ref().unwrap().remove(event_fd(&removed.event)).unwrap();
        removed.poller.as_ref().unwrap().remove(event_fd(&removed.event)).unwrap();
    }
}

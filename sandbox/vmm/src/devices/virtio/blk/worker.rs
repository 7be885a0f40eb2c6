//! The device's thread: sleeps until the guest kicks, serves, sleeps.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::Disk;
use super::state::BlkState;
use crate::devices::virtio::{Activation, Buffers};
use crate::event_loop::event_fd;
use crate::lock_in::{ThreadKind, start_thread};

/// Stack of the thread; a request needs a few KiB.
const STACK: usize = 128 << 10;

/// A running thread.
pub(super) struct Worker {
    stop: EventFd,
    /// Gives back what it served.
    thread: JoinHandle<Activation>,
}

impl Worker {
    /// Starts to serve `active`'s one queue.
    pub(super) fn start(active: Activation, file: Arc<File>, state: BlkState, lasts: bool) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let body = move || {
            let mut active = active;
            run(&mut active, &Disk::new(&file, &state, lasts), &stopped);
            active
        };
        let thread = start_thread(ThreadKind::Block, "blk", STACK, body)?;
        Ok(Self { stop, thread })
    }

    /// Has the thread end after the request that it is at; the rest stays in the queue.
    pub(super) fn tell_to_stop(&self) -> bool {
        let told = self.stop.write(1);
        if let Err(error) = &told {
            complain!("blk: cannot stop the worker: {error}");
        }
        told.is_ok()
    }

    /// Whether the thread has ended.
    pub(super) fn has_stopped(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread after the request that it is at, waits for that, and gives back what it
    /// served.
    pub(super) fn stop(self) -> Option<Activation> {
        if !self.tell_to_stop() {
            return None;
        }
        let served = self.thread.join();
        if served.is_err() {
            complain!("blk: the worker panicked");
        }
        served.ok()
    }
}

fn run(active: &mut Activation, disk: &Disk<'_>, stop: &EventFd) {
    let Activation { memory, queues, interrupt, .. } = active;
    let line = &mut queues[0];
    loop {
        let (kick, stop) = (event_fd(&line.kick), event_fd(stop));
        let mut ready = [PollFd::new(&kick, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                complain!("blk: cannot wait for requests: {error}");
                return;
            }
        }
        if !ready[1].revents().is_empty() {
            return;
        }
        if !ready[0].revents().is_empty() {
            line.take_kick();
            let serve = |chain| Buffers::new(memory, chain).map_or(0, |buffers| disk.serve(buffers));
            line.serve_chains(memory, interrupt, serve);
        }
    }
}

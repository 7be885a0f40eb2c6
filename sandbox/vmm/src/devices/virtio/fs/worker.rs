//! The device's threads: they sleep until the guest kicks, serve, sleep.
//!
//! All of them wait for the same kicks, of which each wakes one. A thread takes one request off the
//! queue, carries it out without any lock, and gives it back; before it does so it sees to it that
//! another thread listens. So there are as many threads as requests that are carried out at once,
//! and one; those that were idle for long end. [`super::places`] keeps one file system from taking
//! all of them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use rustix::event::{Timespec, epoll};
use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::QUEUE_SIZES;
use super::extra;
use super::places::{Place, Places};
use super::request::{self, MAX_REQUEST};
use super::share::Share;
use crate::counters::FILE_REQUESTS;
use crate::devices::virtio::{Activation, Buffers, Interrupt, QueueLine};
use crate::event_loop::{event_fd, lock};
use crate::lock_in::{ThreadKind, start_thread};

/// Stack of a thread; the deepest request needs some 20 KiB.
const STACK: usize = 256 << 10;
/// Threads at most: that many requests of all file systems are carried out at once.
const MAX_THREADS: usize = 32;
/// Threads that stay when there is nothing to do.
const KEPT: usize = 2;
/// After so long without work, the others end.
const IDLE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Queue of the requests that need an answer.
const REQUESTS: usize = 1;
/// Requests that wait for their place at most. A driver cannot have more under way; one that breaks
/// the rules waits in its queue.
const MAX_WAITING: usize = QUEUE_SIZES[REQUESTS] as usize;
/// Bytes of a request by which it is told where it goes: its header, and where a name may follow.
const HEAD: usize = 104;
/// Where the number of the file is in the header.
const NODE: std::ops::Range<usize> = 16..24;

type Chain = DescriptorChain<Arc<GuestMemoryMmap>>;

/// The running threads.
pub(super) struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Arc<GuestMemoryMmap>,
    interrupt: Interrupt,
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    /// Watches the queues' kicks, edge-triggered, so that each wakes one thread; and `stop`, which
    /// wakes all.
    epoll: Arc<OwnedFd>,
    kicks: Vec<EventFd>,
    stop: EventFd,
    /// Held for as long as a request is taken or given back, never while one is carried out.
    state: Mutex<State>,
}

struct State {
    queues: Vec<QueueLine>,
    places: Places<Chain>,
    /// Threads that are there, that wait for a kick, and that were started and did not come so far.
    count: usize,
    idle: usize,
    starting: usize,
    threads: Vec<JoinHandle<()>>,
    stopping: bool,
}

impl Workers {
    /// Starts to serve `active`'s queues. `epoll` watches nothing, and is this one's until it is
    /// stopped.
    pub(super) fn start(active: Activation, share: Arc<Share>, epoll: Arc<OwnedFd>) -> io::Result<Self> {
        let Activation { memory, queues, interrupt, .. } = active;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let kicks = queues.iter().map(|line| line.kick.try_clone()).collect::<io::Result<_>>()?;
        let state = State {
            queues,
            places: Places::default(),
            count: 0,
            idle: 0,
            starting: 0,
            threads: Vec::new(),
            stopping: false,
        };
        let server = Server::new(share.clone());
        let memory = Arc::new(memory);
        let shared = Shared { memory, interrupt, share, server, epoll, kicks, stop, state: Mutex::new(state) };
        let workers = Self { shared: Arc::new(shared) };
        let started = workers.shared.watch().and_then(|()| {
            let (ready, entered) = mpsc::sync_channel(1);
            Shared::add_thread(&workers.shared, &mut lock(&workers.shared.state), Some(ready))?;
            entered.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
        });
        match started {
            Ok(()) => Ok(workers),
            Err(error) => {
                workers.stop();
                Err(error)
            }
        }
    }

    /// Ends the threads, each after the request that it is at and those that wait for the same file
    /// system; the rest stays in the queues, which are given back.
    pub(super) fn stop(self) -> Vec<QueueLine> {
        lock(&self.shared.state).stopping = true;
        if let Err(error) = self.shared.stop.write(1) {
            complain!("fs: cannot stop the workers: {error}");
            return Vec::new();
        }
        let threads = std::mem::take(&mut lock(&self.shared.state).threads);
        if threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count() > 0 {
            complain!("fs: a worker panicked");
        }
        self.shared.unwatch();
        std::mem::take(&mut lock(&self.shared.state).queues)
    }

    /// As [`Self::stop`]; gives back what [`Self::start`] got.
    pub(super) fn pause(self, features: u64) -> Activation {
        let (memory, interrupt) = ((*self.shared.memory).clone(), self.shared.interrupt.clone());
        Activation { memory, features, queues: self.stop(), interrupt }
    }

    /// How many threads there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        lock(&self.shared.state).count
    }
}

impl Shared {
    fn watch(&self) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        for (number, kick) in (0..).zip(&self.kicks) {
            epoll::add(&self.epoll, event_fd(kick), epoll::EventData::new_u64(number), flags)?;
        }
        let stop = epoll::EventData::new_u64(self.kicks.len() as u64);
        Ok(epoll::add(&self.epoll, event_fd(&self.stop), stop, epoll::EventFlags::IN)?)
    }

    fn unwatch(&self) {
        for fd in self.kicks.iter().chain([&self.stop]) {
            if let Err(error) = epoll::delete(&self.epoll, event_fd(fd))
                && error != rustix::io::Errno::NOENT
            {
                complain!("fs: cannot stop watching a queue: {error}");
            }
        }
    }

    /// Starts one more thread; it tells `ready` whether it can serve.
    fn add_thread(
        this: &Arc<Self>,
        state: &mut State,
        ready: Option<mpsc::SyncSender<io::Result<()>>>,
    ) -> io::Result<()> {
        let shared = this.clone();
        let body = move || {
            let entered = shared.share.enter_thread();
            lock(&shared.state).starting -= 1;
            let serves = entered.is_ok();
            match (ready, entered) {
                (Some(ready), entered) => drop(ready.send(entered)),
                (None, Err(error)) => complain!("fs: one more worker cannot serve: {error}"),
                (None, Ok(())) => {}
            }
            if serves {
                Self::run(&shared);
            } else {
                lock(&shared.state).count -= 1;
            }
        };
        state.threads.retain(|thread| !thread.is_finished());
        state.threads.push(start_thread(ThreadKind::Files, "fs", STACK, body)?);
        state.count += 1;
        state.starting += 1;
        Ok(())
    }

    /// A thread's life.
    fn run(this: &Arc<Self>) {
        loop {
            while let Some((queue, chain)) = this.next() {
                this.serve(queue, chain);
            }
            if !this.wait() {
                return;
            }
        }
    }

    /// Takes a chain off a queue, and sees to it that somebody listens meanwhile. `None` when there
    /// is none; the driver was asked to kick then.
    fn next(self: &Arc<Self>) -> Option<(usize, Chain)> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if state.stopping {
            return None;
        }
        let full = state.places.waiting() >= MAX_WAITING;
        let number = (0..state.queues.len()).filter(|number| *number != REQUESTS || !full);
        let mut found = None;
        for number in number {
            if let Some(chain) = pop_or_ask(&mut state.queues[number], &self.memory) {
                found = Some((number, chain));
                break;
            }
        }
        let (number, chain) = found?;
        // From here on the driver kicks for what it adds, and another thread is there to hear it.
        let more = state.queues[number].queue.enable_notification(&*self.memory).unwrap_or(false);
        if state.idle + state.starting == 0 {
            if state.count < MAX_THREADS
                && let Err(error) = Self::add_thread(self, state, None)
            {
                complain!("fs: cannot start one more worker: {error}");
            }
        } else if more {
            state.queues[number].kick_again();
        }
        Some((number, chain))
    }

    /// Carries a request out, and what waited for it.
    fn serve(&self, queue: usize, chain: Chain) {
        if queue != REQUESTS {
            // FORGET: no file system is asked.
            let length = self.carry_out(Buffers::new(&self.memory, chain.clone()), &chain);
            self.complete(queue, &chain, length);
            return;
        }
        let mut buffers = Buffers::new(&self.memory, chain.clone());
        let place = place(&self.share, buffers.as_ref());
        let mut next = lock(&self.state).places.enter(place, chain);
        while let Some(chain) = next {
            // A request that waited for its place is looked at again.
            let buffers = buffers.take().or_else(|| Buffers::new(&self.memory, chain.clone()));
            let length = self.carry_out(buffers, &chain);
            self.complete(queue, &chain, length);
            next = lock(&self.state).places.leave(place);
        }
    }

    fn carry_out(&self, buffers: Option<Buffers<'_>>, chain: &Chain) -> u32 {
        buffers.map_or(0, |buffers| serve(&self.share, &self.server, &self.memory, buffers, chain))
    }

    fn complete(&self, queue: usize, chain: &Chain, length: u32) {
        lock(&self.state).queues[queue].complete(&self.memory, &self.interrupt, chain.head_index(), length);
    }

    /// Waits for a kick; false when the thread is to end.
    fn wait(&self) -> bool {
        let spare = {
            let mut state = lock(&self.state);
            state.idle += 1;
            state.idle > KEPT
        };
        let mut events = Vec::with_capacity(QUEUE_SIZES.len() + 1);
        let woken = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), spare.then_some(&IDLE));
        let mut state = lock(&self.state);
        state.idle -= 1;
        let go_on = match woken {
            Ok(0) => !spare || state.idle < KEPT,
            Ok(_) | Err(rustix::io::Errno::INTR) => true,
            Err(error) => {
                complain!("fs: cannot wait for requests: {error}");
                false
            }
        };
        for event in &events {
            if let Some(line) = state.queues.get(event.data.u64() as usize) {
                line.count_kick();
            }
        }
        if state.stopping || !go_on {
            state.count -= 1;
            return false;
        }
        true
    }
}

/// The next chain. When there is none, the driver is asked to kick, and what it added just before
/// is taken.
pub(super) fn pop_or_ask(line: &mut QueueLine, memory: &Arc<GuestMemoryMmap>) -> Option<Chain> {
    let pop = |line: &mut QueueLine| line.queue.iter(memory.clone()).ok()?.next();
    if let Some(chain) = pop(line) {
        return Some(chain);
    }
    if line.queue.enable_notification(&**memory).ok()? { pop(line) } else { None }
}

/// Where a request goes.
pub(super) fn place(share: &Share, buffers: Option<&Buffers<'_>>) -> Place {
    let mut head = [0; HEAD];
    if let Some(buffers) = buffers {
        buffers.readable.copy_to(&mut head);
    }
    let mut node = [0; size_of::<u64>()];
    node.copy_from_slice(&head[NODE]);
    share.place(u64::from_le_bytes(node), &head)
}

/// Serves one request, whose chain is `chain` and was found to be `buffers`; answers how many bytes
/// were written to it.
pub(super) fn serve(
    share: &Share,
    server: &Server<Arc<Share>>,
    memory: &GuestMemoryMmap,
    mut buffers: Buffers<'_>,
    chain: &Chain,
) -> u32 {
    match request::check(&buffers) {
        Ok(opcode) => FILE_REQUESTS.add(opcode),
        Err(written) => return written,
    }
    if let Some(written) = extra::serve(share, &mut buffers) {
        return written;
    }
    // What follows walks the chain twice more and checks every descriptor again, as the guest may
    // change them meanwhile; so the length that counts is the reader's.
    let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else { return 0 };
    if reader.available_bytes() > MAX_REQUEST {
        return 0;
    }
    let Ok(writer) = VirtioFsWriter::new(memory, chain.clone()) else { return 0 };
    // An error is a request that could not be decoded, or had no room for its reply: only a broken
    // driver makes one.
    let written = server.handle_message(reader, Writer::VirtioFs(writer), None, None);
    written.map_or(0, |written| u32::try_from(written).unwrap_or(u32::MAX))
}

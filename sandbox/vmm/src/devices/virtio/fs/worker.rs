//! The device's thread: sleeps until the guest kicks, serves, sleeps.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::{self, MAX_REQUEST};
use super::share::Share;
use crate::devices::virtio::{Activation, Buffers};
use crate::event_loop::event_fd;

/// Stack of the thread; the deepest request needs some 20 KiB.
const STACK: usize = 256 << 10;

/// A running thread.
pub(super) struct Worker {
    stop: EventFd,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts to serve `active`'s queues.
    pub(super) fn start(active: Activation, share: Arc<Share>) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let (ready, entered) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("fs".into()).stack_size(STACK).spawn(move || {
            let result = share.enter_thread();
            let failed = result.is_err();
            let _ = ready.send(result);
            if !failed {
                run(active, &Server::new(share), &stopped);
            }
        })?;
        match entered.recv() {
            Ok(Ok(())) => Ok(Self { stop, thread }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the thread ended")),
        }
    }

    /// Ends the thread after the request that it is at; the rest stays in the queues.
    pub(super) fn stop(self) {
        if let Err(error) = self.stop.write(1) {
            complain!("fs: cannot stop the worker: {error}");
            return;
        }
        if self.thread.join().is_err() {
            complain!("fs: the worker panicked");
        }
    }
}

fn run(active: Activation, server: &Server<Arc<Share>>, stop: &EventFd) {
    let Activation { memory, mut queues, interrupt, .. } = active;
    loop {
        let ready = {
            let (urgent, requests, stop) = (event_fd(&queues[0].kick), event_fd(&queues[1].kick), event_fd(stop));
            let mut ready = [&urgent, &requests, &stop].map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    complain!("fs: cannot wait for requests: {error}");
                    return;
                }
            }
            ready.map(|fd| !fd.revents().is_empty())
        };
        if ready[2] {
            return;
        }
        for (line, _) in queues.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
            line.take_kick();
            line.serve_chains(&memory, &interrupt, |chain| serve(server, &memory, chain));
        }
    }
}

/// Serves one request; answers how many bytes were written to its chain.
fn serve(server: &Server<Arc<Share>>, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    let Some(buffers) = Buffers::new(memory, chain.clone()) else { return 0 };
    if let Err(written) = request::check(&buffers) {
        return written;
    }
    // What follows walks the chain twice more and checks every descriptor again, as the guest may change them meanwhile; so
    // the length that counts is the reader's.
    let Ok(reader) = Reader::from_descriptor_chain(memory, chain.clone()) else { return 0 };
    if reader.available_bytes() > MAX_REQUEST {
        return 0;
    }
    let Ok(writer) = VirtioFsWriter::new(memory, chain) else { return 0 };
    // An error is a request that could not be decoded, or had no room for its reply: only a broken driver makes one.
    let written = server.handle_message(reader, Writer::VirtioFs(writer), None, None);
    written.map_or(0, |written| u32::try_from(written).unwrap_or(u32::MAX))
}

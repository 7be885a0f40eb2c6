//! The file server without its threads, for the fuzz targets.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse_backend_rs::api::server::Server;

use super::share::Share;
use super::{QUEUE_SIZES, worker};
use crate::devices::virtio::test_guest::{DATA, Guest, MEMORY, WRITE};
use crate::devices::virtio::{Activation, Buffers, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1};
use crate::fuzzing::{Step, carry_out};

/// Queue of the requests that need an answer.
const REQUESTS: usize = 1;
const REPLY: u64 = DATA + 0x10_0000;
/// Chains that are taken off a queue for one kick.
const MAX_CHAINS: usize = 1024;

/// A file server, and a guest that sends it requests.
pub struct Fuse {
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    guest: Guest,
    active: Activation,
}

impl Fuse {
    /// Serves `root`. The calling thread gets a working directory and a umask of its own.
    ///
    /// # Errors
    /// When the directory cannot be served.
    pub fn new(root: OwnedFd) -> io::Result<Self> {
        let share = Arc::new(Share::new(root)?);
        share.enter_thread()?;
        let guest = Guest::new(&QUEUE_SIZES);
        let active = guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
        Ok(Self { server: Server::new(share.clone()), share, guest, active })
    }

    /// Sends one request with room for a reply of `room` bytes; answers the reply.
    pub fn request(&mut self, request: &[u8], room: u32) -> Vec<u8> {
        let room = room.min((MEMORY - REPLY) as u32);
        let length = request.len().min((REPLY - DATA) as usize);
        self.guest.write(DATA, &request[..length]);
        let mut parts = vec![(DATA, length as u32, 0)];
        if room > 0 {
            parts.push((REPLY, room, WRITE));
        }
        let number = self.guest.used_count(REQUESTS);
        self.guest.chain(REQUESTS, &parts);
        self.serve(REQUESTS);
        let (_, used) = self.guest.used_entry(REQUESTS, number);
        assert!(used <= room, "a reply of {used} bytes where {room} fit");
        self.guest.read(REPLY, used as usize)
    }

    /// Has the driver do `steps` to the raw queues.
    pub fn play(&mut self, steps: &[(u8, Step)]) {
        for (queue, step) in steps {
            let queue = usize::from(*queue) % QUEUE_SIZES.len();
            if carry_out(&mut self.guest, queue, QUEUE_SIZES[queue], step) {
                continue;
            }
            match step {
                Step::Restart => {
                    self.guest = Guest::new(&QUEUE_SIZES);
                    self.active = self.guest.activation(VIRTIO_F_VERSION_1);
                    self.share.clear();
                }
                _ => self.serve(queue),
            }
        }
        // The next request finds empty queues.
        self.guest = Guest::new(&QUEUE_SIZES);
        self.active = self.guest.activation(VIRTIO_F_VERSION_1);
    }

    fn serve(&mut self, queue: usize) {
        let Activation { memory, queues, interrupt, .. } = &mut self.active;
        let shared = Arc::new(memory.clone());
        for _ in 0..MAX_CHAINS {
            let Some(chain) = worker::pop_or_ask(&mut queues[queue], &shared) else { return };
            let buffers = Buffers::new(memory, chain.clone());
            let _ = worker::place(&self.share, buffers.as_ref());
            let length = buffers.map_or(0, |buffers| worker::serve(&self.share, &self.server, memory, buffers, &chain));
            queues[queue].complete(memory, interrupt, chain.head_index(), length);
        }
    }
}

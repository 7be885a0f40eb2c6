//! Each device under a hostile driver, in one thread.

use std::os::fd::OwnedFd;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::driver::{Step, carry_out};
use super::listener::listener;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::fuzzing::OneThread as Blk;
use crate::devices::virtio::mem::{Mem, Region};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::test_guest::Guest;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventHandler, EventLoop, lock};

/// MiB that can be plugged, and bytes that the guest is asked to plug.
const HOTPLUG_MIB: u32 = 16;
const REQUESTED: u64 = 8 << 20;
/// Turns of the main loop for one kick; a device that has work after that many goes round for ever.
const MAX_TURNS: usize = 4096;
/// Longest frame that a tap takes or gives.
const MAX_FRAME: usize = 70_000;
/// Sockets that the node opens in one run.
const MAX_SOCKETS: usize = 8;
const GUEST_CID: u32 = 3;
/// The driver would read memory that is not plugged, or not (virtio 1.3 section 5.15.3).
const MEM_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A disk that takes writes, or one that does not.
    Blk {
        /// Which of them.
        read_only: bool,
    },
    /// A network card.
    Net,
    /// The sockets.
    Vsock,
    /// Memory that comes and goes.
    Mem,
    /// The balloon.
    Balloon,
    /// Random numbers.
    Rng,
}

/// Has a driver do `steps`, each to the queue with its number, to `device`; it accepts those of
/// `features` that the device offers.
///
/// # Panics
/// When the device did what it must not.
pub fn play(device: Device, features: u64, steps: &[(u8, Step)]) {
    match device {
        Device::Blk { read_only } => Blk::new(read_only, features).play(steps),
        Device::Net => {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (tap, wire) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket");
            Polled::new(Net::new(tap).expect("a tap"), features, Wire(wire)).play(steps);
        }
        Device::Vsock => {
            let sockets = Sockets::new();
            let listener = OwnedFd::from(sockets.listener.try_clone().expect("a descriptor"));
            let listens = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
            let _ = listens.write(1);
            Polled::new(Vsock::new(GUEST_CID, listener, listens).expect("a device"), features, sockets).play(steps);
        }
        Device::Mem => {
            let guest = Guest::new(&[1]);
            let (region, _memory) = Region::reserve(&guest.memory, HOTPLUG_MIB).expect("a reserved region");
            let mut mem = Mem::new(region);
            mem.request(REQUESTED).expect("less than there is");
            let polled = Polled::new(mem, features | MEM_UNPLUGGED_INACCESSIBLE, Nothing);
            polled.play(steps);
            assert!(lock(&polled.device).plugged() <= REQUESTED, "more memory than was asked for");
        }
        Device::Balloon => Polled::new(Balloon::new(), features, Nothing).play(steps),
        Device::Rng => Polled::new(Rng::new(), features, Nothing).play(steps),
    }
}

/// The node's side of a device.
pub(super) trait Behind {
    /// It gets `bytes` from the node.
    fn input(&mut self, bytes: &[u8]);
    /// Takes what the guest sent.
    fn drain(&mut self);
}

/// Nothing is behind the device.
pub(super) struct Nothing;

impl Behind for Nothing {
    fn input(&mut self, _bytes: &[u8]) {}
    fn drain(&mut self) {}
}

/// The other end of a tap.
struct Wire(OwnedFd);

impl Behind for Wire {
    fn input(&mut self, bytes: &[u8]) {
        let _ = rustix::io::write(&self.0, &bytes[..bytes.len().min(MAX_FRAME)]);
    }

    fn drain(&mut self) {
        let mut frame = vec![0; MAX_FRAME];
        while rustix::io::read(&self.0, &mut frame).is_ok_and(|length| length > 0) {}
    }
}

/// The daemon's connections to a guest. The first byte of an input tells which connection gets the
/// rest; one that is not there is opened, and `0xff` closes the oldest.
struct Sockets {
    listener: UnixListener,
    address: SocketAddr,
    streams: Vec<UnixStream>,
}

impl Sockets {
    fn new() -> Self {
        let (listener, address) = listener();
        Self { listener, address, streams: Vec::new() }
    }
}

impl Behind for Sockets {
    fn input(&mut self, bytes: &[u8]) {
        use std::io::Write;
        let Some((number, rest)) = bytes.split_first() else { return };
        if *number == u8::MAX {
            if !self.streams.is_empty() {
                self.streams.remove(0);
            }
            return;
        }
        let number = usize::from(*number) % MAX_SOCKETS;
        if number >= self.streams.len() {
            let Ok(stream) = UnixStream::connect_addr(&self.address) else { return };
            let _ = stream.set_nonblocking(true);
            self.streams.push(stream);
        }
        let last = self.streams.len() - 1;
        let _ = self.streams[number.min(last)].write(rest);
    }

    fn drain(&mut self) {
        use std::io::Read;
        let mut bytes = vec![0; MAX_FRAME];
        for stream in &mut self.streams {
            let _ = stream.read(&mut bytes);
        }
    }
}

/// A device of the main loop and its driver.
pub(super) struct Polled<T, B> {
    guest: Mutex<Guest>,
    device: Arc<Mutex<T>>,
    events: EventLoop,
    features: u64,
    sizes: Vec<u16>,
    behind: Mutex<B>,
}

impl<T: VirtioDevice + EventHandler + 'static, B: Behind> Polled<T, B> {
    fn new(device: T, features: u64, behind: B) -> Self {
        let features = features & device.features() | VIRTIO_F_VERSION_1;
        let sizes = device.queue_sizes().to_vec();
        let device = Arc::new(Mutex::new(device));
        let mut events = EventLoop::new().expect("an event loop");
        events.add(device.clone()).expect("a place in it");
        let guest = Mutex::new(Guest::new(&sizes));
        let polled = Self { guest, device, events, features, sizes, behind: Mutex::new(behind) };
        polled.start();
        polled
    }

    fn start(&self) {
        let active = lock(&self.guest).activation(self.features);
        let started = lock(&self.device).activate(active);
        started.expect("a device with valid queues starts");
    }

    fn play(&self, steps: &[(u8, Step)]) {
        for (queue, step) in steps {
            let queue = usize::from(*queue) % self.sizes.len();
            if carry_out(&mut lock(&self.guest), queue, self.sizes[queue], step) {
                continue;
            }
            match step {
                Step::Input(bytes) => {
                    lock(&self.behind).input(bytes);
                    self.turn();
                }
                Step::Pause => {
                    let paused = lock(&self.device).pause();
                    if let Some(active) = paused {
                        let resumed = lock(&self.device).activate(active);
                        resumed.expect("a paused device goes on");
                    }
                }
                Step::Restart => {
                    lock(&self.device).reset();
                    *lock(&self.guest) = Guest::new(&self.sizes);
                    self.start();
                }
                _ => {
                    lock(&self.guest).kick(queue);
                    self.turn();
                }
            }
        }
        lock(&self.device).reset();
    }

    fn turn(&self) {
        for _ in 0..MAX_TURNS {
            let served = self.events.turn_unfiltered();
            lock(&self.behind).drain();
            if !served {
                return;
            }
        }
        panic!("the main loop goes round for ever");
    }
}

//! Register accesses of a guest, to one device and all that it does about them.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::listener::listener;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mem::{Mem, Region};
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::saved::SavedDevice;
use crate::devices::virtio::vsock::Vsock;
use crate::event_loop::{EventHandler, EventLoop};

const MEMORY: usize = 1 << 20;
const HOTPLUG_MIB: u32 = 16;
const GUEST_CID: u32 = 3;
/// Turns of the main loop after an access.
const MAX_TURNS: usize = 64;

/// What happens to the device.
#[derive(Debug, Clone)]
pub enum Access {
    /// The guest writes a register of four bytes.
    Write(u16, u32),
    /// The guest writes bytes of any number.
    WriteBytes(u16, Vec<u8>),
    /// The guest reads this many bytes.
    Read(u16, u8),
    /// The guest writes its memory.
    Memory(u32, Vec<u8>),
    /// The VM is saved, and another one goes on with what was saved.
    Restore,
}

/// Carries `accesses` out on the device with this number.
///
/// # Panics
/// When a device that was saved cannot be restored.
pub fn registers(device: u8, accesses: &[Access]) {
    let mut machine = Machine::new(device);
    for access in accesses {
        match access {
            Access::Write(offset, value) => {
                machine.transport.write(u64::from(*offset % 0x1000), &value.to_le_bytes());
            }
            Access::WriteBytes(offset, bytes) => machine.transport.write(u64::from(*offset % 0x1000), bytes),
            Access::Read(offset, length) => {
                machine.transport.read(u64::from(*offset % 0x1000), &mut vec![0; usize::from(*length)]);
            }
            Access::Memory(address, bytes) => {
                let _ = machine.memory.write(bytes, GuestAddress(u64::from(*address)));
            }
            Access::Restore => machine = machine.restored(device),
        }
        for _ in 0..MAX_TURNS {
            if !machine.events.turn_unfiltered() {
                break;
            }
        }
    }
    machine.transport.shut_down();
}

struct Machine {
    memory: GuestMemoryMmap,
    transport: Transport,
    events: EventLoop,
    _other_end: Option<OwnedFd>,
}

impl Machine {
    fn new(device: u8) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        Self::with_memory(device, memory)
    }

    fn with_memory(device: u8, memory: GuestMemoryMmap) -> Self {
        let mut events = EventLoop::new().expect("an event loop");
        let mut other_end = None;
        let device: Arc<Mutex<dyn VirtioDevice>> = match device % 5 {
            0 => polled(&mut events, Rng::new()),
            1 => polled(&mut events, Balloon::new()),
            2 => {
                let (region, _) = Region::reserve(&memory, HOTPLUG_MIB).expect("memory for later");
                polled(&mut events, Mem::new(region))
            }
            3 => {
                let kind = SocketType::SEQPACKET;
                let pair = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("a socket");
                other_end = Some(pair.1);
                polled(&mut events, Net::new(pair.0).expect("a tap"))
            }
            _ => {
                let listens = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
                polled(&mut events, Vsock::new(GUEST_CID, listener().0.into(), listens).expect("a device"))
            }
        };
        let slot = Slot::new(0).expect("the first slot");
        let transport = Transport::new(slot, memory.clone(), device).expect("registers");
        Self { memory, transport, events, _other_end: other_end }
    }

    /// The same device in another VM with the same memory.
    fn restored(mut self, device: u8) -> Self {
        self.transport.pause();
        let Ok(saved) = self.transport.save() else {
            // It has something that a clone would not have, so its VM is not saved and goes on.
            self.transport.resume().expect("a paused device goes on");
            return self;
        };
        let bytes = postcard::to_allocvec(&saved).expect("a state can be written");
        let read: SavedDevice = postcard::from_bytes(&bytes).expect("a state that was written can be read");
        assert_eq!(read, saved);
        let mut clone = Self::with_memory(device, self.memory.clone());
        clone.transport.restore(&read).expect("a state that was saved is restored");
        clone.transport.resume().expect("a restored device goes on");
        clone
    }
}

fn polled<T: VirtioDevice + EventHandler + 'static>(events: &mut EventLoop, device: T) -> Arc<Mutex<dyn VirtioDevice>> {
    let device = Arc::new(Mutex::new(device));
    events.add(device.clone()).expect("a place in the event loop");
    device
}

//! A state file of which everything but the checksum may be wrong, for the fuzz targets.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::file::{decode, framed};
use super::{Origin, Pair, State};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{Blk, Spare};
use crate::devices::virtio::mem::{Mem, Region};
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::event_loop::{EventHandler, EventLoop};
use crate::fuzzing::listener::listener;
use crate::kvm::{MachineState, VcpuState};
use crate::launch::Settings;

const MEMORY_MIB: u32 = 32;
const HOTPLUG_MIB: u32 = 16;
const GUEST_CID: u32 = 3;
/// Turns of the main loop after a restore.
const MAX_TURNS: usize = 256;

/// Reads `body` as the state of a saved VM, and lets the devices of a new VM go on with what it
/// says, as a monitor does that is to restore it. vCPUs and interrupt controllers are only decoded.
pub fn saved_state(body: &[u8]) {
    let _ = decode::<State>(body, body.len() as u64);
    let Ok(file) = framed(body) else { return };
    let Ok(state) = decode::<State>(&file, file.len() as u64) else { return };
    let _ = state.origin.check(&origin());
    if let Ok(mut serial) = SerialPort::restore(&state.serial) {
        serial.write(0, b'x');
        serial.read(5);
    }
    let mut vm = Vm::new();
    // A whole VM is refused at the first device that does not fit. Here each one is tried.
    for (transport, saved) in vm.transports.iter_mut().zip(&state.devices) {
        let _ = transport.restore(saved);
    }
    for transport in &mut vm.transports {
        let _ = transport.resume();
    }
    for _ in 0..MAX_TURNS {
        if !vm.events.turn_unfiltered() {
            break;
        }
    }
    vm.transports.iter_mut().for_each(Transport::shut_down);
}

/// The body of a state file as a monitor writes it, of a VM that never ran.
pub fn saved_state_seed() -> Vec<u8> {
    let state = State {
        pair: Pair([7; 16]),
        origin: origin(),
        vcpus: vec![VcpuState::default()],
        machine: MachineState::default(),
        serial: SerialPort::new().expect("a serial port").registers(),
        devices: Vm::new().transports.iter().map(|device| device.save().expect("idle devices")).collect(),
    };
    postcard::to_allocvec(&state).expect("a state can be written")
}

fn origin() -> Origin {
    let settings = Settings {
        name: "fuzz".into(),
        vcpus: 1,
        vcpus_max: 1,
        memory_mib: MEMORY_MIB,
        hotplug_mib: HOTPLUG_MIB,
        cmdline: "a=b".into(),
    };
    Origin::new(&settings, memfd(0), memfd(0)).expect("files that are there")
}

fn memfd(size: u64) -> File {
    let file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(size).expect("memory for it");
    file
}

/// The devices of a VM that is to be restored.
struct Vm {
    transports: Vec<Transport>,
    events: EventLoop,
    memory: GuestMemoryMmap,
    _wire: OwnedFd,
}

impl Vm {
    fn new() -> Self {
        let ram = crate::memory::map(MEMORY_MIB).expect("memory of a guest");
        let (region, memory) = Region::reserve(&ram, HOTPLUG_MIB).expect("memory for later");
        let (tap, wire) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket");
        let events = EventLoop::new().expect("an event loop");
        let mut vm = Self { transports: Vec::new(), events, memory, _wire: wire };
        vm.add(Arc::new(Mutex::new(Blk::new(memfd(1 << 20).into()).expect("a disk"))));
        vm.add_polled(Net::new(tap).expect("a tap"));
        vm.add_polled(Vsock::new(GUEST_CID, listener().0.into(), Arc::new(event_fd())).expect("a vsock device"));
        vm.add_polled(Rng::new());
        vm.add_polled(Balloon::new());
        vm.add_polled(Mem::new(region));
        vm.add(Arc::new(Mutex::new(Spare::default())));
        vm
    }

    fn add(&mut self, device: Arc<Mutex<dyn VirtioDevice>>) {
        let slot = Slot::new(self.transports.len() as u32).expect("a free slot");
        self.transports.push(Transport::new(slot, self.memory.clone(), device).expect("registers"));
    }

    fn add_polled<T: VirtioDevice + EventHandler + 'static>(&mut self, device: T) {
        let device = Arc::new(Mutex::new(device));
        self.events.add(device.clone()).expect("a place in the event loop");
        self.add(device);
    }
}

fn event_fd() -> EventFd {
    EventFd::new(EFD_NONBLOCK).expect("an eventfd")
}

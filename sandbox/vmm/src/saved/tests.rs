//! The whole state of a VM that never ran, and what is refused of it.

use super::*;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::devices::virtio::rng::Rng;
use crate::fill::{Fill, FillError};
use crate::launch::Restore;
use crate::memory as ram;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::GuestMemoryMmap;

fn memfd() -> File {
    memfd_create("saved", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap().into()
}

fn transports(memory: &GuestMemoryMmap) -> Vec<Transport> {
    let slot = |number| Slot::new(number).unwrap();
    vec![
        Transport::new(slot(0), memory.clone(), Arc::new(Mutex::new(Rng::new()))).unwrap(),
        Transport::new(slot(1), memory.clone(), Arc::new(Mutex::new(Balloon::new()))).unwrap(),
    ]
}

fn state(pair: Pair, memory: &GuestMemoryMmap) -> State {
    State {
        pair,
        origin: Origin::sample(),
        vcpus: vec![VcpuState::default()],
        machine: MachineState::default(),
        serial: SerialPort::new().unwrap().registers(),
        devices: transports(memory).iter().map(|transport| transport.save().unwrap()).collect(),
    }
}

/// What a monitor begins with that is told to restore both files.
fn fill(origin: &Origin, memory: &File, state: &File) -> Result<Fill, FillError> {
    let copy = |file: &File| OwnedFd::from(file.try_clone().unwrap());
    let restore = Restore { memory: copy(memory), state: copy(state), written: Vec::new() };
    Fill::new(origin, memfd().into(), memfd().into(), Some(restore))
}

fn why<T>(result: Result<T, FillError>) -> String {
    result.err().map(|error| crate::report::chain(&error)).unwrap_or_default()
}

#[test]
fn a_state_and_its_memory_are_restored_and_no_other() {
    let memory = ram::map(64).unwrap();
    let files = [0, 1].map(|_| {
        let (pair, ram_file, state_file) = (Pair::new().unwrap(), memfd(), memfd());
        write_memory(&ram_file, &memory, pair).unwrap();
        write(&state_file, &state(pair, &memory)).unwrap();
        (ram_file, state_file)
    });
    let origin = read::<State>(&files[0].1).unwrap().origin;
    let whole = fill(&origin, &files[0].0, &files[0].1).ok().unwrap();
    let clone = whole.ram(64).ok().unwrap();
    whole.devices(&mut transports(&clone)).ok().unwrap();
    assert_eq!(whole.serial().unwrap().registers(), SerialPort::new().unwrap().registers());

    let swapped = fill(&origin, &files[1].0, &files[0].1).ok().unwrap();
    assert!(why(swapped.ram(64)).contains("not the one that was saved with the state"), "{}", why(swapped.ram(64)));
    let crossed = why(fill(&origin, &files[0].1, &files[0].0));
    assert!(crossed.contains("cannot restore the VM: the state file is not one"), "{crossed}");
    let foreign = why(fill(&origin.with_vcpus(2), &files[0].0, &files[0].1));
    assert!(foreign.contains("another number of vCPUs: 1, and this VM has 2"), "{foreign}");
    let fewer = why(whole.devices(&mut transports(&clone)[..1]));
    assert!(fewer.contains("its state has 2 devices, and it has 1"), "{fewer}");
    let mut other = transports(&clone);
    other.reverse();
    let other = why(whole.devices(&mut other));
    assert!(other.contains("those of a virtio device 4, and this one is a 5"), "{other}");
}

/// As the parser's tests, with a real state in a real file.
#[test]
fn a_state_file_that_is_cut_or_changed_is_refused() {
    let memory = ram::map(32).unwrap();
    let whole = memfd();
    write(&whole, &state(Pair::new().unwrap(), &memory)).unwrap();
    let size = whole.metadata().unwrap().len() as usize;
    let mut bytes = vec![0; size];
    std::os::unix::fs::FileExt::read_exact_at(&whole, &mut bytes, 0).unwrap();
    let refused = |bytes: &[u8]| {
        let file = memfd();
        std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
        read::<State>(&file).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&bytes), "");
    for length in [0, 1, 7, 8, 12, 15, 16, 17, size / 2, size - 32, size - 1] {
        assert!(!refused(&bytes[..length]).is_empty(), "{length} bytes of {size}");
    }
    for at in (0..size).step_by(61).chain([size - 1]) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(!refused(&changed).is_empty(), "byte {at} of {size}");
    }
}

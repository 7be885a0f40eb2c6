use std::time::{Duration, Instant};

use cofferdam_proto::monitor::MAX_DISKS;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::blk::volume;
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::ending::Ending;
use crate::memory::{MMIO_DEVICE_SIZE, MMIO_START};
use crate::timeline::Timeline;

/// Places that nothing but the test's own accesses reach.
pub(crate) fn empty() -> (Disks, Arc<Bus>) {
    let memory = crate::memory::map(32).unwrap();
    let (mut transports, mut places) = (Vec::new(), Vec::new());
    for number in 0..MAX_DISKS {
        let device = Arc::new(Mutex::new(Spare::default()));
        places.push(device.clone());
        let slot = Slot::spare(0, number as u32).unwrap();
        transports.push(Transport::new(slot, memory.clone(), device).unwrap());
    }
    let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
    let listens = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let bus = Arc::new(Bus::new(transports, serial, Ending::new().unwrap(), Arc::new(Timeline::new()), listens));
    (Disks::new(bus.clone(), 0, places), bus)
}

fn disk(serial: &str) -> Blk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    volume(file.into(), serial, false)
}

fn read(bus: &Bus, slot: u32, register: u64) -> u32 {
    let mut word = [0; 4];
    bus.mmio_read(MMIO_START + u64::from(slot) * MMIO_DEVICE_SIZE + register, &mut word);
    u32::from_le_bytes(word)
}

fn write(bus: &Bus, slot: u32, register: u64, value: u32) {
    bus.mmio_write(MMIO_START + u64::from(slot) * MMIO_DEVICE_SIZE + register, &value.to_le_bytes());
}

const DEVICE_ID: u64 = 0x8;
const STATUS: u64 = 0x70;

/// As a driver does, up to DRIVER_OK.
fn start(bus: &Bus, slot: u32) {
    for (register, value) in [
        (STATUS, 0),
        (STATUS, 1),
        (STATUS, 3),
        (0x24, 1), // the upper half of the features: version 1
        (0x20, 1),
        (STATUS, 11),
        (0x38, 8), // queue 0: size, descriptors, rings
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
        (STATUS, 15),
    ] {
        write(bus, slot, register, value);
    }
}

fn unplugged(disks: &mut Disks, serial: &str) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !disks.unplug(serial) {
        assert!(Instant::now() < limit, "disk {serial} is not taken out");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_guest_finds_a_disk_where_it_was_put_and_nothing_after_it() {
    let (mut disks, bus) = empty();
    assert_eq!(read(&bus, 0, DEVICE_ID), 0);
    start(&bus, 0);
    assert_eq!(read(&bus, 0, STATUS), 3, "nothing to start in an empty place");
    assert_eq!(disks.fill("one".into(), false, disk("one")).unwrap(), 0);
    assert_eq!(disks.fill("two".into(), true, disk("two")).unwrap(), 1);
    assert_eq!(disks.list()[1], Disk { slot: 1, serial: "two".into(), read_only: true });
    assert_eq!((read(&bus, 0, DEVICE_ID), read(&bus, 1, DEVICE_ID), read(&bus, 2, DEVICE_ID)), (2, 2, 0));
    start(&bus, 0);
    assert_eq!(read(&bus, 0, STATUS), 15);
    // A guest that does not let go keeps nothing.
    unplugged(&mut disks, "one");
    assert_eq!((read(&bus, 0, DEVICE_ID), read(&bus, 0, STATUS)), (0, 0));
    assert_eq!(disks.fill("three".into(), false, disk("three")).unwrap(), 0, "its place is free");
    start(&bus, 0);
    assert_eq!(read(&bus, 0, STATUS), 15);
    unplugged(&mut disks, "three");
    unplugged(&mut disks, "three");
    assert_eq!(disks.list().len(), 1);
}

#[test]
fn a_serial_that_is_there_keeps_its_disk_and_what_makes_no_sense_is_refused() {
    let (mut disks, _bus) = empty();
    disks.fill("b7.0w".into(), false, disk("b7.0w")).unwrap();
    let fd = || Some(OwnedFd::from(tempfile::tempfile().unwrap()));
    assert_eq!(disks.plug("b7.0w".into(), false, fd()).unwrap(), 0);
    for serial in ["", "a b", "a\n", "ü", "123456789012345678901"] {
        let error = disks.plug(serial.into(), false, fd()).unwrap_err();
        assert!(matches!(error, DiskError::Serial(_)), "{error}");
    }
    assert!(matches!(disks.plug("x".into(), false, None), Err(DiskError::NoDescriptor(_))));
    let error = disks.plug("x".into(), false, fd()).unwrap_err();
    assert!(matches!(error, DiskError::Device { .. }), "a regular file is no block device: {error}");
    assert_eq!(disks.list().len(), 1);
}

#[test]
fn there_is_a_bound() {
    let (mut disks, _bus) = empty();
    for number in 0..MAX_DISKS {
        disks.fill(format!("d{number}"), false, disk("d")).unwrap();
    }
    let error = disks.plug("more".into(), false, Some(tempfile::tempfile().unwrap().into())).unwrap_err();
    assert_eq!(error.to_string(), "all 8 places for disks of the VM are taken, so there is none for more");
}

/// A vCPU that resets a disk holds its place: the main thread does not wait for it.
#[test]
fn a_place_that_is_held_is_busy() {
    let (mut disks, bus) = empty();
    disks.fill("one".into(), false, disk("one")).unwrap();
    let held = lock(bus.device(0).unwrap());
    assert!(!disks.unplug("one"));
    assert_eq!(disks.list().len(), 1);
    drop(held);
    assert!(disks.unplug("one"));
}

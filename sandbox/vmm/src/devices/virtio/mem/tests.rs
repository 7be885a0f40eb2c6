use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::*;
use crate::devices::virtio::saved::DeviceState;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE, any_attack};
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventFlags, EventHandler, EventLoop, lock};

const MIB: u32 = 64;
const BLOCKS: u64 = (MIB as u64 * 1024 * 1024) / BLOCK;
const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE;

/// A device that a guest uses, where its region starts, and the guest's memory with the region.
fn live(guest: &Guest) -> (Arc<Mutex<Mem>>, u64, GuestMemoryMmap) {
    let (region, memory) = Region::reserve(&guest.memory, MIB).unwrap();
    let start = region.start();
    let mem = Arc::new(Mutex::new(Mem::new(region)));
    EventLoop::new().unwrap().add(mem.clone()).unwrap();
    lock(&mem).activate(guest.activation(FEATURES)).unwrap();
    (mem, start, memory)
}

fn request(kind: u16, address: u64, count: u16) -> Vec<u8> {
    let mut bytes = [kind, 0, 0, 0].map(u16::to_le_bytes).concat();
    bytes.extend(address.to_le_bytes());
    bytes.extend([count, 0, 0, 0].map(u16::to_le_bytes).concat());
    bytes
}

/// Sends one request; the answer's kind and state.
fn ask(guest: &mut Guest, mem: &Mutex<Mem>, kind: u16, address: u64, count: u16) -> (u16, u16) {
    guest.write(DATA, &request(kind, address, count));
    guest.write(DATA + 4096, &[0xff; 10]);
    let number = guest.used_count(0);
    guest.chain(0, &[(DATA, 24, 0), (DATA + 4096, 10, WRITE)]);
    lock(mem).ready(0, EventFlags::IN);
    assert_eq!(guest.used_entry(0, number).1, 10);
    let answer = guest.read(DATA + 4096, 10);
    (u16::from_le_bytes([answer[0], answer[1]]), u16::from_le_bytes([answer[8], answer[9]]))
}

#[test]
fn blocks_come_and_go_within_what_is_requested() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let (mem, start, memory) = live(&guest);
    let (ack, nack, error) = ((0, 0), (1, 0), (3, 0));
    assert_eq!(ask(&mut guest, &mem, 0, start, 1), nack, "nothing was requested");
    lock(&mem).request(4 * BLOCK).unwrap();
    assert!(guest.interrupts() > 0, "the driver hears of it");
    assert_eq!(ask(&mut guest, &mem, 0, start + BLOCK, 2), ack);
    assert_eq!(ask(&mut guest, &mem, 3, start + BLOCK, 2), (0, 0));
    assert_eq!(ask(&mut guest, &mem, 3, start, 1), (0, 1));
    assert_eq!(ask(&mut guest, &mem, 3, start, 2), (0, 2));
    memory.write_obj(7_u64, GuestAddress(start + BLOCK)).expect("plugged memory can be used");
    assert_eq!(ask(&mut guest, &mem, 0, start + BLOCK, 1), error, "it is plugged already");
    assert_eq!(ask(&mut guest, &mem, 0, start + 3 * BLOCK, 3), nack, "more than requested");
    for (address, count) in
        [(start - BLOCK, 1), (start + 1, 1), (start, 0), (start + BLOCKS * BLOCK, 1), (u64::MAX, 65535), (0, 1)]
    {
        assert_eq!(ask(&mut guest, &mem, 0, address, count), error, "{address:#x} {count}");
    }
    assert_eq!(ask(&mut guest, &mem, 9, start, 1), error, "no such request");
    assert_eq!(ask(&mut guest, &mem, 1, start, 2), error, "one of them is not plugged");
    assert_eq!(lock(&mem).plugged(), 2 * BLOCK);
    assert_eq!(ask(&mut guest, &mem, 1, start + BLOCK, 1), ack);
    assert_eq!(ask(&mut guest, &mem, 0, start + BLOCK, 1), ack);
    assert_eq!(memory.read_obj::<u64>(GuestAddress(start + BLOCK)).unwrap(), 0, "what it held is gone");
    assert_eq!(ask(&mut guest, &mem, 2, 0, 0), ack);
    let mem = lock(&mem);
    assert_eq!((mem.plugged(), mem.requested()), (0, 4 * BLOCK));
}

#[test]
fn the_configuration_tells_the_sizes_and_a_reset_keeps_the_memory() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let (mem, start, _memory) = live(&guest);
    assert!(lock(&mem).request(3).is_err() && lock(&mem).request((BLOCKS + 1) * BLOCK).is_err());
    lock(&mem).request(2 * BLOCK).unwrap();
    assert_eq!(ask(&mut guest, &mem, 0, start, 1), (0, 0));
    lock(&mem).reset();
    let field = |offset| {
        let mut bytes = [0; 8];
        lock(&mem).read_config(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    let all = [0, 8, 16, 24, 32, 40, 48, 56].map(field);
    assert_eq!(all, [BLOCK, 0, start, BLOCKS * BLOCK, BLOCKS * BLOCK, BLOCK, 2 * BLOCK, 0]);
    let text = serde_json::to_string(&lock(&mem).state).unwrap();
    assert_eq!(serde_json::from_str::<state::MemState>(&text).unwrap(), lock(&mem).state);
    let careless = guest.activation(VIRTIO_F_VERSION_1);
    assert!(lock(&mem).activate(careless).is_err(), "a driver that would read unplugged memory");
}

#[test]
fn the_region_lies_behind_the_ram() {
    for mib in [64, 3328, 3329, 4352, 5000, 5376] {
        let ram = memory_of(mib);
        let (region, memory) = Region::reserve(&ram, 128).unwrap();
        assert!(region.start() >= crate::memory::ABOVE_4G && region.start() % (1 << 30) == 0);
        assert!(ram.iter().all(|r| r.start_addr().0 + r.len() < region.start()), "{mib}");
        assert_eq!(memory.iter().count(), ram.iter().count() + 1);
    }
}

#[test]
fn plugged_memory_is_not_saved() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let (mem, start, _) = live(&guest);
    lock(&mem).request(4 * BLOCK).unwrap();
    let state = lock(&mem).save().unwrap();
    assert_eq!(ask(&mut guest, &mem, 0, start, 1).0, 0);
    assert_eq!(lock(&mem).save().unwrap_err().to_string(), "device mem has memory that was plugged");

    let (clone, ..) = live(&guest);
    lock(&clone).restore(&state).unwrap();
    assert_eq!(lock(&clone).requested(), 4 * BLOCK);
    assert_eq!(lock(&clone).plugged(), 0);
    let DeviceState::Mem(mut other) = state else { panic!("another device's") };
    other.plugged[1] = true;
    let why = lock(&clone).restore(&DeviceState::Mem(other.clone())).unwrap_err().to_string();
    assert_eq!(why, "a block of device mem was plugged when it was saved, and is empty");
    other.plugged = vec![false; 3];
    let why = lock(&clone).restore(&DeviceState::Mem(other)).unwrap_err().to_string();
    assert_eq!(why, "the number of blocks of device mem was 3 when it was saved, and is 32");
}

fn memory_of(mib: u32) -> GuestMemoryMmap {
    crate::memory::map(mib).unwrap()
}

proptest! {
    /// Whatever a driver asks: it never has more than was requested, and what it has is exactly what it can use.
    #[test]
    fn no_requests_give_more_than_was_requested(
        steps in prop::collection::vec((0..5_u16, 0..BLOCKS + 2, 0..5_u16, prop::option::of(0..BLOCKS + 2)), 1..40),
    ) {
        let mut guest = Guest::new(&QUEUE_SIZES);
        let (mem, start, memory) = live(&guest);
        for (kind, block, count, wanted) in steps {
            if let Some(wanted) = wanted {
                let fits = lock(&mem).request(wanted * BLOCK).is_ok();
                prop_assert_eq!(fits, wanted <= BLOCKS);
            }
            let before = lock(&mem).plugged();
            ask(&mut guest, &mem, kind, start + block * BLOCK, count);
            let after = lock(&mem).plugged();
            prop_assert!(after <= before || after <= lock(&mem).requested());
        }
        let plugged = lock(&mem).state.plugged.clone();
        for (block, plugged) in (0_u64..).zip(plugged) {
            if plugged {
                memory.write_obj(block, GuestAddress(start + block * BLOCK)).unwrap();
            }
        }
    }

    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec(any_attack(), 1..4)) {
        let mut guest = Guest::new(&QUEUE_SIZES);
        let (mem, ..) = live(&guest);
        lock(&mem).request(BLOCKS * BLOCK).unwrap();
        for attack in attacks {
            attack.strike(&mut guest, 0);
            lock(&mem).ready(0, EventFlags::IN);
        }
    }
}

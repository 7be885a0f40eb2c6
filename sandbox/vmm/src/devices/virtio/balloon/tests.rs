use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::state::BalloonState;
use super::*;
use crate::devices::virtio::mem::Region;
use crate::devices::virtio::test_guest::{DATA, Guest, MEMORY, WRITE, any_attack};
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventFlags, EventHandler, EventLoop, lock};

const PAGE: u64 = 4096;

fn live(guest: &Guest) -> Arc<Mutex<Balloon>> {
    let balloon = Arc::new(Mutex::new(Balloon::new()));
    EventLoop::new().unwrap().add(balloon.clone()).unwrap();
    lock(&balloon).activate(guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | F_REPORTING)).unwrap();
    balloon
}

fn serve(balloon: &Mutex<Balloon>, queue: usize) {
    lock(balloon).ready(queue as u32, EventFlags::IN);
}

/// Whether the node holds memory for the page at `address`.
fn is_held(memory: &GuestMemoryMmap, address: u64) -> bool {
    #![allow(unsafe_code)] // mincore
    let page = memory.get_host_address(GuestAddress(address)).unwrap();
    let mut held = 0_u8;
    // SAFETY: asks about one page of a mapping, and writes one byte behind the pointer.
    assert_eq!(unsafe { libc::mincore(page.cast(), PAGE as usize, &raw mut held) }, 0);
    held & 1 == 1
}

#[test]
fn reported_pages_go_back_to_the_node() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let balloon = live(&guest);
    for page in 0..6 {
        guest.write(DATA + page * PAGE, &[7; PAGE as usize]);
    }
    assert!((0..6).all(|page| is_held(&guest.memory, DATA + page * PAGE)));
    guest.chain(REPORTING, &[(DATA + PAGE, PAGE as u32, WRITE), (DATA + 3 * PAGE, 2 * PAGE as u32, WRITE)]);
    serve(&balloon, REPORTING);
    assert_eq!((guest.used_count(REPORTING), guest.used_entry(REPORTING, 0).1), (1, 0));
    assert!(guest.interrupts() > 0);
    let held: Vec<bool> = (0..6).map(|page| is_held(&guest.memory, DATA + page * PAGE)).collect();
    assert_eq!(held, [true, false, true, false, false, true]);
    assert_eq!(guest.read(DATA + PAGE, 1), [0]);
    guest.write(DATA + PAGE, &[8]);
    assert_eq!(guest.read(DATA + PAGE, 1), [8], "the guest may use it again");
}

#[test]
fn parts_of_pages_and_what_is_not_reported_stay() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let balloon = live(&guest);
    guest.write(DATA, &[7; 4 * PAGE as usize]);
    guest.chain(REPORTING, &[(DATA + 1, 2 * PAGE as u32, WRITE)]); // one whole page is in it
    guest.chain(REPORTING, &[(DATA + 3 * PAGE, 100, WRITE)]);
    guest.chain(REPORTING, &[(DATA + 3 * PAGE, PAGE as u32, 0)]); // not the device's to write
    guest.chain(REPORTING, &[(MEMORY - PAGE, 2 * PAGE as u32, WRITE)]); // ends outside
    for turn in 1..=4 {
        serve(&balloon, REPORTING);
        assert_eq!(guest.used_count(REPORTING), turn, "one report a turn");
    }
    let page = |number| guest.read(DATA + number * PAGE, PAGE as usize);
    assert_eq!(page(0), [7; PAGE as usize]);
    assert_eq!(page(1), [0; PAGE as usize]);
    assert_eq!(page(2), [7; PAGE as usize]);
    assert_eq!(page(3), [7; PAGE as usize]);
}

/// virtio-mem's blocks that are not plugged stay what they are: without memory, and not to be used.
#[test]
fn an_unplugged_block_stays_as_it_is() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let (region, memory) = Region::reserve(&guest.memory, 64).unwrap();
    let start = crate::memory::hotplug_start(&guest.memory);
    let balloon = Arc::new(Mutex::new(Balloon::new()));
    EventLoop::new().unwrap().add(balloon.clone()).unwrap();
    let mut active = guest.activation(VIRTIO_F_VERSION_1 | F_REPORTING);
    active.memory = memory.clone();
    lock(&balloon).activate(active).unwrap();
    guest.chain(REPORTING, &[(start, 64 << 20, WRITE)]);
    serve(&balloon, REPORTING);
    assert_eq!(guest.used_count(REPORTING), 1);
    let address = memory.get_host_address(GuestAddress(start)).unwrap() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let access = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).unwrap();
        (number(from)..number(to)).contains(&address).then(|| rest[..4].to_owned())
    });
    assert_eq!(access.as_deref(), Some("---p"));
    drop(region);
}

#[test]
fn the_balloon_stays_empty() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let balloon = live(&guest);
    guest.write(DATA, &[7; PAGE as usize]);
    guest.write(DATA + PAGE, &(DATA as u32 / PAGE as u32).to_le_bytes());
    for queue in [0, 1] {
        guest.chain(queue, &[(DATA + PAGE, 4, 0)]);
        serve(&balloon, queue);
        assert_eq!(guest.used_count(queue), 1);
    }
    assert!(is_held(&guest.memory, DATA), "an inflated page stays the guest's");
    let mut balloon = lock(&balloon);
    balloon.write_config(0, &[1; 4]);
    balloon.write_config(4, &[2, 0, 0, 0]);
    balloon.write_config(5, &[9; 4]);
    balloon.write_config(4, &[9; 2]);
    let mut config = [0xff; 12];
    balloon.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let text = serde_json::to_string(&balloon.state).unwrap();
    assert_eq!(serde_json::from_str::<BalloonState>(&text).unwrap(), balloon.state);
    balloon.reset();
    assert_eq!((balloon.state.features, balloon.state.actual), (0, 0));
}

proptest! {
    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec((any_attack(), 0..3_usize), 1..4)) {
        let mut guest = Guest::new(&QUEUE_SIZES);
        let balloon = live(&guest);
        for (attack, queue) in attacks {
            attack.strike(&mut guest, queue);
            serve(&balloon, queue);
        }
    }
}

use std::sync::{Arc, Mutex};

use proptest::prelude::{prop, proptest};

use super::*;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE, any_attack};
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventFlags, EventHandler, EventLoop, lock};

fn live(guest: &Guest) -> Arc<Mutex<Rng>> {
    let rng = Arc::new(Mutex::new(Rng::new()));
    EventLoop::new().unwrap().add(rng.clone()).unwrap();
    lock(&rng).activate(guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)).unwrap();
    rng
}

fn serve(rng: &Mutex<Rng>) {
    lock(rng).ready(0, EventFlags::IN);
}

#[test]
fn requests_are_filled_and_bounded() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let rng = live(&guest);
    guest.chain(0, &[(DATA, 64, WRITE)]);
    guest.chain(0, &[(DATA + 0x1000, 5000, WRITE), (DATA + 0x8000, 5000, WRITE)]);
    guest.chain(0, &[(DATA, 64, 0)]);
    serve(&rng);
    assert_eq!(guest.used_count(0), 3);
    assert_eq!(guest.used_entry(0, 0), (0, 64));
    assert_eq!(guest.used_entry(0, 1), (1, MAX_BYTES as u32));
    assert_eq!(guest.used_entry(0, 2).1, 0, "nothing to write to");
    assert_ne!(guest.read(DATA, 64), [0; 64]);
    assert_eq!(guest.read(DATA + 0x1000 + MAX_BYTES as u64, 8), [0; 8]);
    assert!(guest.interrupts() > 0);
}

#[test]
fn a_reset_device_is_silent_and_starts_again() {
    let mut guest = Guest::new(&QUEUE_SIZES);
    let rng = live(&guest);
    lock(&rng).reset();
    guest.chain(0, &[(DATA, 64, WRITE)]);
    serve(&rng);
    assert_eq!(guest.used_count(0), 0);
    lock(&rng).activate(guest.activation(VIRTIO_F_VERSION_1)).unwrap();
    serve(&rng);
    assert_eq!(guest.used_count(0), 1);
}

proptest! {
    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec(any_attack(), 1..4)) {
        let mut guest = Guest::new(&QUEUE_SIZES);
        let rng = live(&guest);
        for attack in attacks {
            attack.strike(&mut guest, 0);
            serve(&rng);
        }
    }
}

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vm_memory::Bytes;

use super::*;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE, any_attack};
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventFlags, EventHandler, EventLoop, lock};

/// The device's tap is one end of a packet socket; the test holds the other.
struct Bench {
    guest: Guest,
    net: Arc<Mutex<Net>>,
    wire: OwnedFd,
    _events: EventLoop,
}

impl Bench {
    fn new(features: u64) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (tap, wire) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let guest = Guest::new(&QUEUE_SIZES);
        let net = Arc::new(Mutex::new(Net::new(tap).unwrap()));
        let mut events = EventLoop::new().unwrap();
        events.add(net.clone()).unwrap();
        lock(&net).activate(guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | features)).unwrap();
        Self { guest, net, wire, _events: events }
    }

    fn event(&self, token: u32) {
        lock(&self.net).ready(token, EventFlags::IN);
    }

    fn send(&self, length: usize) -> Vec<u8> {
        let frame: Vec<u8> = (0..length).map(|at| if at < HEADER { 0 } else { at as u8 }).collect();
        assert_eq!(rustix::io::write(&self.wire, &frame).unwrap(), length);
        frame
    }

    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; MAX_FRAME];
        let length = rustix::io::read(&self.wire, &mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}

const EVENT_RX: u32 = RX as u32;
const EVENT_TX: u32 = TX as u32;
const EVENT_TAP: u32 = 2;

#[test]
fn a_frame_fills_as_many_merged_buffers_as_it_needs() {
    let mut bench = Bench::new(F_MRG_RXBUF);
    for buffer in 0..4 {
        bench.guest.chain(RX, &[(DATA + 0x1000 * buffer, 100, WRITE)]);
    }
    let frame = bench.send(250);
    bench.event(EVENT_TAP);
    assert_eq!(bench.guest.used_count(RX), 3);
    let lengths: Vec<u32> = (0..3).map(|number| bench.guest.used_entry(RX, number).1).collect();
    assert_eq!(lengths, [100, 100, 50]);
    let got: Vec<u8> = (0..3).flat_map(|n| bench.guest.read(DATA + 0x1000 * n, lengths[n as usize] as usize)).collect();
    assert_eq!(u16::from_le_bytes([got[NUM_BUFFERS], got[NUM_BUFFERS + 1]]), 3);
    assert_eq!(got[HEADER..], frame[HEADER..]);
    assert!(bench.guest.interrupts() > 0);
}

/// virtio 1.3 section 5.1.6.4: all buffers of a frame are used together. A driver that sees only the first of them drops
/// the frame, and takes each of the others for a frame of its own.
#[test]
fn the_driver_only_ever_sees_whole_frames() {
    const LENGTH: usize = 65_562; // header, Ethernet header, the longest IPv4 packet but one byte
    const BUFFERS: u16 = 17; // of 4 KiB
    let mut bench = Bench::new(F_MRG_RXBUF);
    let (memory, index) = (bench.guest.memory.clone(), bench.guest.used_index_address(RX));
    let over = Arc::new(AtomicBool::new(false));
    let ended = over.clone();
    let driver = std::thread::spawn(move || {
        let mut torn = 0_u64;
        while !ended.load(Ordering::SeqCst) {
            let seen: u16 = memory.load(index, Ordering::Acquire).unwrap();
            torn += u64::from(!seen.is_multiple_of(BUFFERS));
        }
        torn
    });
    for _ in 0..300 {
        for at in 0..u64::from(BUFFERS) {
            bench.guest.chain(RX, &[(DATA + 4096 * at, 4096, WRITE)]);
        }
        bench.send(LENGTH);
        bench.event(EVENT_TAP);
    }
    over.store(true, Ordering::SeqCst);
    assert_eq!(bench.guest.used_count(RX), 300 * BUFFERS);
    assert_eq!(driver.join().unwrap(), 0, "the index stopped inside a frame");
}

#[test]
fn frames_wait_for_buffers_without_watching_the_tap() {
    let mut bench = Bench::new(F_MRG_RXBUF);
    let frame = bench.send(60);
    bench.event(EVENT_TAP);
    assert!(!lock(&bench.net).watches_tap);
    assert_eq!(bench.guest.used_count(RX), 0);
    bench.guest.chain(RX, &[(DATA, 40, WRITE)]);
    bench.event(EVENT_RX);
    assert_eq!(bench.guest.used_count(RX), 0, "one small buffer is not enough, and stays the guest's");
    bench.guest.chain(RX, &[(DATA + 40, 40, WRITE)]);
    bench.event(EVENT_RX);
    assert!(lock(&bench.net).watches_tap);
    assert_eq!(bench.guest.used_count(RX), 2);
    assert_eq!(bench.guest.read(DATA + HEADER as u64, 60 - HEADER), frame[HEADER..]);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped() {
    let mut bench = Bench::new(0);
    bench.guest.chain(RX, &[(DATA, 100, WRITE)]);
    bench.guest.chain(RX, &[(DATA + 0x1000, HEADER as u32, WRITE), (DATA + 0x2000, 1600, WRITE)]);
    bench.send(500);
    let frame = bench.send(501);
    bench.event(EVENT_TAP);
    assert_eq!(bench.guest.used_entry(RX, 0), (0, 0));
    assert_eq!(bench.guest.used_entry(RX, 1), (1, 501));
    assert_eq!(bench.guest.read(DATA + NUM_BUFFERS as u64 + 0x1000, 2), [1, 0]);
    assert_eq!(bench.guest.read(DATA + 0x2000, 501 - HEADER), frame[HEADER..]);
}

#[test]
fn frames_of_the_guest_reach_the_tap_whole() {
    let mut bench = Bench::new(0);
    let frame: Vec<u8> = (0..2000).map(|at| if at < HEADER { 0 } else { at as u8 }).collect();
    bench.guest.write(DATA, &frame);
    bench.guest.chain(TX, &[(DATA, 12, 0), (DATA + 12, 1000, 0), (DATA + 1012, 988, 0)]);
    bench.guest.chain(TX, &[(DATA, 11, 0)]); // shorter than a header
    bench.guest.chain(TX, &[(DATA, 40_000, 0), (DATA, 40_000, 0)]); // longer than a frame
    bench.guest.chain(TX, &[(DATA, 64, WRITE)]); // nothing to send
    bench.guest.chain(TX, &[(DATA, 64, 0)]);
    bench.event(EVENT_TX);
    assert_eq!(bench.guest.used_count(TX), 5);
    assert_eq!(bench.sent().unwrap(), frame);
    assert_eq!(bench.sent().unwrap(), frame[..64]);
    assert_eq!(bench.sent(), None);
}

#[test]
fn a_frame_that_asks_for_what_was_not_negotiated_is_dropped() {
    let mut bench = Bench::new(F_CSUM | F_HOST_TSO4);
    for (number, (flags, gso_type)) in [(1, 1), (1, 4), (0, 5), (0, 0)].into_iter().enumerate() {
        let at = DATA + 0x1000 * number as u64;
        bench.guest.write(at, &[[flags, gso_type].as_slice(), &[0; 62]].concat());
        bench.guest.chain(TX, &[(at, 64, 0)]);
    }
    bench.event(EVENT_TX);
    assert_eq!(bench.guest.used_count(TX), 4);
    assert_eq!(bench.sent().unwrap()[..2], [1, 1]);
    assert_eq!(bench.sent().unwrap()[..2], [0, 0]);
    assert_eq!(bench.sent(), None);
}

#[test]
fn a_turn_is_bounded_and_continues() {
    let mut bench = Bench::new(F_MRG_RXBUF);
    for _ in 0..40 {
        bench.guest.chain(RX, &[(DATA, 2000, WRITE)]);
        bench.send(100);
        bench.event(EVENT_TAP);
    }
    assert_eq!(bench.guest.used_count(RX), 40);
    assert!(lock(&bench.net).watches_tap);
    lock(&bench.net).reset();
    bench.send(100);
    for token in [EVENT_TAP, EVENT_RX, EVENT_TX] {
        bench.event(token);
    }
    assert_eq!(bench.guest.used_count(RX), 40, "a reset device is silent");
}

#[test]
fn a_tap_that_is_gone_is_watched_no_more() {
    let bench = Bench::new(0);
    assert!(lock(&bench.net).watches_tap);
    lock(&bench.net).ready(EVENT_TAP, EventFlags::ERR | EventFlags::IN);
    assert!(!lock(&bench.net).watches_tap);
}

proptest! {
    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec((any_attack(), 0..2_usize, 12..3000_usize), 1..5), merge: bool) {
        let mut bench = Bench::new(if merge { F_MRG_RXBUF } else { 0 });
        for (attack, queue, length) in attacks {
            bench.send(length);
            attack.strike(&mut bench.guest, queue);
            for token in [EVENT_TAP, EVENT_RX, EVENT_TX] {
                bench.event(token);
            }
            while bench.sent().is_some() {}
        }
    }
}

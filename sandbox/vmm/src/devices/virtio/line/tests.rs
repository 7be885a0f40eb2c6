use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE};
use crate::devices::virtio::{Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};
use crate::event_loop::event_fd;

const SIZE: u16 = 8;

#[test]
fn a_turn_ends_at_its_budget_and_kicks_itself() {
    let mut guest = Guest::new(&[SIZE]);
    let Activation { memory, mut queues, interrupt, .. } = guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    for _ in 0..3 {
        guest.chain(0, &[(DATA, 4, WRITE)]);
    }
    queues[0].serve_at_most(2, INTERRUPT_AFTER, &memory, &interrupt, |_| 1);
    assert_eq!(guest.used_count(0), 2);
    assert!(queues[0].kick.read().is_ok(), "it kicked itself");
    queues[0].serve_at_most(2, INTERRUPT_AFTER, &memory, &interrupt, |_| 1);
    assert_eq!(guest.used_count(0), 3);
    assert!(queues[0].kick.read().is_err(), "it sleeps");
}

/// A chain that the driver adds after the device found the ring empty, and before `avail_event` names it, comes without
/// a kick: the same turn must take it, although it had served nothing yet.
#[test]
fn a_chain_that_came_without_a_kick_is_served_in_the_same_turn() {
    let mut guest = Guest::new(&[SIZE]);
    let Activation { memory, mut queues, .. } = guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    assert!(queues[0].pop(&memory).is_none(), "the ring is empty");
    guest.chain(0, &[(DATA, 4, WRITE)]);
    let more = queues[0].queue.enable_notification(&memory).unwrap();
    assert!(more);
    assert_eq!(Turn::new(BUDGET).asked(more), Next::LookAgain);
}

#[test]
fn elements_are_seen_together_and_told_of_once() {
    let mut guest = Guest::new(&[SIZE]);
    let Activation { memory, mut queues, interrupt, .. } = guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    let line = &mut queues[0];
    for round in 0..u16::MAX / 3 + 9 {
        for _ in 0..3 {
            guest.chain(0, &[(DATA, 4, WRITE)]);
            let head = line.pop(&memory).unwrap().head_index();
            line.put_used(&memory, head, u32::from(round));
        }
        assert_eq!(guest.used_count(0), round.wrapping_mul(3));
        line.publish(&memory);
        assert_eq!(guest.used_count(0), round.wrapping_mul(3).wrapping_add(3));
        assert_eq!(guest.used_entry(0, round.wrapping_mul(3).wrapping_add(1)).1, u32::from(round));
        // The driver waits for the second of the three.
        guest.set_used_event(0, round.wrapping_mul(3).wrapping_add(1));
        line.interrupt_if_wanted(&memory, &interrupt);
        line.interrupt_if_wanted(&memory, &interrupt);
        assert_eq!(guest.interrupts(), 1, "round {round}");
    }
    line.put_used(&memory, SIZE, 1);
    line.publish(&memory);
    line.interrupt_if_wanted(&memory, &interrupt);
    assert_eq!(guest.interrupts(), 0, "a head outside the table is nothing");
}

#[test]
fn fast_devices_interrupt_less_often_than_slow_ones() {
    let run = |slow: bool| {
        let mut guest = Guest::new(&[128]);
        let Activation { memory, mut queues, interrupt, .. } = guest.activation(VIRTIO_F_VERSION_1);
        for _ in 0..100 {
            guest.chain(0, &[(DATA, 4, WRITE)]);
        }
        match slow {
            true => queues[0].serve_chains(&memory, &interrupt, |_| 0),
            false => queues[0].serve_at_most(BUDGET, Duration::from_secs(60), &memory, &interrupt, |_| 0),
        }
        assert_eq!(guest.used_count(0), 100);
        guest.interrupts()
    };
    assert_eq!((run(true), run(false)), (100, 1));
}

/// A driver that kicks exactly when `avail_event` says so, against a device with a small budget: all is served, and
/// neither side waits for the other.
#[test]
fn a_driver_that_honours_avail_event_is_never_left_waiting() {
    const CHAINS: u64 = 400_000;
    let mut guest = Guest::new(&[SIZE]);
    let Activation { memory, mut queues, interrupt, .. } = guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    let (served, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, ended) = (served.clone(), over.clone());
    let device = std::thread::spawn(move || {
        let line = &mut queues[0];
        while !ended.load(Ordering::SeqCst) {
            let kick = event_fd(&line.kick);
            let mut ready = [PollFd::new(&kick, PollFlags::IN)];
            if poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 10_000_000 })).unwrap() > 0 {
                line.take_kick();
                line.serve_at_most(4, INTERRUPT_AFTER, &memory, &interrupt, |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                    0
                });
            }
        }
    });
    let mut progress = Instant::now();
    let mut last = 0;
    for added in 0..CHAINS {
        loop {
            let waiting = (added as u16).wrapping_sub(guest.used_count(0));
            if waiting < SIZE {
                break;
            }
            let now = served.load(Ordering::SeqCst);
            if now != last {
                (last, progress) = (now, Instant::now());
            }
            assert!(progress.elapsed() < Duration::from_secs(20), "the queue hangs after {now} chains");
            std::thread::yield_now();
        }
        guest.chain(0, &[(DATA, 4, WRITE)]);
        guest.kick_if_wanted(0);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while served.load(Ordering::SeqCst) < CHAINS {
        assert!(Instant::now() < deadline, "the queue hangs at its end");
        std::thread::yield_now();
    }
    over.store(true, Ordering::SeqCst);
    device.join().unwrap();
}

//! A device that is paused, and one that goes on in a clone.

use super::*;
use crate::devices::virtio::saved::DeviceState;

#[test]
fn connections_outlive_a_pause_and_nothing_is_lost_in_it() {
    let mut bench = Bench::new();
    bench.offer(16);
    let (mut stream, key) = bench.connect();
    let mut greeting = UnixStream::connect(bench.dir.path().join("vsock")).unwrap();
    bench.turn();

    let active = lock(&bench.vsock).pause().unwrap();
    assert!(lock(&bench.vsock).pause().is_none());
    stream.write_all(b"meanwhile").unwrap();
    greeting.write_all(b"CONNECT 7\n").unwrap();
    let mut late = UnixStream::connect(bench.dir.path().join("vsock")).unwrap();
    late.write_all(b"CONNECT 8\n").unwrap();
    // Whatever is reported is reported once: the loop does not spin.
    for _ in 0..3 {
        bench.events.turn_now();
    }
    assert!(!bench.events.turn_now(), "a paused device keeps the main loop busy");
    assert_eq!(bench.guest.used_count(RX), bench.seen, "the guest gets nothing");

    lock(&bench.vsock).activate(active).unwrap();
    bench.turn();
    let packets = bench.packets();
    let data: Vec<&[u8]> =
        packets.iter().filter(|(header, _)| header.op == op::RW).map(|(_, data)| &data[..]).collect();
    assert_eq!(data, [b"meanwhile"]);
    let mut asked: Vec<u32> =
        packets.iter().filter(|(header, _)| header.op == op::REQUEST).map(|(header, _)| header.dst_port).collect();
    asked.sort_unstable();
    assert_eq!(asked, [7, 8]);
    bench.send(key, op::RW, 0, b"answer");
    let mut bytes = [0; 32];
    assert_eq!(stream.read(&mut bytes).unwrap(), 6);
}

#[test]
fn a_clone_hears_that_its_connections_are_gone_and_takes_new_ones() {
    let mut original = Bench::new();
    original.offer(16);
    let _held = original.connect();
    original.agent_listens.write(1).unwrap();
    original.turn();
    lock(&original.vsock).pause().unwrap();
    let state = lock(&original.vsock).save().unwrap();

    let mut clone = Bench::new();
    lock(&clone.vsock).reset();
    lock(&clone.vsock).restore(&state).unwrap();
    assert!(lock(&clone.vsock).agent_listens());
    let event = DATA + 0x8_0000;
    clone.guest.write(event, &[0xff; 8]);
    for _ in 0..2 {
        clone.guest.chain(EVENT, &[(event, 8, WRITE)]);
    }
    let active = clone.guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    lock(&clone.vsock).activate(active).unwrap();
    assert_eq!(clone.guest.used_entry(EVENT, 0), (0, 4));
    assert_eq!(clone.guest.read(event, 5), [0, 0, 0, 0, 0xff], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    assert_eq!(clone.guest.interrupts(), 1);
    clone.offer(16);
    // The guest resets whatever it knows as connected when it comes to the event, new connections
    // too.
    let mut stream = UnixStream::connect(clone.dir.path().join("vsock")).unwrap();
    stream.write_all(b"CONNECT 5\n").unwrap();
    clone.turn();
    clone.guest.kick(EVENT); // as the monitor does when the device goes on
    clone.turn();
    assert_eq!(clone.packets().len(), 0, "connections wait until the guest has taken note");
    clone.guest.chain(EVENT, &[(event, 8, WRITE)]);
    clone.guest.kick_if_wanted(EVENT);
    clone.turn();
    assert_eq!((clone.packet().0.dst_port, clone.connections()), (5, 1));
    let (_, key) = clone.connect();
    assert_eq!(key.host_port, FIRST_HOST_PORT + 2, "ports of lost connections are not used again at once");

    // Once.
    let active = lock(&clone.vsock).pause().unwrap();
    lock(&clone.vsock).activate(active).unwrap();
    assert_eq!(clone.guest.used_count(EVENT), 1);
}

#[test]
fn a_clone_that_had_no_connections_is_told_nothing() {
    let original = Bench::new();
    lock(&original.vsock).pause().unwrap();
    let state = lock(&original.vsock).save().unwrap();
    let mut clone = Bench::new();
    lock(&clone.vsock).reset();
    lock(&clone.vsock).restore(&state).unwrap();
    clone.guest.chain(EVENT, &[(DATA, 8, WRITE)]);
    let active = clone.guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX);
    lock(&clone.vsock).activate(active).unwrap();
    assert_eq!(clone.guest.used_count(EVENT), 0);
    clone.offer(16);
    clone.connect();
}

#[test]
fn the_state_of_another_guest_is_refused() {
    let bench = Bench::new();
    let DeviceState::Vsock(mut state) = lock(&bench.vsock).save().unwrap() else { panic!("another device's") };
    state.guest_cid = 9;
    let why = lock(&bench.vsock).restore(&DeviceState::Vsock(state)).unwrap_err().to_string();
    assert_eq!(why, "the address of device vsock was 9 when it was saved, and is 3");
    let why = lock(&bench.vsock).restore(&DeviceState::Empty).unwrap_err().to_string();
    assert_eq!(why, "the state for device vsock is one of another kind of device");
}

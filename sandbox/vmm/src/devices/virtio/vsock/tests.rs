use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use cofferdam_proto::sink::{SinkRequest, VSOCK_PORT};
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

mod pause;

use super::connection::Key;
use super::header::{HEADER, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::*;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE, any_attack};
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::{EventFlags, EventHandler, EventLoop, lock};

const CID: u64 = 3;
/// Buffer of the `n`th receive chain, and of what the guest sends.
const RECEIVE: u64 = DATA;
const SEND: u64 = DATA + 0x10_0000;
const BUFFER: u32 = 0x1100;
const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
/// The guest's port of connections that it makes.
const LOG_SOURCE: u32 = 9000;

struct Bench {
    guest: Guest,
    vsock: Arc<Mutex<Vsock>>,
    events: EventLoop,
    agent_listens: Arc<EventFd>,
    dir: tempfile::TempDir,
    offered: u64,
    seen: u16,
    log_disk_hangs: bool,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener: OwnedFd = UnixListener::bind(dir.path().join("vsock")).unwrap().into();
        let agent_listens = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let vsock = Arc::new(Mutex::new(Vsock::new(CID as u32, listener, agent_listens.clone()).unwrap()));
        let mut events = EventLoop::new().unwrap();
        events.add(vsock.clone()).unwrap();
        let guest = Guest::new(&QUEUE_SIZES);
        lock(&vsock).activate(guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)).unwrap();
        Self { guest, vsock, events, agent_listens, dir, offered: 0, seen: 0, log_disk_hangs: false }
    }

    /// Lets the device serve all events that there are, and write all logs.
    fn turn(&mut self) {
        while self.events.turn_now() {}
        while self.logs_wait() {
            while self.events.turn_now() {}
        }
    }

    /// Waits for the logs' writer, unless its disk does not answer; answers whether there is
    /// something to do afterwards.
    fn logs_wait(&self) -> bool {
        if self.log_disk_hangs {
            return false;
        }
        lock(&self.vsock).sink.wait_idle();
        self.events.turn_now()
    }

    /// Gives the device `count` receive buffers.
    fn offer(&mut self, count: u64) {
        for _ in 0..count {
            let at = RECEIVE + (self.offered % 128) * u64::from(BUFFER);
            self.guest.chain(RX, &[(at, BUFFER, WRITE)]);
            self.offered += 1;
        }
        self.guest.kick(RX);
        self.turn();
    }

    /// The packets that came since the last call; their buffers are offered again.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        while self.seen != self.guest.used_count(RX) {
            let (_, length) = self.guest.used_entry(RX, self.seen);
            let at = RECEIVE + u64::from(self.seen % 128) * u64::from(BUFFER);
            let bytes = self.guest.read(at, length as usize);
            let header = Header::parse(bytes[..HEADER].try_into().unwrap());
            assert_eq!(header.len as usize, bytes.len() - HEADER);
            assert_eq!((header.src_cid, header.dst_cid, header.kind), (HOST_CID, CID, TYPE_STREAM));
            packets.push((header, bytes[HEADER..].to_vec()));
            self.seen = self.seen.wrapping_add(1);
        }
        self.offer(packets.len() as u64);
        packets
    }

    fn packet(&mut self) -> (Header, Vec<u8>) {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    fn send_header(&mut self, header: Header, payload: &[u8]) {
        self.guest.write(SEND, &[&header.bytes()[..], payload].concat());
        let length = payload.len() as u32;
        if payload.is_empty() {
            self.guest.chain(TX, &[(SEND, HEADER as u32, 0)]);
        } else {
            self.guest.chain(TX, &[(SEND, HEADER as u32, 0), (SEND + HEADER as u64, length, 0)]);
        }
        self.guest.kick(TX);
        self.turn();
    }

    fn send(&mut self, key: Key, op: u16, flags: u32, payload: &[u8]) {
        self.send_header(header(key, op, flags, payload.len() as u32), payload);
    }

    /// A connection of the node's to guest port 1024.
    fn connect(&mut self) -> (UnixStream, Key) {
        let mut stream = UnixStream::connect(self.dir.path().join("vsock")).unwrap();
        stream.write_all(b"CONNECT 1024\n").unwrap();
        self.turn();
        let (request, _) = self.packet();
        assert_eq!((request.op, request.dst_port, request.buf_alloc), (op::REQUEST, 1024, BUF_ALLOC));
        let key = Key { host_port: request.src_port, guest_port: 1024 };
        self.send(key, op::RESPONSE, 0, &[]);
        let mut line = [0; 8];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK 1024\n");
        stream.set_nonblocking(true).unwrap();
        (stream, key)
    }

    /// A connection of the guest's to the log sink, with the id sent.
    fn log(&mut self) -> Key {
        let key = Key { host_port: VSOCK_PORT, guest_port: LOG_SOURCE };
        self.send(key, op::REQUEST, 0, &[]);
        assert_eq!(self.packet().0.op, op::RESPONSE);
        self.send(key, op::RW, 0, &[&[64][..], ID.as_bytes()].concat());
        key
    }

    fn open_sink(&mut self, file: &std::fs::File) {
        let request = SinkRequest::Open { container: ID.into() };
        lock(&self.vsock).sink_request(&request, Some(file.try_clone().unwrap().into())).unwrap();
        self.turn();
    }

    fn connections(&self) -> usize {
        let vsock = lock(&self.vsock);
        vsock.connections.len() + vsock.greetings.len() + vsock.early.len()
    }
}

fn header(key: Key, op: u16, flags: u32, len: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: key.guest_port,
        dst_port: key.host_port,
        len,
        kind: TYPE_STREAM,
        op,
        flags,
        buf_alloc: 0x2_0000,
        fwd_cnt: 0,
    }
}

fn frame(text: &[u8]) -> Vec<u8> {
    [&[1][..], &(text.len() as u32).to_le_bytes(), text].concat()
}

#[test]
fn bytes_flow_both_ways_and_half_closes_pass() {
    let mut bench = Bench::new();
    bench.offer(16);
    let (mut stream, key) = bench.connect();
    stream.write_all(b"to the guest").unwrap();
    bench.turn();
    assert_eq!(bench.packet().1, b"to the guest");
    bench.send(key, op::RW, 0, b"to the node");
    let mut bytes = [0; 32];
    assert_eq!(stream.read(&mut bytes).unwrap(), 11);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    bench.turn();
    let (shutdown, _) = bench.packet();
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    bench.send(key, op::RW, 0, b"answer");
    bench.send(key, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    assert_eq!(stream.read(&mut bytes).unwrap(), 6);
    assert_eq!(stream.read(&mut bytes).unwrap(), 0, "the end");
    assert_eq!(bench.packet().0.op, op::RST, "which the guest waits for");
    assert_eq!(bench.connections(), 0);
}

/// A guest that takes nothing and opens and resets one connection after the other leaves no trace of them.
#[test]
fn connections_that_are_over_leave_the_list_of_work() {
    let mut bench = Bench::new();
    for source in 0..5000 {
        let key = Key { host_port: VSOCK_PORT, guest_port: source };
        bench.send(key, op::REQUEST, 0, &[]);
        assert_eq!(lock(&bench.vsock).work.len(), 1, "a response waits for a buffer");
        bench.send(key, op::RST, 0, &[]);
        let vsock = lock(&bench.vsock);
        assert_eq!((vsock.work.len(), vsock.connections.len(), vsock.resets.len()), (0, 0, 0));
    }
    // Those that stay are served in turn when buffers come.
    for source in 0..3 {
        bench.send(Key { host_port: VSOCK_PORT, guest_port: source }, op::REQUEST, 0, &[]);
    }
    bench.send(Key { host_port: VSOCK_PORT, guest_port: 1 }, op::RST, 0, &[]);
    bench.offer(8);
    let answered: Vec<u32> = bench.packets().iter().map(|(header, _)| header.dst_port).collect();
    assert_eq!(answered, [0, 2]);
}

#[test]
fn a_closed_socket_gives_its_last_bytes_and_a_reset() {
    let mut bench = Bench::new();
    bench.offer(16);
    let (mut stream, _) = bench.connect();
    stream.write_all(b"last").unwrap();
    drop(stream);
    bench.turn();
    let packets = bench.packets();
    assert_eq!(packets[0].1, b"last");
    assert_eq!(packets.last().unwrap().0.op, op::RST);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn without_buffers_or_credit_a_socket_waits_without_being_watched() {
    let mut bench = Bench::new();
    bench.offer(1);
    let (mut stream, key) = bench.connect();
    // Two buffers: one for what fits the credit, one for the question for more.
    bench.send_header(Header { buf_alloc: 10, ..header(key, op::CREDIT_UPDATE, 0, 0) }, &[]);
    stream.write_all(&[7; 25]).unwrap();
    bench.turn();
    assert_eq!(bench.packet().1.len(), 10);
    assert_eq!(bench.packet().0.op, op::CREDIT_REQUEST);
    assert!(bench.packets().is_empty(), "asked once");
    drop(stream);
    bench.turn();
    bench.send_header(Header { buf_alloc: 10, fwd_cnt: 10, ..header(key, op::CREDIT_UPDATE, 0, 0) }, &[]);
    assert_eq!(bench.packet().1.len(), 10);
    bench.packets();
    bench.send_header(Header { buf_alloc: 10, fwd_cnt: 20, ..header(key, op::CREDIT_UPDATE, 0, 0) }, &[]);
    assert_eq!(bench.packet().1.len(), 5);
    assert_eq!(bench.packet().0.op, op::RST);
}

#[test]
fn a_slow_reader_holds_the_guest_back_and_a_guest_without_credit_is_reset() {
    let mut bench = Bench::new();
    bench.offer(32);
    let (mut stream, key) = bench.connect();
    let chunk = vec![5; 32 << 10];
    let mut sent = 0;
    // The socket takes some, then the device's buffer fills; the credit says how much is left.
    let mut taken = 0;
    loop {
        for (header, _) in bench.packets() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            taken = header.fwd_cnt;
        }
        if sent + chunk.len() as u32 > taken + BUF_ALLOC {
            break;
        }
        bench.send(key, op::RW, 0, &chunk);
        sent += chunk.len() as u32;
        assert!(sent < 16 << 20, "no back pressure");
    }
    let mut got = 0;
    let mut bytes = vec![0; 1 << 20];
    while got < sent as usize {
        match stream.read(&mut bytes) {
            Ok(count) => got += count,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        bench.turn();
    }
    let (update, _) = bench.packets().pop().unwrap();
    assert_eq!((update.op, update.fwd_cnt), (op::CREDIT_UPDATE, sent));
    for _ in 0..20 {
        bench.send(key, op::RW, 0, &chunk);
    }
    assert!(bench.packets().iter().any(|(header, _)| header.op == op::RST));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn who_calls_before_the_agent_listens_is_connected_when_it_does() {
    let mut bench = Bench::new();
    bench.offer(8);
    let mut stream = UnixStream::connect(bench.dir.path().join("vsock")).unwrap();
    stream.write_all(b"CONNECT 1024\nearly").unwrap();
    bench.turn();
    let (request, _) = bench.packet();
    bench.send(Key { host_port: request.src_port, guest_port: 1024 }, op::RST, 0, &[]);
    assert_eq!(bench.connections(), 1, "it waits");
    bench.agent_listens.write(1).unwrap();
    bench.turn();
    let (request, _) = bench.packet();
    let key = Key { host_port: request.src_port, guest_port: 1024 };
    bench.send(key, op::RESPONSE, 0, &[]);
    assert_eq!(bench.packet().1, b"early", "what followed the line is not lost");
    // From now on a refusal is one.
    let mut late = UnixStream::connect(bench.dir.path().join("vsock")).unwrap();
    late.write_all(b"CONNECT 99\n").unwrap();
    bench.turn();
    let (request, _) = bench.packet();
    bench.send(Key { host_port: request.src_port, guest_port: 99 }, op::RST, 0, &[]);
    assert_eq!(late.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(bench.connections(), 1);
}

#[test]
fn other_greetings_are_hung_up_on() {
    let mut bench = Bench::new();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 99999999999\n", "CONNECT -1\n", &"C".repeat(100), "\n"] {
        let mut stream = UnixStream::connect(bench.dir.path().join("vsock")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        bench.turn();
        assert_eq!(bench.connections(), 0, "{line:?}");
    }
    drop(UnixStream::connect(bench.dir.path().join("vsock")).unwrap());
    bench.turn();
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_log_waits_for_its_file_and_survives_its_connection() {
    let mut bench = Bench::new();
    bench.offer(8);
    let key = bench.log();
    bench.send(key, op::RW, 0, &frame(b"one\ntwo"));
    bench.send(key, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    assert_eq!(bench.packet().0.op, op::RST);
    assert_eq!(bench.connections(), 1, "held until there is a file");
    let again = bench.log(); // the port is free again
    bench.send(again, op::RW, 0, &frame(b"three\n"));
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.open_sink(&file.reopen().unwrap());
    let text = std::fs::read_to_string(file.path()).unwrap();
    let mut records: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    records.sort_unstable();
    assert_eq!(records, ["stdout F one", "stdout F three", "stdout P two"]);
    assert_eq!(bench.connections(), 1);
    lock(&bench.vsock).sink_request(&SinkRequest::Close { container: ID.into() }, None).unwrap();
    bench.turn();
    assert_eq!(bench.packet().0.op, op::RST);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_guest_learns_that_its_log_is_whole() {
    let mut bench = Bench::new();
    bench.offer(8);
    let file = tempfile::NamedTempFile::new().unwrap();
    let key = bench.log();
    bench.send(key, op::RW, 0, &frame(b"one\ntwo"));
    bench.send(key, op::SHUTDOWN, SHUTDOWN_SEND, &[]);
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "");
    bench.open_sink(&file.reopen().unwrap());
    let (shutdown, _) = bench.packet();
    assert_eq!((shutdown.op, shutdown.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    assert!(std::fs::read_to_string(file.path()).unwrap().ends_with(" stdout P two\n"));
    bench.send(key, op::SHUTDOWN, SHUTDOWN_SEND | SHUTDOWN_RECEIVE, &[]);
    assert_eq!(bench.packet().0.op, op::RST);
    assert_eq!(bench.connections(), 0);
}

#[test]
fn a_long_log_keeps_to_its_credit() {
    let mut bench = Bench::new();
    bench.offer(8);
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.open_sink(&file.reopen().unwrap());
    let key = bench.log();
    let text = frame(&[b'x'; 40_000]);
    let (mut sent, mut taken) = (65_u32, 0_u32);
    for _ in 0..20 {
        assert!(sent + text.len() as u32 <= taken + BUF_ALLOC, "no credit came");
        bench.send(key, op::RW, 0, &text);
        sent += text.len() as u32;
        taken = bench.packets().last().map_or(taken, |(header, _)| header.fwd_cnt);
    }
    bench.send(key, op::RST, 0, &[]);
    assert_eq!(bench.connections(), 0);
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte == b'x').count(), 800_000);
}

#[test]
fn a_log_disk_that_does_not_answer_stops_nothing_but_the_log() {
    let mut bench = Bench::new();
    bench.offer(8);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    rustix::io::write(&writer, &vec![b'\n'; size]).unwrap();
    lock(&bench.vsock).sink.open_unchecked(ID, writer);
    let log = bench.log();
    bench.log_disk_hangs = true;
    let text = frame(&[b'x'; 50_000]);
    bench.send(log, op::RW, 0, &text);
    bench.send(log, op::RW, 0, &frame(b"yy\n"));
    // An exec's connection goes on, and so do requests of the daemon.
    let (mut stream, key) = bench.connect();
    bench.send(key, op::RW, 0, b"ping");
    let mut bytes = [0; 4];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(b"pong").unwrap();
    bench.turn();
    let packets = bench.packets();
    assert!(packets.iter().any(|(header, data)| (header.op, &data[..]) == (op::RW, b"pong")));
    assert!(packets.iter().all(|(header, _)| header.src_port != log.host_port), "no credit for the log");
    // A guest that sends more than its credit is reset; what it sent before is written.
    bench.send(log, op::RW, 0, &text);
    assert_eq!(bench.packet().0.op, op::RST);
    assert_eq!(bench.connections(), 1);
    let drain = std::thread::spawn(move || std::io::read_to_string(std::fs::File::from(reader)).unwrap());
    lock(&bench.vsock).sink_request(&SinkRequest::Close { container: ID.into() }, None).unwrap();
    lock(&bench.vsock).finish_logs();
    let written = drain.join().unwrap();
    assert_eq!(written.matches('x').count(), 50_000);
    assert!(written.ends_with("xyy\n"));
}

#[test]
fn a_guest_that_ends_leaves_what_it_sent() {
    let mut bench = Bench::new();
    bench.offer(8);
    let file = tempfile::NamedTempFile::new().unwrap();
    bench.open_sink(&file.reopen().unwrap());
    let key = bench.log();
    let payload = frame(b"last words");
    // Sent, and not kicked: the VM stops before the device looks.
    bench.guest.write(SEND, &[&header(key, op::RW, 0, payload.len() as u32).bytes()[..], &payload].concat());
    bench.guest.chain(TX, &[(SEND, (HEADER + payload.len()) as u32, 0)]);
    lock(&bench.vsock).reset();
    lock(&bench.vsock).finish_logs();
    assert!(std::fs::read_to_string(file.path()).unwrap().ends_with("stdout P last words\n"));
    assert_eq!(bench.connections(), 0);
}

#[test]
fn guests_reach_nothing_but_the_log() {
    let mut bench = Bench::new();
    bench.offer(16);
    for port in [0, 1, 22, 1024, 1026, FIRST_HOST_PORT, u32::MAX] {
        bench.send(Key { host_port: port, guest_port: 5 }, op::REQUEST, 0, &[]);
        let (reset, _) = bench.packet();
        assert_eq!((reset.op, reset.src_port, reset.dst_port), (op::RST, port, 5));
    }
    let key = Key { host_port: VSOCK_PORT, guest_port: 5 };
    for (header, answered) in [
        (Header { src_cid: 99, ..header(key, op::REQUEST, 0, 0) }, false),
        (Header { dst_cid: 99, ..header(key, op::REQUEST, 0, 0) }, false),
        (Header { dst_cid: u64::MAX, ..header(key, op::REQUEST, 0, 0) }, false),
        (Header { kind: 2, ..header(key, op::REQUEST, 0, 0) }, true),
        (header(key, op::RW, 0, 0), true),
        (header(key, 77, 0, 0), true),
        (header(key, op::RST, 0, 0), false),
    ] {
        bench.send_header(header, &[]);
        assert_eq!(bench.packets().len(), usize::from(answered), "{header:?}");
    }
    assert_eq!(bench.connections(), 0);
}

#[test]
fn what_a_guest_has_open_is_bounded() {
    let mut bench = Bench::new();
    bench.offer(100);
    for port in 0..MAX_LOGS as u32 + 50 {
        bench.send(Key { host_port: VSOCK_PORT, guest_port: port }, op::REQUEST, 0, &[]);
        bench.packets();
    }
    assert_eq!(bench.connections(), MAX_LOGS);
    // Without receive buffers, resets are dropped and not piled up.
    let mut bench = Bench::new();
    for port in 0..500 {
        bench.send(Key { host_port: 7, guest_port: port }, op::REQUEST, 0, &[]);
    }
    assert_eq!(lock(&bench.vsock).resets.len(), MAX_RESETS);
}

#[test]
fn a_payload_that_is_shorter_than_said_ends_the_connection() {
    let mut bench = Bench::new();
    bench.offer(16);
    for len in [12, u32::MAX] {
        let (_stream, key) = bench.connect();
        bench.send_header(Header { len, ..header(key, op::RW, 0, 0) }, b"eleven byte");
        assert_eq!(bench.packet().0.op, op::RST);
        assert_eq!(bench.connections(), 0);
    }
}

#[test]
fn state_survives_serialization() {
    let state = lock(&Bench::new().vsock).state.clone();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<super::state::VsockState>(&text).unwrap(), state);
}

fn any_header(keys: Vec<Key>) -> impl Strategy<Value = Header> {
    let ports = prop_oneof![
        4 => prop::sample::select(keys).prop_map(|key| (key.host_port, key.guest_port)),
        1 => (any::<u32>(), any::<u32>()),
    ];
    let len = prop_oneof![4 => 0..100_u32, 1 => any::<u32>()];
    let numbers = prop_oneof![4 => 0..200_u32, 1 => any::<u32>()];
    (ports, len, 0..9_u16, 0..4_u32, numbers.clone(), numbers).prop_map(
        |(ports, len, op, flags, buf_alloc, fwd_cnt)| {
            let key = Key { host_port: ports.0, guest_port: ports.1 };
            Header { buf_alloc, fwd_cnt, ..header(key, op, flags, len) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec((any_attack(), 0..2_usize), 1..5)) {
        let mut bench = Bench::new();
        for (attack, queue) in attacks {
            attack.strike(&mut bench.guest, queue);
            lock(&bench.vsock).ready(queue as u32, EventFlags::IN);
        }
        lock(&bench.vsock).reset();
    }

    /// Any packets in any order, with a live connection of each kind: bounded, and every connection can still end.
    #[test]
    fn no_packets_break_it(packets in prop::collection::vec(any_header(vec![
        Key { host_port: FIRST_HOST_PORT, guest_port: 1024 }, Key { host_port: VSOCK_PORT, guest_port: LOG_SOURCE },
    ]), 1..60), open: bool) {
        let mut bench = Bench::new();
        bench.offer(100);
        let (stream, _) = bench.connect();
        bench.log();
        if open {
            bench.open_sink(&tempfile::tempfile().unwrap());
        }
        for header in packets {
            bench.send_header(header, &[3; 64]);
            bench.packets();
            let vsock = lock(&bench.vsock);
            prop_assert!(vsock.work.len() <= vsock.connections.len() && vsock.by_key.len() <= vsock.connections.len());
        }
        drop(stream);
        bench.turn();
        lock(&bench.vsock).reset();
        prop_assert_eq!(bench.connections(), 0);
    }
}

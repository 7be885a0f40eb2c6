use std::os::fd::AsFd;

use cofferdam_proto::monitor::API_VERSION;
use cofferdam_proto::sink::SinkRequest;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::*;
use crate::ending::EndWatcher;
use crate::event_loop::EventLoop;
use crate::lock_in::{ThreadKind, run_as};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Bench {
    address: SocketAddrUnix,
    ending: Arc<Ending>,
    serial: Arc<Mutex<SerialPort>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn seqpacket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

impl Bench {
    fn new(name: &str) -> Self {
        let address = SocketAddrUnix::new_abstract_name(format!("{name}-{}", std::process::id()).as_bytes()).unwrap();
        let listener = seqpacket();
        bind(&listener, &address).unwrap();
        listen(&listener, 8).unwrap();
        let ending = Ending::new().unwrap();
        let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
        let mut events = EventLoop::new().unwrap();
        let timeline = Arc::new(Timeline::new());
        let vsock = Vsock::new(3, seqpacket(), Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())).unwrap();
        let vsock = Arc::new(Mutex::new(vsock));
        let disks = crate::disks::tests::empty().0;
        let parts = Parts { serial: serial.clone(), vsock, mem: None, vcpus: None, disks, saver: None };
        let control = Control::new(listener, parts, timeline, ending.clone()).unwrap();
        events.add(Arc::new(Mutex::new(control))).unwrap();
        events.add(Arc::new(Mutex::new(EndWatcher(ending.clone())))).unwrap();
        let serve = move || run_as(ThreadKind::Main, || events.run().unwrap());
        let thread = Some(std::thread::spawn(serve));
        Self { address, ending, serial, thread }
    }

    fn connect(&self) -> OwnedFd {
        let socket = seqpacket();
        connect(&socket, &self.address).unwrap();
        socket
    }

    fn greeted(&self) -> OwnedFd {
        let socket = self.connect();
        let reply = ask(&socket, &Request::Hello { api_version: API_VERSION });
        assert!(matches!(reply, Reply::Hello { api_version: API_VERSION, .. }));
        socket
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.ending.finish(ExitReason::MonitorError, "the test is over");
        self.thread.take().unwrap().join().unwrap();
    }
}

fn ask(socket: &OwnedFd, request: &Request) -> Reply {
    packet::send(socket, request, None).unwrap();
    packet::recv(socket).unwrap().unwrap().0
}

#[test]
fn a_hello_opens_the_connection() {
    let bench = Bench::new("hello");
    let socket = bench.connect();
    assert!(matches!(ask(&socket, &Request::Status), Reply::Error { message } if message.contains("hello")));
    let other = ask(&socket, &Request::Hello { api_version: 99 });
    assert!(matches!(other, Reply::Error { message } if message.contains("versions 1 to") && message.contains("99")));
    assert!(matches!(ask(&socket, &Request::Kill), Reply::Error { .. }));
    let greeted = bench.greeted();
    assert!(matches!(ask(&greeted, &Request::Status), Reply::Status(_)));
    assert_eq!(bench.ending.end(), None);
}

#[test]
fn every_version_since_the_first_is_answered_in_kind() {
    let bench = Bench::new("versions");
    for version in API_VERSIONS {
        let socket = bench.connect();
        // What a daemon that knows one more version would begin with.
        assert!(matches!(ask(&socket, &Request::Hello { api_version: API_VERSION + 1 }), Reply::Error { .. }));
        let reply = ask(&socket, &Request::Hello { api_version: version });
        assert!(matches!(reply, Reply::Hello { api_version, .. } if api_version == version));
        assert!(matches!(ask(&socket, &Request::Status), Reply::Status(_)));
    }
}

#[test]
fn a_vm_of_fixed_size_keeps_it() {
    let bench = Bench::new("fixed");
    let socket = bench.greeted();
    for request in [Request::Vcpus { count: 1 }, Request::Memory { plugged_mib: 2 }] {
        assert!(matches!(ask(&socket, &request), Reply::Error { message } if message.contains("started with")));
    }
    let Reply::Status(status) = ask(&socket, &Request::Status) else { panic!("no status") };
    assert_eq!((status.vcpus, status.memory), (None, None));
}

#[test]
fn disks_are_asked_for_by_serial() {
    let bench = Bench::new("disks");
    let socket = bench.greeted();
    let plug = Request::Plug { serial: "b7.0w".into(), read_only: false };
    assert!(matches!(ask(&socket, &plug), Reply::Error { message } if message.contains("no block device came")));
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    packet::send(&socket, &plug, Some(file.as_fd())).unwrap();
    let (reply, _) = packet::recv::<Reply>(&socket).unwrap().unwrap();
    assert!(matches!(reply, Reply::Error { message } if message.contains("b7.0w") && message.contains("block device")));
    // As often as one likes: a daemon that was killed asks again.
    assert_eq!(ask(&socket, &Request::Unplug { serial: "b7.0w".into() }), Reply::Done);
    let Reply::Status(status) = ask(&socket, &Request::Status) else { panic!("no status") };
    assert!(status.disks.is_empty());
}

#[test]
fn the_console_fits_a_packet_whatever_is_in_it() {
    let bench = Bench::new("console");
    let socket = bench.greeted();
    for byte in [b"a".repeat(40_000), vec![1; 40_000], "ü\u{1}".repeat(20_000).into_bytes()].concat() {
        lock(&bench.serial).write(0, byte);
    }
    let Reply::Console { text } = ask(&socket, &Request::Console) else { panic!("no console") };
    assert!(text.len() > 4096 && text.ends_with("\\u{1}"));
}

#[test]
fn a_kill_is_answered_and_ends_the_vm() {
    let bench = Bench::new("kill");
    assert_eq!(ask(&bench.greeted(), &Request::Kill), Reply::Done);
    while bench.ending.end().is_none() {
        std::thread::yield_now();
    }
    assert_eq!(bench.ending.end().unwrap().reason, ExitReason::Killed);
}

#[test]
fn garbage_is_refused_and_many_connections_too() {
    let bench = Bench::new("garbage");
    let socket = bench.connect();
    rustix::io::write(&socket, b"not JSON").unwrap();
    let reply: Reply = packet::recv(&socket).unwrap().unwrap().0;
    assert!(matches!(reply, Reply::Error { .. }));
    let many: Vec<OwnedFd> = (1..MAX_CONNECTIONS).map(|_| bench.greeted()).collect();
    let excess = bench.connect();
    let refused = packet::recv::<Reply>(&excess);
    assert!(matches!(refused, Ok(None)) || refused.is_err());
    drop(many);
    drop(socket);
    // The closed connections make room again.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let socket = bench.connect();
        let sent = packet::send(&socket, &Request::Hello { api_version: API_VERSION }, None);
        if sent.is_ok() && matches!(packet::recv::<Reply>(&socket), Ok(Some(_))) {
            break;
        }
        assert!(std::time::Instant::now() < limit, "no room after the others left");
    }
}

#[test]
fn a_log_is_opened_and_the_connection_goes_on() {
    let bench = Bench::new("control-log");
    let socket = bench.greeted();
    let container = "0123456789abcdef".repeat(4);
    for _ in 0..3 {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let open = Request::Sink(SinkRequest::Open { container: container.clone() });
        packet::send(&socket, &open, Some(file.as_fd())).unwrap();
        let (reply, _) = packet::recv::<Reply>(&socket).unwrap().unwrap();
        assert!(matches!(reply, Reply::Done), "{reply:?}");
    }
    assert!(matches!(ask(&socket, &Request::Sink(SinkRequest::Close { container })), Reply::Done));
    assert!(matches!(ask(&socket, &Request::Status), Reply::Status(_)));
}

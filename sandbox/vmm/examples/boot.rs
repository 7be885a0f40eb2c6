#![allow(clippy::disallowed_methods)] // an example, not the monitor
//! Starts a monitor by hand and talks to it: a tool for those who work on the monitor.
//!
//! ```text
//! boot run DIR MONITOR KERNEL INITRAMFS DISK SHARE [VCPUS [MEMORY_MIB [KERNEL ARGUMENTS]]]
//!                            runs a VM until it ends; DIR gets its sockets and its copy of DISK; TAP_FD=N in the environment
//!                            is a tap that was inherited
//! boot console DIR           the last output of the guest's console
//! boot status DIR            milestones and counters
//! boot sink DIR ID FILE      gives container ID a log file
//! boot connect DIR PORT      joins standard input and output to a port of the guest's
//! boot memory DIR MIB        asks the guest to have MIB plugged
//! boot vcpus DIR COUNT       makes vCPUs up to COUNT; VCPUS_MAX=N in the environment of `run` says how many there can be
//! boot save DIR              saves it and lets it go on, to see what that takes
//! boot kill DIR
//! boot template DIR MONITOR KERNEL INITRAMFS DISK SHARE [VCPUS [MEMORY_MIB [KERNEL ARGUMENTS]]]
//!                            boots a VM, saves it once its agent answers, restores clones of it,
//!                            and tells how long each took
//! ```

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use cofferdam_proto::monitor::{API_VERSION, LaunchConfig, Reply, Request, Restore};
use cofferdam_proto::packet;
use cofferdam_proto::sink::SinkRequest;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Where the guest's agent listens (`cofferdam_proto::agent::VSOCK_PORT`).
const AGENT_PORT: u32 = 1024;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match &words[..] {
        ["run", dir, monitor, kernel, initramfs, disk, share, rest @ ..] => {
            run(Path::new(dir), monitor, [*kernel, *initramfs, *disk, *share], rest)
        }
        ["console", dir] => ask(Path::new(dir), &Request::Console, &[]),
        ["status", dir] => ask(Path::new(dir), &Request::Status, &[]),
        ["memory", dir, mib] => ask(Path::new(dir), &Request::Memory { plugged_mib: mib.parse().unwrap_or(0) }, &[]),
        ["vcpus", dir, count] => ask(Path::new(dir), &Request::Vcpus { count: count.parse().unwrap_or(0) }, &[]),
        ["save", dir] => save(Path::new(dir)).and_then(|_| ask(Path::new(dir), &Request::Resume, &[])),
        ["kill", dir] => ask(Path::new(dir), &Request::Kill, &[]),
        ["template", dir, monitor, kernel, initramfs, disk, share, rest @ ..] => {
            template(Path::new(dir), monitor, [*kernel, *initramfs, *disk, *share], rest)
        }
        ["sink", dir, id, file] => sink(Path::new(dir), id, file),
        ["connect", dir, port] => connect(Path::new(dir), port),
        _ => Err("see the head of examples/boot.rs for its usage".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path, monitor: &str, files: [&str; 4], rest: &[&str]) -> Result<()> {
    let mut child = launch(dir, monitor, files, rest, None)?;
    println!("boot: the monitor is process {}", child.id());
    let status = child.wait()?;
    println!("boot: the monitor ended with {status}: {}", std::fs::read_to_string(dir.join("exit"))?);
    Ok(())
}

/// Starts a monitor whose guest boots, or goes on as `saved` says: memory and state.
fn launch(dir: &Path, monitor: &str, files: [&str; 4], rest: &[&str], saved: Option<&[File; 2]>) -> Result<Child> {
    let [kernel, initramfs, disk, share] = files;
    std::fs::create_dir_all(dir)?;
    for name in ["control", "vsock", "disk"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let copied = Command::new("cp").args(["--sparse=always", disk]).arg(dir.join("disk")).status()?;
    if !copied.success() {
        return Err("cannot copy the disk".into());
    }
    let read = |path: &str| inherited(File::open(path)?);
    let exit = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(dir.join("exit"))?;
    let restore = match saved {
        Some([memory, state]) => {
            let (memory_fd, state_fd) = (inherited(memory.try_clone()?)?, inherited(state.try_clone()?)?);
            Some(Restore { memory_fd, state_fd, written: Vec::new() })
        }
        None => None,
    };
    let config = LaunchConfig {
        api_version: API_VERSION,
        name: "boot".into(),
        vcpus: rest.first().map_or(Ok(1), |text| text.parse())?,
        vcpus_max: std::env::var("VCPUS_MAX").map_or(Ok(0), |text| text.parse())?,
        memory_mib: rest.get(1).map_or(Ok(256), |text| text.parse())?,
        hotplug_mib: 1024,
        kernel_fd: read(kernel)?,
        initrd_fd: read(initramfs)?,
        cmdline: rest.get(2..).unwrap_or_default().join(" "),
        control_fd: inherited(listener(&dir.join("control"))?)?,
        vsock_fd: inherited(UnixListener::bind(dir.join("vsock"))?)?,
        exit_fd: inherited(exit)?,
        kvm_fd: inherited(OpenOptions::new().read(true).write(true).open("/dev/kvm")?)?,
        share_fd: inherited(rustix::fs::open(share, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?)?,
        mounts_fd: None,
        disk_fd: inherited(OpenOptions::new().read(true).write(true).open(dir.join("disk"))?)?,
        tap_fd: std::env::var("TAP_FD").ok().map(|text| text.parse()).transpose()?,
        more_tap_fds: Vec::new(),
        restore,
    };
    let mut memory = File::from(rustix::fs::memfd_create("config", MemfdFlags::empty())?);
    memory.write_all(&serde_json::to_vec(&config)?)?;
    io::Seek::rewind(&mut memory)?;
    Ok(Command::new(monitor).args(["--config-fd", &inherited(memory)?.to_string()]).spawn()?)
}

/// Boots a VM, saves it once its agent has answered, and restores it, each time as a process of its
/// own.
fn template(dir: &Path, monitor: &str, files: [&str; 4], rest: &[&str]) -> Result<()> {
    let cold = dir.join("cold");
    let begun = Instant::now();
    let mut child = launch(&cold, monitor, files, rest, None)?;
    let spawned = begun.elapsed();
    greet_agent(&cold)?;
    println!("cold: {:?} from exec to the first answer", begun.elapsed() - spawned);
    ask(&cold, &Request::Status, &[])?;
    save(&cold)?;
    ask(&cold, &Request::Resume, &[])?;
    let resumed = Instant::now();
    greet_agent(&cold)?;
    println!("after a pause: {:?} to an answer", resumed.elapsed());
    let saved = save(&cold)?;
    ask(&cold, &Request::Kill, &[])?;
    child.wait()?;
    let disk = cold.join("disk");
    let files = [files[0], files[1], disk.to_str().ok_or("the path is no text")?, files[3]];
    for number in 0..4 {
        let clone = dir.join(format!("clone{number}"));
        let begun = Instant::now();
        let mut child = launch(&clone, monitor, files, rest, Some(&saved))?;
        let spawned = begun.elapsed();
        let answered = greet_agent(&clone);
        println!("clone {number}: {:?} from exec to the first answer", begun.elapsed() - spawned);
        ask(&clone, &Request::Status, &[])?;
        ask(&clone, &Request::Console, &[])?;
        answered?;
        ask(&clone, &Request::Kill, &[])?;
        child.wait()?;
    }
    Ok(())
}

fn save(dir: &Path) -> Result<[File; 2]> {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    let files =
        [File::from(rustix::fs::memfd_create("memory", flags)?), File::from(rustix::fs::memfd_create("state", flags)?)];
    let begun = Instant::now();
    ask(dir, &Request::Save, &[files[0].as_fd(), files[1].as_fd()])?;
    let kib = std::os::unix::fs::MetadataExt::blocks(&files[0].metadata()?) / 2;
    println!("saved in {:?}: {kib} KiB of memory, {} bytes of state", begun.elapsed(), files[1].metadata()?.len());
    Ok(files)
}

/// Waits for the agent's first words, which are those of any HTTP/2 server.
fn greet_agent(dir: &Path) -> Result<()> {
    let mut socket = UnixStream::connect(dir.join("vsock"))?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    socket.write_all(format!("CONNECT {}\n", AGENT_PORT).as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).map_err(|error| format!("the agent was not reached: {error}"))?;
        line.push(byte[0]);
    }
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
    let mut frame = [0; 9];
    socket.read_exact(&mut frame).map_err(|error| format!("the agent does not answer: {error}"))?;
    if frame[3] == 4 { Ok(()) } else { Err(format!("the agent's first frame is {frame:?}").into()) }
}

/// Lets a child inherit `fd`, which stays open until this program ends.
fn inherited(fd: impl Into<OwnedFd>) -> Result<i32> {
    let fd = fd.into();
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    let number = fd.as_raw_fd();
    std::mem::forget(fd);
    Ok(number)
}

fn packets() -> Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn listener(path: &Path) -> Result<OwnedFd> {
    let socket = packets()?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

fn ask(dir: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let socket = packets()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(dir.join("control"))?)?;
    packet::send(&socket, &Request::Hello { api_version: API_VERSION }, None)?;
    packet::recv::<Reply>(&socket)?;
    packet::send_all(&socket, request, fds)?;
    match packet::recv::<Reply>(&socket)? {
        Some((Reply::Console { text }, _)) => println!("{text}"),
        Some((Reply::Status(status), _)) => println!("{}", serde_json::to_string_pretty(&status)?),
        other => println!("{other:?}"),
    }
    Ok(())
}

fn sink(dir: &Path, id: &str, file: &str) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(file)?;
    ask(dir, &Request::Sink(SinkRequest::Open { container: id.to_owned() }), &[file.as_fd()])
}

fn connect(dir: &Path, port: &str) -> Result<()> {
    let mut socket = UnixStream::connect(dir.join("vsock"))?;
    socket.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    eprint!("boot: {}", String::from_utf8_lossy(&line));
    let mut reader = socket.try_clone()?;
    let printer = std::thread::spawn(move || io::copy(&mut reader, &mut io::stdout()));
    io::copy(&mut io::stdin(), &mut socket)?;
    socket.shutdown(std::net::Shutdown::Write)?;
    printer.join().map_err(|_| "the printer ended")??;
    Ok(())
}

//! A monitor by itself, without the daemon: started with descriptors, and asked over its socket.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{self, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::{self, HelloReply, HelloRequest};
use cofferdam_proto::monitor::{API_VERSION, ExitReport, LaunchConfig, Reply, Request, Restore, Status};
use cofferdam_proto::packet;
use hyper_util::rt::TokioIo;
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::failure::{Doing, Failure, Outcome, ensure};

const PROGRAMS: &str = "/usr/lib/cofferdam";
/// How long an agent may take to answer, in an emulated node.
const ANSWERS: Duration = Duration::from_secs(120);

/// How a monitor is started.
pub(crate) struct Plan<'a> {
    /// For its sockets, its disk and its share.
    pub(crate) dir: &'a Path,
    /// What its disk is a copy of.
    pub(crate) disk: &'a Path,
    /// vCPUs at the start.
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    /// What it goes on with, in place of a boot.
    pub(crate) saved: Option<&'a Saved>,
}

/// A VM that was saved.
pub(crate) struct Saved {
    pub(crate) memory: File,
    pub(crate) state: File,
}

/// A running monitor; dropped, it is killed.
pub(crate) struct Monitor {
    dir: PathBuf,
    process: Child,
    spawned: Instant,
}

/// The files that are installed: the disk of which each VM gets a copy.
pub(crate) fn installed_disk() -> PathBuf {
    Path::new(PROGRAMS).join("pod-disk.ext4")
}

/// An empty file in memory that can be sealed.
pub(crate) fn memfd(name: &str) -> Outcome<File> {
    let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
    Ok(File::from(rustix::fs::memfd_create(name, flags).doing("make a memfd")?))
}

impl Monitor {
    /// Starts one.
    pub(crate) fn start(plan: &Plan<'_>) -> Outcome<Self> {
        let share = plan.dir.join("share");
        fs::create_dir_all(&share).doing("make a monitor's folder")?;
        let disk = plan.dir.join("disk");
        let copied = Command::new("cp").arg("--sparse=always").args([plan.disk, &disk]).status().doing("run cp")?;
        ensure!(copied.success(), "cannot copy {}", plan.disk.display());
        let program = |name: &str| File::open(Path::new(PROGRAMS).join(name)).doing(&format!("open {name}"));
        let both = |path: &Path| {
            fs::OpenOptions::new().read(true).write(true).open(path).doing(&format!("open {}", path.display()))
        };
        let mut exit = fs::OpenOptions::new();
        exit.read(true).write(true).create(true).truncate(true).mode(0o600);
        let mut held: Vec<OwnedFd> = Vec::new();
        let mut give = |fd: OwnedFd| {
            rustix::io::fcntl_setfd(&fd, FdFlags::empty()).doing("let a descriptor be inherited")?;
            held.push(fd);
            Ok::<_, Failure>(held[held.len() - 1].as_raw_fd())
        };
        let restore = match plan.saved {
            Some(saved) => {
                let copy = |file: &File| file.try_clone().map(OwnedFd::from).doing("copy a descriptor");
                let (memory_fd, state_fd) = (give(copy(&saved.memory)?)?, give(copy(&saved.state)?)?);
                Some(Restore { memory_fd, state_fd, written: Vec::new() })
            }
            None => None,
        };
        let shared =
            rustix::fs::open(&share, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).doing("open the share")?;
        let vsock = UnixListener::bind(plan.dir.join("vsock")).doing("listen for vsock")?;
        let config = LaunchConfig {
            api_version: API_VERSION,
            name: "saved".into(),
            vcpus: plan.vcpus,
            vcpus_max: 4,
            memory_mib: plan.memory_mib,
            hotplug_mib: 1024,
            kernel_fd: give(program("vmlinux")?.into())?,
            initrd_fd: give(program("initramfs.cpio")?.into())?,
            cmdline: String::new(),
            control_fd: give(listener(&plan.dir.join("control"))?)?,
            vsock_fd: give(vsock.into())?,
            exit_fd: give(exit.open(plan.dir.join("exit")).doing("make the exit report")?.into())?,
            kvm_fd: give(both(Path::new("/dev/kvm"))?.into())?,
            share_fd: give(shared)?,
            mounts_fd: None,
            disk_fd: give(both(&disk)?.into())?,
            tap_fd: None,
            more_tap_fds: Vec::new(),
            restore,
        };
        let mut file = memfd("config")?;
        let json = serde_json::to_vec(&config).doing("write a monitor's configuration")?;
        file.write_all(&json).doing("write a monitor's configuration")?;
        std::io::Seek::rewind(&mut file).doing("rewind a monitor's configuration")?;
        let number = give(file.into())?;
        let spawned = Instant::now();
        let process = Command::new(Path::new(PROGRAMS).join("cofferdam-vmm"))
            .args(["--config-fd", &number.to_string()])
            .spawn()
            .doing("start a monitor")?;
        Ok(Self { dir: plan.dir.to_owned(), process, spawned })
    }

    /// Since its start.
    pub(crate) fn age(&self) -> Duration {
        self.spawned.elapsed()
    }

    /// Asks the guest's agent who it is, and waits for the answer.
    pub(crate) fn hello(&self) -> Outcome<HelloReply> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
        let asked = runtime.block_on(async {
            tokio::time::timeout(ANSWERS, ask_agent(&self.dir.join("vsock"))).await.unwrap_or_else(|_| {
                Err(Failure(format!("the agent of {} did not answer within {ANSWERS:?}", self.dir.display())))
            })
        });
        asked.map_err(|error| Failure(format!("{error}; the monitor says: {}", self.report())))
    }

    /// A connection to the guest's agent that says nothing.
    pub(crate) fn hold(&self) -> Outcome<net::UnixStream> {
        let mut stream = net::UnixStream::connect(self.dir.join("vsock")).doing("connect to the guest")?;
        stream.set_read_timeout(Some(ANSWERS)).doing("limit a wait")?;
        let line = format!("CONNECT {}\n", agent::VSOCK_PORT);
        stream.write_all(line.as_bytes()).doing("ask for the guest's agent")?;
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte).doing("be joined to the guest's agent")?;
        }
        Ok(stream)
    }

    /// Sends one request; answers what it is answered.
    pub(crate) fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Outcome<Reply> {
        ask(&self.dir.join("control"), request, fds)
    }

    /// As [`Self::ask`], for what is only done or refused.
    pub(crate) fn order(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Outcome {
        match self.ask(request, fds)? {
            Reply::Done => Ok(()),
            other => Err(Failure(format!("{request:?} was answered by {other:?}"))),
        }
    }

    /// How it is.
    pub(crate) fn status(&self) -> Outcome<Status> {
        status(&self.dir.join("control"))
    }

    /// Saves the VM, which is paused afterwards.
    pub(crate) fn save(&self) -> Outcome<Saved> {
        let saved = Saved { memory: memfd("memory")?, state: memfd("state")? };
        self.order(&Request::Save, &[saved.memory.as_fd(), saved.state.as_fd()])?;
        Ok(saved)
    }

    /// Waits until it has ended by itself; answers its exit report.
    pub(crate) fn ended(mut self) -> Outcome<ExitReport> {
        self.process.wait().doing("wait for a monitor")?;
        serde_json::from_str(&self.report()).doing("read an exit report")
    }

    fn report(&self) -> String {
        fs::read_to_string(self.dir.join("exit")).unwrap_or_default()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends one request to the monitor that serves `control`; answers what it is answered.
fn ask(control: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> Outcome<Reply> {
    let socket = packets()?;
    let address = SocketAddrUnix::new(control).doing("name the control socket")?;
    rustix::net::connect(&socket, &address).doing("connect to the monitor")?;
    packet::send(&socket, &Request::Hello { api_version: API_VERSION }, None).doing("greet the monitor")?;
    packet::recv::<Reply>(&socket).doing("be greeted by the monitor")?;
    packet::send_all(&socket, request, fds).doing("ask the monitor")?;
    let reply = packet::recv::<Reply>(&socket).doing("be answered by the monitor")?;
    Ok(reply.ok_or("the monitor closed the connection")?.0)
}

/// How the VM is whose monitor serves `control`.
pub(crate) fn status(control: &Path) -> Outcome<Status> {
    match ask(control, &Request::Status, &[])? {
        Reply::Status(status) => Ok(status),
        other => Err(Failure(format!("a request for the status was answered by {other:?}"))),
    }
}

async fn ask_agent(path: &Path) -> Outcome<HelloReply> {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            let mut stream = UnixStream::connect(path).await?;
            stream.write_all(format!("CONNECT {}\n", agent::VSOCK_PORT).as_bytes()).await?;
            while stream.read_u8().await? != b'\n' {}
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://agent.invalid").connect_with_connector(connect).await;
    let mut client = AgentClient::new(channel.doing("connect to the guest's agent")?);
    let reply = client.hello(HelloRequest { api_version: agent::API_VERSION }).await;
    Ok(reply.doing("greet the guest's agent")?.into_inner())
}

fn packets() -> Outcome<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .doing("make a socket")
}

fn listener(path: &Path) -> Outcome<OwnedFd> {
    let socket = packets()?;
    let address = SocketAddrUnix::new(path).doing("name a socket")?;
    rustix::net::bind(&socket, &address).doing("bind a socket")?;
    rustix::net::listen(&socket, 8).doing("listen")?;
    Ok(socket)
}

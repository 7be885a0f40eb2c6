//! The daemon's side of the pod's sockets.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::agent::VSOCK_PORT;
use cofferdam_proto::monitor::{self, Reply, Request};
use cofferdam_proto::packet::{self, PacketError};
use cofferdam_proto::sink::{SinkReply, SinkRequest};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::dirs::Dirs;
use crate::error::{Doing, SandboxError};
use crate::spec::Kind;
use crate::versions::{self, ProgramVersion};

/// How long a connection to a running agent may take; a guest with little CPU may need seconds.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of answers that wait to be read on one connection; a single call's share is 64 KiB.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How long a monitor or supervisor may take for one packet.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a monitor may take to save its VM: it reads all of the guest's memory.
const SAVE_LIMIT: Duration = Duration::from_secs(120);

/// A listening socket at `path` that only we may connect to. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn listener(path: &Path, kind: SocketType) -> Result<OwnedFd, SandboxError> {
    let step = || format!("listen on {}", path.display());
    let socket = unix(kind).doing(step)?;
    bind(&socket, &SocketAddrUnix::new(path).doing(step)?).doing(step)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).doing(step)?;
    listen(&socket, 64).doing(step)?;
    Ok(socket)
}

fn unix(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// The channel to the pod's agent: connects when it is used, and again when the connection is lost.
pub(crate) fn agent(dirs: &Dirs, kind: Kind) -> Channel {
    let path = if kind == Kind::Vm { dirs.vsock() } else { dirs.agent() };
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let connecting = tokio::time::timeout(CONNECT_LIMIT, stream(&path, kind));
            connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map(TokioIo::new)
        }
    });
    // One call whose answer nobody reads must not hold up the others.
    let endpoint = Endpoint::from_static("http://agent").initial_connection_window_size(CONNECTION_WINDOW);
    endpoint.connect_with_connector_lazy(connector)
}

async fn stream(path: &Path, kind: Kind) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    if kind == Kind::Vm {
        stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the line is the agent's.
        while answer.last() != Some(&b'\n') {
            if answer.len() > 32 {
                return Err(io::Error::other("the monitor's answer is not OK"));
            }
            answer.push(stream.read_u8().await.map_err(|_| io::Error::other("the guest's agent does not listen"))?);
        }
        if !answer.starts_with(b"OK ") {
            return Err(io::Error::other("the monitor's answer is not OK"));
        }
    }
    Ok(stream)
}

/// A packet connection to a monitor or a supervisor. Blocks.
struct Packets(OwnedFd);

impl Packets {
    fn open(path: &Path, limit: Duration) -> io::Result<Self> {
        let socket = unix(SocketType::SEQPACKET)?;
        set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(limit))?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        request: &Q,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<A, PacketError> {
        self.ask_with(request, fd.as_slice())
    }

    fn ask_with<Q: Serialize, A: DeserializeOwned>(
        &self,
        request: &Q,
        fds: &[BorrowedFd<'_>],
    ) -> Result<A, PacketError> {
        packet::send_all(&self.0, request, fds)?;
        match packet::recv(&self.0)? {
            Some((answer, _)) => Ok(answer),
            None => Err(PacketError::Socket(rustix::io::Errno::CONNRESET)),
        }
    }
}

/// A greeted connection to a monitor.
pub(crate) struct Control {
    packets: Packets,
    /// What the monitor said of itself.
    program: ProgramVersion,
}

impl Control {
    /// Connects and agrees on the newest version that both speak. Blocks for up to `limit`, as often as there are versions.
    pub(crate) fn open(path: &Path, limit: Duration) -> Result<Self, SandboxError> {
        let step = || "connect to the pod's monitor".to_owned();
        let packets = Packets::open(path, limit).doing(step)?;
        let (oldest, newest) = monitor::API_VERSIONS.into_inner();
        let mut refusal = String::new();
        for version in monitor::API_VERSIONS.rev() {
            match packets.ask(&Request::Hello { api_version: version }, None).doing(step)? {
                Reply::Hello { api_version, monitor_version } if api_version == version => {
                    return Ok(Self { packets, program: ProgramVersion::new(version, &monitor_version) });
                }
                // The connection is still open.
                Reply::Error { message } => refusal = message,
                other => return Err(unexpected(other)).doing(step),
            }
        }
        Err(versions::nothing_in_common("monitor", oldest, newest, &refusal)).doing(step)
    }

    /// What the monitor said of itself.
    pub(crate) fn into_program(self) -> ProgramVersion {
        self.program
    }

    /// When the guest got how far. Blocks for a moment.
    pub(crate) fn milestones(&self) -> Result<monitor::Milestones, SandboxError> {
        let step = || "ask the monitor how far the guest is".to_owned();
        match self.packets.ask(&Request::Status, None).doing(step)? {
            Reply::Status(status) => Ok(status.milestones),
            other => Err(unexpected(other)).doing(step),
        }
    }
}

/// Which monitor it is. Blocks for a moment.
pub(crate) fn monitor(dirs: &Dirs) -> Result<ProgramVersion, SandboxError> {
    Ok(Control::open(&dirs.control(), ANSWER_LIMIT)?.program)
}

/// What the VM has. Blocks for a moment.
pub(crate) fn status(dirs: &Dirs) -> Result<monitor::Status, SandboxError> {
    let step = || "ask the monitor for the guest's size".to_owned();
    match Control::open(&dirs.control(), ANSWER_LIMIT)?.packets.ask(&Request::Status, None).doing(step)? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(other)).doing(step),
    }
}

/// The last 32 KiB of the guest's console. Blocks for a moment.
pub(crate) fn console(dirs: &Dirs) -> Result<String, SandboxError> {
    let step = || "ask the monitor for the guest's console".to_owned();
    match Control::open(&dirs.control(), ANSWER_LIMIT)?.packets.ask(&Request::Console, None).doing(step)? {
        Reply::Console { text } => Ok(text),
        other => Err(unexpected(other)).doing(step),
    }
}

/// Has the monitor do what changes the guest's size. Blocks for a moment.
pub(crate) fn request(dirs: &Dirs, request: &Request) -> Result<(), SandboxError> {
    order(dirs, request, "change the guest's size")
}

fn order(dirs: &Dirs, request: &Request, what: &str) -> Result<(), SandboxError> {
    let step = || format!("have the monitor {what}");
    match Control::open(&dirs.control(), ANSWER_LIMIT)?.packets.ask(request, None).doing(step)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)).doing(step),
    }
}

/// Has the monitor pause its VM and write it to two empty memfds, which it seals. Blocks until that
/// is done.
pub(crate) fn save(dirs: &Dirs, memory: &OwnedFd, state: &OwnedFd) -> Result<(), SandboxError> {
    let step = || "have the monitor save its VM".to_owned();
    let control = Control::open(&dirs.control(), SAVE_LIMIT)?;
    match control.packets.ask_with(&Request::Save, &[memory.as_fd(), state.as_fd()]).doing(step)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(other)).doing(step),
    }
}

/// Has the monitor pause its VM. Blocks for a moment.
pub(crate) fn pause(dirs: &Dirs) -> Result<(), SandboxError> {
    order(dirs, &Request::Pause, "pause its VM")
}

/// Has the monitor let its paused VM go on. Blocks for a moment.
pub(crate) fn resume(dirs: &Dirs) -> Result<(), SandboxError> {
    order(dirs, &Request::Resume, "let its VM go on")
}

/// Has the monitor make a disk of the block device `device`; answers its place. Blocks for a
/// moment.
pub(crate) fn plug(dirs: &Dirs, serial: &str, read_only: bool, device: BorrowedFd<'_>) -> Result<u32, SandboxError> {
    let step = || format!("have the monitor make disk {serial}");
    let request = Request::Plug { serial: serial.to_owned(), read_only };
    match Control::open(&dirs.control(), ANSWER_LIMIT)?.packets.ask(&request, Some(device)).doing(step)? {
        Reply::Plugged { slot } => Ok(slot),
        other => Err(unexpected(other)).doing(step),
    }
}

/// Has the monitor take a disk out; false while the node has not finished what it was asked. Blocks
/// for a moment.
pub(crate) fn unplug(dirs: &Dirs, serial: &str) -> Result<bool, SandboxError> {
    let step = || format!("have the monitor take disk {serial} out");
    let request = Request::Unplug { serial: serial.to_owned() };
    match Control::open(&dirs.control(), ANSWER_LIMIT)?.packets.ask(&request, None).doing(step)? {
        Reply::Done => Ok(true),
        Reply::Busy => Ok(false),
        other => Err(unexpected(other)).doing(step),
    }
}

fn unexpected(reply: Reply) -> String {
    match reply {
        Reply::Error { message } => message,
        other => format!("unexpected answer {other:?}"),
    }
}

/// Asks the pod's log writer. Blocks for a moment.
pub(crate) fn sink(dirs: &Dirs, kind: Kind, request: SinkRequest, file: Option<OwnedFd>) -> Result<(), SandboxError> {
    let step = || "ask the pod's log writer".to_owned();
    let fd = file.as_ref().map(AsFd::as_fd);
    let error = match kind {
        Kind::Vm => {
            let control = Control::open(&dirs.control(), ANSWER_LIMIT)?;
            match control.packets.ask(&Request::Sink(request), fd).doing(step)? {
                Reply::Done => None,
                other => Some(unexpected(other)),
            }
        }
        Kind::Host => {
            let packets = Packets::open(&dirs.sink(), ANSWER_LIMIT).doing(step)?;
            packets.ask::<_, SinkReply>(&request, fd).doing(step)?.error
        }
    };
    error.map_or(Ok(()), |error| Err(error).doing(step))
}

/// `path` if a socket may be bound there.
pub(crate) fn check_length(path: PathBuf) -> Result<PathBuf, SandboxError> {
    let fits = SocketAddrUnix::new(path.as_path()).is_ok();
    if fits { Ok(path) } else { Err(SandboxError::Invalid(format!("{} is too long for a socket", path.display()))) }
}

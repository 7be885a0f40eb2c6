//! The streaming server: where `kubectl exec`, `attach` and `port-forward` (and crictl's) talk to a pod.
//!
//! The runtime service registers a session and gives its URL to the kubelet, which connects to it (or lets a user's
//! client do so) with SPDY/3.1 or WebSocket. The server listens on loopback only; a URL works once and for a short time.
//!
//! ```text
//!  server ─ negotiate ─┬─ SPDY ──────┬─ remote_command   exec, attach: one stream per channel
//!                      │             └─ port_forward     a pair of streams per connection
//!                      └─ WebSocket ─┬─ channels ─┬─ remote_command
//!                                    │            └─ port_forward
//!                                    └─ tunnel ─ SPDY ─ port_forward
//! ```

mod channels;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hangup;
mod idle;
mod leaving;
mod negotiate;
mod port_forward;
mod remote_command;
mod server;
mod spdy;
mod status;
mod websocket;

use std::sync::Arc;

use bytes::Bytes;
use cofferdam_proto::agent::WindowSize;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

pub use server::StreamingServer;

/// What a client sends to a process.
#[derive(Debug)]
pub enum Input {
    /// Bytes of standard input.
    Stdin(Bytes),
    /// There is no more.
    StdinClosed,
    /// Its terminal has this size.
    Resize(WindowSize),
}

/// What a process has to say.
#[derive(Debug)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// It has ended with this code.
    Exited(i32),
}

/// A process' stdio. Dropping it ends a process that was started for it.
pub type Stdio = (mpsc::Sender<Input>, BoxStream<'static, Result<Output, Status>>);

/// A process to talk to: one to be started, or one that runs.
pub trait CommandTarget: Send + Sync {
    /// Starts or joins it.
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>>;
}

/// One exec or attach that a client was promised.
#[derive(Clone)]
pub struct CommandSession {
    /// Container id.
    pub container_id: String,
    /// With a terminal; stderr is then part of stdout.
    pub tty: bool,
    /// The client sends stdin.
    pub stdin: bool,
    /// The client reads stdout.
    pub stdout: bool,
    /// The client reads stderr.
    pub stderr: bool,
    /// The process.
    pub target: Arc<dyn CommandTarget>,
}

/// What comes from a port.
#[derive(Debug)]
pub enum FromPort {
    /// Bytes.
    Data(Vec<u8>),
    /// There are no more; the other direction may go on.
    Closed,
}

/// A connection to a port. Dropping the sender ends that direction, dropping the stream ends the connection.
pub type PortConnection = (mpsc::Sender<Bytes>, BoxStream<'static, Result<FromPort, Status>>);

/// A pod with ports.
pub trait PortTarget: Send + Sync {
    /// Connects.
    fn dial(&self, port: u16) -> BoxFuture<'static, Result<PortConnection, Status>>;
    /// Waits until the pod has ended or is being stopped.
    fn ended(&self) -> BoxFuture<'static, ()>;
}

/// One port-forward that a client was promised.
#[derive(Clone)]
pub struct PortSession {
    /// Pod id.
    pub pod_id: String,
    /// Ports that the request named: for clients who do not name them when they connect.
    pub ports: Vec<u16>,
    /// The pod.
    pub target: Arc<dyn PortTarget>,
}

/// What a URL stands for.
#[derive(Clone)]
pub enum Session {
    /// A new process.
    Exec(CommandSession),
    /// The container's own process.
    Attach(CommandSession),
    /// The pod's ports.
    PortForward(PortSession),
}

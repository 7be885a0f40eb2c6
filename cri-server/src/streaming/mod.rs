//! The streaming server: where `kubectl exec` and `crictl exec` talk to a container.
//!
//! The runtime service registers a session and gives its URL to the kubelet, which connects to it (or lets a user's
//! client do so) with SPDY/3.1. The server listens on loopback only; a URL works once and for a short time.

mod exec_session;
mod server;
mod spdy;
mod status;

use std::sync::Arc;

use cofferdam_proto::agent::{ExecInput, ExecOutput, ExecStart};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::Status;

pub use server::StreamingServer;

/// A process that was started, with the agent's end of its stdio.
pub type ExecStreams = (mpsc::Sender<ExecInput>, BoxStream<'static, Result<ExecOutput, Status>>);

/// Something that runs processes in a container: the pod's agent.
pub trait ExecTarget: Send + Sync {
    /// Starts the process. Dropping the streams kills it.
    fn exec(&self, start: ExecStart) -> BoxFuture<'static, Result<ExecStreams, Status>>;
}

/// One remote command that a client was promised.
#[derive(Clone)]
pub struct ExecSession {
    /// Container id.
    pub container_id: String,
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// With a terminal; stderr is then part of stdout.
    pub tty: bool,
    /// The client sends stdin.
    pub stdin: bool,
    /// The client reads stdout.
    pub stdout: bool,
    /// The client reads stderr.
    pub stderr: bool,
    /// Who runs it.
    pub target: Arc<dyn ExecTarget>,
}

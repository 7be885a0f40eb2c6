//! Calls to a pod's agent, each with a limit, and ended early when the pod ends or is being stopped.

use std::future::{Future, ready};
use std::time::Duration;

use bytes::Bytes;
use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::{
    AttachInput, AttachStart, ExecInput, ExecOutput, ExecStart, PortForwardInput, attach_input, attach_output,
    exec_input, exec_output, port_forward_input, port_forward_output,
};
use cofferdam_sandbox::Pod as Sandbox;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::Pod;
use crate::error::{CriError, During};
use crate::streaming::{CommandTarget, FromPort, Input, Output, PortConnection, PortTarget, Stdio};

/// For calls that answer from the agent's memory.
pub(crate) const QUICK: Duration = Duration::from_secs(30);
/// For calls that mount, fork or delete.
pub(crate) const WORK: Duration = Duration::from_secs(110);

impl Pod {
    /// Asks the agent. `what` reads as in "cannot {what}".
    pub(crate) async fn ask<T, F>(
        &self,
        what: &str,
        limit: Duration,
        call: impl FnOnce(AgentClient<Channel>) -> F,
    ) -> Result<T, CriError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let sandbox = self.sandbox()?;
        let answer = tokio::select! {
            answer = call(sandbox.agent()) => answer.map(Response::into_inner).map_err(CriError::from),
            () = tokio::time::sleep(limit) => {
                Err(CriError::TimedOut(format!("the agent of pod {} gave no answer in {} s", self.id, limit.as_secs())))
            }
            () = self.stopping.cancelled() => Err(CriError::State(format!("pod {} is being stopped", self.id))),
            end = sandbox.ended() => Err(CriError::State(format!("pod {} ended: {}", self.id, end.detail))),
        };
        answer.during(|| what.to_owned())
    }
}

/// Talks to a new process of a container.
pub(crate) struct Exec {
    pub(crate) sandbox: Sandbox,
    pub(crate) start: ExecStart,
}

/// Starts a process. Dropping either end kills it.
pub(crate) async fn exec(
    mut agent: AgentClient<Channel>,
    start: ExecStart,
    input: impl Stream<Item = ExecInput> + Send + 'static,
) -> Result<Streaming<ExecOutput>, Status> {
    let first = ExecInput { kind: Some(exec_input::Kind::Start(start)) };
    Ok(agent.exec(stream::iter([first]).chain(input)).await?.into_inner())
}

impl CommandTarget for Exec {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        let (agent, start) = (self.sandbox.agent_for_session(), self.start.clone());
        async move {
            let (input, rest) = mpsc::channel(16);
            let rest = ReceiverStream::new(rest).map(|input| {
                let kind = match input {
                    Input::Stdin(bytes) => exec_input::Kind::Stdin(bytes.into()),
                    Input::StdinClosed => exec_input::Kind::StdinClosed(true),
                    Input::Resize(size) => exec_input::Kind::Resize(size),
                };
                ExecInput { kind: Some(kind) }
            });
            let output = exec(agent, start, rest).await?.filter_map(|message| {
                ready(message.map(|m| m.kind).transpose().and_then(|kind| match kind {
                    Ok(exec_output::Kind::Stdout(bytes)) => Some(Ok(Output::Stdout(bytes))),
                    Ok(exec_output::Kind::Stderr(bytes)) => Some(Ok(Output::Stderr(bytes))),
                    Ok(exec_output::Kind::Exited(exited)) => Some(Ok(Output::Exited(exited.exit_code))),
                    Ok(exec_output::Kind::Started(_)) => None,
                    Err(status) => Some(Err(status)),
                }))
            });
            Ok((input, output.boxed()))
        }
        .boxed()
    }
}

/// Talks to a container's own process.
pub(crate) struct Attach {
    pub(crate) sandbox: Sandbox,
    pub(crate) start: AttachStart,
}

impl CommandTarget for Attach {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        let (mut agent, start) = (self.sandbox.agent_for_session(), self.start.clone());
        async move {
            let (input, rest) = mpsc::channel(16);
            let first = AttachInput { kind: Some(attach_input::Kind::Start(start)) };
            let rest = ReceiverStream::new(rest).map(|input| {
                let kind = match input {
                    Input::Stdin(bytes) => attach_input::Kind::Stdin(bytes.into()),
                    Input::StdinClosed => attach_input::Kind::StdinClosed(true),
                    Input::Resize(size) => attach_input::Kind::Resize(size),
                };
                AttachInput { kind: Some(kind) }
            });
            let output = agent.attach(stream::iter([first]).chain(rest)).await?.into_inner();
            let output = output.filter_map(|message| {
                ready(message.map(|m| m.kind).transpose().and_then(|kind| match kind {
                    Ok(attach_output::Kind::Stdout(bytes)) => Some(Ok(Output::Stdout(bytes))),
                    Ok(attach_output::Kind::Stderr(bytes)) => Some(Ok(Output::Stderr(bytes))),
                    Ok(attach_output::Kind::Started(_)) => None,
                    Err(status) => Some(Err(status)),
                }))
            });
            // The container's end is the end of the attach, and a good one whatever its code.
            Ok((input, output.chain(stream::iter([Ok(Output::Exited(0))])).boxed()))
        }
        .boxed()
    }
}

/// Connects to ports of a pod.
pub(crate) struct Ports {
    sandbox: Sandbox,
    agent: AgentClient<Channel>,
    stopping: CancellationToken,
}

impl Ports {
    pub(crate) fn of(pod: &Pod) -> Result<Self, CriError> {
        let sandbox = pod.sandbox()?;
        Ok(Self { agent: sandbox.agent_for_session(), sandbox, stopping: pod.stopping.clone() })
    }
}

impl PortTarget for Ports {
    fn dial(&self, port: u16) -> BoxFuture<'static, Result<PortConnection, Status>> {
        let mut agent = self.agent.clone();
        async move {
            let (input, rest) = mpsc::channel::<Bytes>(4);
            let first = PortForwardInput { kind: Some(port_forward_input::Kind::Port(port.into())) };
            let rest = ReceiverStream::new(rest)
                .map(|bytes| PortForwardInput { kind: Some(port_forward_input::Kind::Data(bytes.into())) });
            let output = agent.port_forward(stream::iter([first]).chain(rest)).await?.into_inner();
            let output = output.filter_map(|message| {
                ready(message.map(|m| m.kind).transpose().map(|kind| {
                    kind.map(|kind| match kind {
                        port_forward_output::Kind::Data(bytes) => FromPort::Data(bytes),
                        port_forward_output::Kind::Closed(_) => FromPort::Closed,
                    })
                }))
            });
            Ok((input, output.boxed()))
        }
        .boxed()
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        let (sandbox, stopping) = (self.sandbox.clone(), self.stopping.clone());
        async move {
            tokio::select! {
                _ = sandbox.ended() => {}
                () = stopping.cancelled() => {}
            }
        }
        .boxed()
    }
}

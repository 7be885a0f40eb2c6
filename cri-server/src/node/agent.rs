//! Calls to a pod's agent, each with a limit, and ended early when the pod ends or is being stopped.

use std::future::Future;
use std::time::Duration;

use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::{ExecInput, ExecStart, exec_input};
use cofferdam_sandbox::Pod as Sandbox;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::Pod;
use crate::error::{CriError, During};
use crate::streaming::{ExecStreams, ExecTarget};

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

/// Runs processes in a pod's containers.
pub(crate) struct Exec(pub(crate) Sandbox);

impl ExecTarget for Exec {
    fn exec(&self, start: ExecStart) -> BoxFuture<'static, Result<ExecStreams, Status>> {
        let mut agent = self.0.agent();
        async move {
            let (input, rest) = mpsc::channel(16);
            let first = ExecInput { kind: Some(exec_input::Kind::Start(start)) };
            // The channel is new and has room.
            let _ = input.try_send(first);
            let output = agent.exec(ReceiverStream::new(rest)).await?.into_inner();
            Ok((input, output.boxed()))
        }
        .boxed()
    }
}

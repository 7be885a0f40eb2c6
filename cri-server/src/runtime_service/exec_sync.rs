//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::{ExecOutput, ExecStart, exec_output};
use cofferdam_proto::cri;
use futures::{Stream, StreamExt, stream};
use tonic::Status;

use super::exec::{check_command, running};
use crate::error::{CriError, During};
use crate::node::Node;
use crate::node::agent::exec;

/// Most bytes of stdout and stderr together: an answer above 16 MiB is refused by gRPC clients.
const MAX_OUTPUT: usize = (16 << 20) - (64 << 10);
/// How much later than the agent the daemon gives up: the agent kills the process, and says so.
const SLACK: Duration = Duration::from_secs(20);

pub(super) async fn call(node: &Arc<Node>, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, CriError> {
    let container = running(node, &request.container_id)?;
    check_command(&request.cmd)?;
    let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
    let timed_out = || CriError::TimedOut(format!("command timed out after {} s and was killed", request.timeout));
    let sandbox = container.pod.sandbox()?;
    let start = ExecStart {
        container_id: container.id.clone(),
        args: request.cmd,
        terminal: false,
        stdin: false,
        timeout_ms: limit.map_or(0, |l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
    };
    let work = async {
        // The caller's hanging up kills the process; that there is no input does not.
        let output = exec(sandbox.agent(), start, stream::pending()).await.map_err(CriError::from)?;
        collect(output, MAX_OUTPUT).await
    };
    let patience = async {
        match limit {
            Some(limit) => tokio::time::sleep(limit.saturating_add(SLACK)).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        done = work => done.during(|| format!("execute in container {}", container.id))?,
        () = patience => return Err(timed_out()),
        () = container.pod.stopping.cancelled() => {
            return Err(CriError::State(format!("pod {} is being stopped", container.pod.id)));
        }
        end = sandbox.ended() => {
            return Err(CriError::State(format!("pod {} ended: {}", container.pod.id, end.detail)));
        }
    };
    ended.ok_or_else(timed_out)
}

/// Output up to `limit` bytes and the exit code; `None` when the agent killed the process for its time.
async fn collect(
    mut output: impl Stream<Item = Result<ExecOutput, Status>> + Unpin,
    limit: usize,
) -> Result<Option<cri::ExecSyncResponse>, CriError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut lost = 0usize;
    while let Some(message) = output.next().await {
        let (stream, bytes) = match message?.kind {
            Some(exec_output::Kind::Stdout(bytes)) => (0, bytes),
            Some(exec_output::Kind::Stderr(bytes)) => (1, bytes),
            Some(exec_output::Kind::Exited(exited)) => {
                if exited.timed_out {
                    return Ok(None);
                }
                if lost > 0 {
                    stderr.extend_from_slice(
                        format!("\ncofferdam: output truncated: {lost} bytes beyond {limit} were dropped\n").as_bytes(),
                    );
                }
                return Ok(Some(cri::ExecSyncResponse { stdout, stderr, exit_code: exited.exit_code }));
            }
            Some(exec_output::Kind::Started(_)) | None => continue,
        };
        let room = limit.saturating_sub(stdout.len() + stderr.len()).min(bytes.len());
        let into = if stream == 0 { &mut stdout } else { &mut stderr };
        into.extend_from_slice(&bytes[..room]);
        lost = lost.saturating_add(bytes.len() - room);
    }
    Err(CriError::State("the pod's agent ended before the command did".into()))
}

#[cfg(test)]
mod tests {
    use cofferdam_proto::agent::ExecExited;

    use super::*;

    fn messages(kinds: Vec<exec_output::Kind>) -> impl Stream<Item = Result<ExecOutput, Status>> + Unpin {
        futures::stream::iter(kinds.into_iter().map(|kind| Ok(ExecOutput { kind: Some(kind) })))
    }

    fn exited(exit_code: i32, timed_out: bool) -> exec_output::Kind {
        exec_output::Kind::Exited(ExecExited { exit_code, timed_out })
    }

    #[tokio::test]
    async fn output_is_bounded_and_says_so() {
        let kinds = vec![
            exec_output::Kind::Stdout(vec![b'a'; 60]),
            exec_output::Kind::Stderr(vec![b'b'; 30]),
            exec_output::Kind::Stdout(vec![b'c'; 60]),
            exec_output::Kind::Stderr(vec![b'd'; 30]),
            exited(3, false),
        ];
        let answer = collect(messages(kinds), 100).await.unwrap().unwrap();
        assert_eq!((answer.stdout.len(), answer.exit_code), (70, 3));
        let stderr = String::from_utf8(answer.stderr).unwrap();
        assert!(stderr.starts_with(&"b".repeat(30)) && stderr.contains("80 bytes beyond 100 were dropped"), "{stderr}");
    }

    #[tokio::test]
    async fn ends_are_told_apart() {
        assert!(collect(messages(vec![exited(137, true)]), 10).await.unwrap().is_none());
        assert_eq!(collect(messages(vec![exited(0, false)]), 10).await.unwrap().unwrap().exit_code, 0);
        assert!(collect(messages(vec![exec_output::Kind::Stdout(vec![1])]), 10).await.is_err());
    }
}

//! StopContainer: the stop signal once, then the grace period of whoever waits least, then the end of all its processes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cofferdam_proto::agent::SignalContainerRequest;
use cofferdam_proto::cri;

use crate::error::{CriError, During, message};
use crate::node::agent::QUICK;
use crate::node::{Container, Node};
use crate::records::ContainerPhase;
use crate::translate::signal::KILL;

/// How long a killed container may take to be gone. Generous: the kernel may be writing its memory out.
const GONE: Duration = Duration::from_secs(30);

pub(super) async fn call(
    node: &Arc<Node>,
    request: &cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, CriError> {
    if let Some(container) = node.container(&request.container_id)?
        && container.with(|r| matches!(r.phase, ContainerPhase::Running | ContainerPhase::Starting))
    {
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        stop(&container, grace).await?;
    }
    Ok(cri::StopContainerResponse {})
}

async fn stop(container: &Container, grace: Duration) -> Result<(), CriError> {
    if !grace.is_zero() {
        if !container.signalled.swap(true, Ordering::AcqRel) {
            let signal = container.with(|r| r.stop_signal);
            if let Err(error) = send(container, signal, false).await {
                // The kill below is what counts; a pod that is gone ends its containers itself.
                tracing::warn!(container = %container.id, error = message(&error), "stop signal not sent");
            }
        }
        if tokio::time::timeout(grace, container.exited()).await.is_ok() {
            return Ok(());
        }
    }
    let killed = send(container, KILL, true).await;
    if tokio::time::timeout(GONE, container.exited()).await.is_ok() {
        return Ok(());
    }
    match killed {
        // Dead but not gone: its processes hang in the kernel. The kubelet asks again.
        Ok(()) => Err(CriError::TimedOut(format!("container {} was killed and is not gone yet", container.id))),
        // An agent that cannot be asked holds the whole pod; ending it is the only way left.
        Err(error) => {
            tracing::error!(pod = %container.pod.id, error = message(&error), "agent does not answer: pod is killed");
            container.pod.sandbox()?.stop().await.during(|| format!("kill pod {}", container.pod.id))?;
            tokio::time::timeout(GONE, container.exited())
                .await
                .map_err(|_| CriError::TimedOut(format!("container {} is not gone yet", container.id)))
        }
    }
}

async fn send(container: &Container, signal: u32, all: bool) -> Result<(), CriError> {
    let request = SignalContainerRequest { id: container.id.clone(), signal, all };
    container
        .pod
        .ask(&format!("signal container {}", container.id), QUICK, |mut agent| async move {
            agent.signal_container(request).await
        })
        .await
        .map(drop)
}

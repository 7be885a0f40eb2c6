//! StartContainer.

use std::sync::Arc;
use std::time::Instant;

use cofferdam_proto::agent::{ListContainersRequest, StartContainerRequest};
use cofferdam_proto::cri;
use cofferdam_sandbox::{Kind, SPANS, step};
use futures::FutureExt;
use tracing::field::Empty;
use tracing::info_span;

use super::detached;
use crate::error::{CriError, message};
use crate::ids::now_nanos;
use crate::node::agent::{QUICK, WORK};
use crate::node::{Container, Node, watch};
use crate::records::{ContainerPhase, ContainerRecord};
use crate::telemetry;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::StartContainerResponse, CriError> {
    let container = node.known_container(id)?;
    container.pod.with(telemetry::of_pod);
    container.with(telemetry::of_container);
    let node = node.clone();
    let work = async move { start(&node, &container).await };
    // A start whose caller left stays: the kubelet finds it running.
    detached::run("start a container", work, |()| async {}.boxed()).await?;
    Ok(cri::StartContainerResponse {})
}

async fn start(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), CriError> {
    let began = Instant::now();
    let _working = container.pod.work.lock().await;
    let sandbox = container.pod.sandbox()?;
    let _quota = container.pod.without_quota(node, &sandbox).await;
    if !container.change(ContainerRecord::begin_start) {
        let phase = container.with(|r| r.phase);
        return Err(CriError::State(format!("container {} is {phase:?}, not Created", container.id)));
    }
    if let Err(error) = container.save(node).await {
        // Nothing was asked of anybody yet.
        container.change(ContainerRecord::start_not_asked);
        return Err(error);
    }
    let request = StartContainerRequest { id: container.id.clone() };
    let name = container.with(|r| r.name.clone());
    let span = info_span!(target: SPANS, "agent start container", otel.status_code = Empty);
    let what = format!("start container {name}");
    let asked = container.pod.ask(&what, WORK, |mut agent| async move { agent.start_container(request).await });
    let answer = step(span, asked).await;
    match answer {
        Ok(_) => {
            container.change(|r| r.running(now_nanos()));
            container.save_or_later(node).await;
        }
        Err(error) => failed(node, container, error).await?,
    }
    let handler = if container.pod.with(|r| r.kind) == Kind::Vm { "vm" } else { "host" };
    tracing::info!(
        pod = %container.pod.id,
        container = %container.id,
        %handler,
        elapsed_ms = began.elapsed().as_micros() as f64 / 1000.0,
        "container started"
    );
    Ok(())
}

/// What came of a start that failed is its agent's to say. Until it has, nobody is told that the container ended: its program may run.
async fn failed(node: &Arc<Node>, container: &Arc<Container>, error: CriError) -> Result<(), CriError> {
    if error.is_agents_word() {
        ask_what_became(node, container, &error).await;
    }
    let unknown = container.change(|r| r.start_unanswered(&message(&error)));
    container.save_or_later(node).await;
    if unknown {
        tracing::warn!(container = %container.id, error = message(&error), "a start got no answer");
        container.take_back();
    } else if container.with(|r| r.phase == ContainerPhase::Running) {
        // Only the answer was lost; or it was started by a daemon that did not live to hear of it.
        return Ok(());
    }
    Err(error)
}

async fn ask_what_became(node: &Arc<Node>, container: &Arc<Container>, error: &CriError) {
    let asked = container
        .pod
        .ask("learn what became of a start", QUICK, |mut agent| async move {
            agent.list_containers(ListContainersRequest {}).await
        })
        .await;
    match asked {
        Ok(list) => match list.containers.iter().find(|state| state.id == container.id) {
            Some(state) => watch::take(node, &container.pod, state).await,
            // What the agent does not have cannot run.
            None => drop(container.change(|r| {
                r.end(128, "StartError", &message(error), now_nanos());
                true
            })),
        },
        Err(error) => tracing::warn!(container = %container.id, error = message(&error), "agent not asked"),
    }
}

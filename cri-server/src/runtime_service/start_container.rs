//! StartContainer.

use std::sync::Arc;
use std::time::Instant;

use cofferdam_proto::agent::StartContainerRequest;
use cofferdam_proto::cri;
use cofferdam_sandbox::Kind;
use futures::FutureExt;

use super::detached;
use crate::error::{CriError, message};
use crate::ids::now_nanos;
use crate::node::agent::WORK;
use crate::node::{Container, Node};
use crate::records::ContainerRecord;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::StartContainerResponse, CriError> {
    let container = node.known_container(id)?;
    let node = node.clone();
    let work = async move { start(&node, &container).await };
    // A start whose caller left stays: the kubelet finds it running.
    detached::run("start a container", work, |()| async {}.boxed()).await?;
    Ok(cri::StartContainerResponse {})
}

async fn start(node: &Arc<Node>, container: &Arc<Container>) -> Result<(), CriError> {
    let began = Instant::now();
    let _working = container.pod.work.lock().await;
    container.pod.sandbox()?;
    if !container.change(ContainerRecord::begin_start) {
        let phase = container.with(|r| r.phase);
        return Err(CriError::State(format!("container {} is {phase:?}, not Created", container.id)));
    }
    container.save(node).await?;
    let request = StartContainerRequest { id: container.id.clone() };
    let name = container.with(|r| r.name.clone());
    let answer = container
        .pod
        .ask(&format!("start container {name}"), WORK, |mut agent| async move { agent.start_container(request).await })
        .await;
    let now = now_nanos();
    match &answer {
        Ok(_) => container.change(|r| r.running(now)),
        Err(error) => container.change(|r| {
            r.end(128, "StartError", &message(error), now);
            true
        }),
    };
    container.save(node).await?;
    answer?;
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

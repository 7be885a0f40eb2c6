//! UpdateContainerResources: the agent changes the limits, then the record tells them.

use std::sync::Arc;

use cofferdam_proto::agent::UpdateContainerRequest;
use cofferdam_proto::cri;
use futures::FutureExt;

use super::detached;
use crate::error::CriError;
use crate::node::agent::WORK;
use crate::node::{Container, Node};
use crate::translate::resources;

pub(super) async fn call(
    node: &Arc<Node>,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, CriError> {
    let container = node.known_container(&request.container_id)?;
    let asked = request.linux.ok_or_else(|| CriError::invalid("the request has no Linux resources"))?;
    let node = node.clone();
    // The limits and the record change together, whether the caller waits or not.
    let work = async move { update(&node, &container, &asked).await };
    detached::run("update a container", work, |()| async {}.boxed()).await?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

async fn update(
    node: &Arc<Node>,
    container: &Arc<Container>,
    asked: &cri::LinuxContainerResources,
) -> Result<(), CriError> {
    let _working = container.pod.work.lock().await;
    let (live, phase) = container.with(|r| (r.is_live(), r.phase));
    if !live {
        return Err(CriError::State(format!("container {} is {phase:?}: it has no limits to change", container.id)));
    }
    let before = container.with(|r| r.resources.clone()).unwrap_or_default();
    let merged = resources::merge(&before, asked);
    let mut limits = resources::status(&merged);
    limits.hugepage_limits.clone_from(&asked.hugepage_limits);
    let request = UpdateContainerRequest {
        id: container.id.clone(),
        resources: Some(resources::agent(&limits, container.pod.with(|r| r.kind))?),
    };
    container
        .pod
        .ask(&format!("change the limits of container {}", container.id), WORK, |mut agent| async move {
            agent.update_container(request).await
        })
        .await?;
    container.change(|r| {
        r.resources = Some(merged);
        true
    });
    container.save_or_later(node).await;
    if let Ok(sandbox) = container.pod.sandbox() {
        container.pod.grow(node, &sandbox).await;
    }
    Ok(())
}

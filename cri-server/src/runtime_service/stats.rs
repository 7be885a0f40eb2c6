//! The calls for statistics and metrics. Lists leave out what cannot be asked; CRI: an ended container is no error.

use std::collections::HashSet;
use std::sync::Arc;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::{Container, Node};
use crate::records::ContainerPhase;
use crate::stats;
use crate::translate::filters::selects;

/// ContainerStats: of an ended container, what is left of it.
pub(super) async fn container(node: &Arc<Node>, id: &str) -> Result<cri::ContainerStats, CriError> {
    let container = node.known_container(id)?;
    if container.pod.sandbox().is_err() {
        return Ok(container.with(stats::unmeasured));
    }
    let measured = stats::one(node, &container.pod, false).await;
    match (measured, container.with(|r| r.phase == ContainerPhase::Running)) {
        (Ok(measured), _) => Ok(match measured.containers.iter().find(|(c, _)| c.id == container.id) {
            Some((_, reply)) => stats::container(&measured, &container, reply),
            None => container.with(stats::unmeasured),
        }),
        (Err(_), false) => Ok(container.with(stats::unmeasured)),
        (Err(error), true) => Err(error),
    }
}

/// ListContainerStats: running ones.
pub(super) async fn containers(
    node: &Arc<Node>,
    filter: Option<cri::ContainerStatsFilter>,
) -> Result<Vec<cri::ContainerStats>, CriError> {
    let filter = filter.unwrap_or_default();
    let chosen = match filter.id.as_str() {
        "" => node.containers(),
        id => node.container(id)?.into_iter().collect(),
    };
    let pod = match filter.pod_sandbox_id.as_str() {
        "" => None,
        id => match node.pod(id)? {
            Some(pod) => Some(pod.id.clone()),
            None => return Ok(Vec::new()),
        },
    };
    let wanted = |c: &Arc<Container>| {
        pod.as_ref().is_none_or(|id| *id == c.pod.id)
            && c.with(|r| r.phase == ContainerPhase::Running && selects(&filter.label_selector, &r.labels))
    };
    let chosen: Vec<_> = chosen.into_iter().filter(wanted).collect();
    let ids: HashSet<&str> = chosen.iter().map(|c| c.id.as_str()).collect();
    let measured = stats::containers(node, &chosen).await;
    let all = measured.iter().flat_map(|m| m.containers.iter().map(move |(c, reply)| (m, c, reply)));
    let all = all.filter(|(_, c, _)| ids.contains(c.id.as_str()));
    Ok(all.map(|(m, c, reply)| stats::container(m, c, reply)).collect())
}

/// PodSandboxStats. The kubelet asks for an empty id to learn whether there are statistics: anything but Unimplemented is a yes.
pub(super) async fn pod(node: &Arc<Node>, id: &str) -> Result<cri::PodSandboxStats, CriError> {
    if id.is_empty() {
        return Err(CriError::invalid("no pod sandbox is named"));
    }
    let pod = node.known_pod(id)?;
    Ok(stats::pod(&stats::one(node, &pod, false).await?))
}

/// ListPodSandboxStats: pods that are ready.
pub(super) async fn pods(
    node: &Arc<Node>,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Result<Vec<cri::PodSandboxStats>, CriError> {
    let filter = filter.unwrap_or_default();
    let id = match filter.id.as_str() {
        "" => None,
        id => match node.pod(id)? {
            Some(pod) => Some(pod.id.clone()),
            None => return Ok(Vec::new()),
        },
    };
    let measured = stats::pods(
        node,
        |r| id.as_ref().is_none_or(|id| *id == r.id) && selects(&filter.label_selector, &r.labels),
        false,
    );
    Ok(measured.await.iter().map(stats::pod).collect())
}

/// ListPodSandboxMetrics: pods that are ready. Processes are looked into as well: this is asked as often as Prometheus scrapes.
pub(super) async fn metrics(node: &Arc<Node>) -> Vec<cri::PodSandboxMetrics> {
    stats::pods(node, |_| true, true).await.iter().map(stats::metrics::pod).collect()
}

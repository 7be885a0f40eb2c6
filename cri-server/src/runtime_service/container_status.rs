//! ContainerStatus: from memory; what people are shown besides, from the node's /proc too.

use std::collections::HashMap;

use cofferdam_proto::cri;
use cofferdam_sandbox::Kind;

use crate::error::CriError;
use crate::node::{Container, Node, pids, shorten};
use crate::records::ContainerPhase;
use crate::translate::filters::container_status;
use crate::translate::inspect::{self, Pids};

pub(super) async fn call(
    node: &Node,
    request: &cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, CriError> {
    let container = node.known_container(&request.container_id)?;
    let record = container.record();
    let log_directory = container.pod.with(|r| r.log_directory.clone());
    let status = container_status(&record, &log_directory)
        .ok_or_else(|| CriError::NotFound(format!("container {:?}", shorten(&request.container_id))))?;
    let mut info = HashMap::new();
    if request.verbose {
        let pids = processes(&container).await;
        info.insert("info".into(), inspect::container_info(&record, &container.pod.record(), pids).to_string());
    }
    Ok(cri::ContainerStatusResponse { status: Some(status), info })
}

/// The processes of a container and its pod, by the node's numbers.
async fn processes(container: &Container) -> Pids {
    let Ok(sandbox) = container.pod.sandbox() else { return Pids::default() };
    let (sandbox_pid, parent) = (sandbox.pid(), sandbox.container_cgroup_parent());
    let (phase, agent_pid) = container.with(|r| (r.phase, r.agent_pid));
    let live = matches!(phase, ContainerPhase::Created | ContainerPhase::Starting | ContainerPhase::Running);
    let mut found = None;
    if live && sandbox.kind() == Kind::Host {
        let cgroup = format!("{parent}/{}", container.id);
        let find = move || pids::on_node(&cgroup, sandbox_pid, agent_pid);
        found = tokio::task::spawn_blocking(find).await.ok().flatten();
    }
    Pids { sandbox: Some(sandbox_pid), container: found }
}

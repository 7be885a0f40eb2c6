//! ReopenContainerLog: the new file exists when the call returns.

use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_proto::cri;
use cofferdam_sandbox::Pod as Sandbox;

use crate::container_log;
use crate::error::{CriError, During};
use crate::node::{Container, Node};
use crate::records::ContainerPhase;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::ReopenContainerLogResponse, CriError> {
    let container = node.known_container(id)?;
    if container.with(|r| r.phase) != ContainerPhase::Running {
        return Err(CriError::State(format!("container {} is not running", container.id)));
    }
    let sandbox = container.pod.sandbox()?;
    open(&container, &sandbox).await?;
    Ok(cri::ReopenContainerLogResponse {})
}

/// Opens the container's log file and hands it to the pod's log writer. Without a log path its output goes nowhere: it must
/// not wait for a log, and clients that are attached see it.
pub(super) async fn open(container: &Container, sandbox: &Sandbox) -> Result<(), CriError> {
    let of_pod = container.pod.with(|r| r.log_directory.clone());
    let log = container.with(|r| r.log(&of_pod).map(|(directory, path)| (PathBuf::from(directory), path.to_owned())));
    let opened = tokio::task::spawn_blocking(move || match log {
        None => container_log::nowhere(),
        Some((directory, path)) => container_log::open(&directory, &path),
    })
    .await;
    let what = || format!("open the log of container {}", container.id);
    let file = opened.map_err(|e| CriError::internal(what(), e))?.map_err(|e| CriError::internal(what(), e))?;
    sandbox.open_log(&container.id, file).await.during(what)
}

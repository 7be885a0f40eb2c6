//! StopContainer: the stop signal once, then the grace period of whoever waits least, then the end of all its processes.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;
use crate::records::ContainerPhase;

pub(super) async fn call(
    node: &Arc<Node>,
    request: &cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, CriError> {
    if let Some(container) = node.container(&request.container_id)?
        && container.with(|r| matches!(r.phase, ContainerPhase::Running | ContainerPhase::Starting))
    {
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        container.stop(grace).await?;
    }
    Ok(cri::StopContainerResponse {})
}

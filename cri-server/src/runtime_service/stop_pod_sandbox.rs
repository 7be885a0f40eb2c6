//! StopPodSandbox: idempotent; unknown pods are stopped already.

use std::sync::Arc;

use cofferdam_proto::cri;
use futures::FutureExt;

use super::detached;
use crate::error::CriError;
use crate::node::Node;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::StopPodSandboxResponse, CriError> {
    if let Some(pod) = node.pod(id)? {
        let node = node.clone();
        detached::run("stop a pod sandbox", async move { pod.stop(&node).await }, |()| async {}.boxed()).await?;
    }
    Ok(cri::StopPodSandboxResponse {})
}

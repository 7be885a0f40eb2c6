//! RemovePodSandbox: idempotent; stops first, and removes containers that are left.

use std::sync::Arc;

use cofferdam_proto::cri;
use futures::FutureExt;

use super::detached;
use crate::error::CriError;
use crate::node::Node;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::RemovePodSandboxResponse, CriError> {
    if let Some(pod) = node.pod(id)? {
        let node = node.clone();
        detached::run("remove a pod sandbox", async move { pod.remove(&node).await }, |()| async {}.boxed()).await?;
    }
    Ok(cri::RemovePodSandboxResponse {})
}

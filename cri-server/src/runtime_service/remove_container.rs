//! RemoveContainer: idempotent; a running container is killed. Its log stays: the kubelet owns logs.

use std::sync::Arc;

use cofferdam_proto::cri;
use futures::FutureExt;

use super::detached;
use crate::error::CriError;
use crate::node::Node;

pub(super) async fn call(node: &Arc<Node>, id: &str) -> Result<cri::RemoveContainerResponse, CriError> {
    if let Some(container) = node.container(id)? {
        let node = node.clone();
        let work = async move {
            let _working = container.pod.work.lock().await;
            container.remove_locked(&node).await
        };
        detached::run("remove a container", work, |()| async {}.boxed()).await?;
    }
    Ok(cri::RemoveContainerResponse {})
}

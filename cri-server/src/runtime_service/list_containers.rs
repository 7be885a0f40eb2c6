//! ListContainers: from memory; the kubelet asks each second.

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;

pub(super) fn call(node: &Node, request: cri::ListContainersRequest) -> Result<cri::EncodedList, CriError> {
    let mut filter = request.filter.unwrap_or_default();
    if !filter.id.is_empty() {
        match node.container(&filter.id)? {
            Some(container) => filter.id = container.id.clone(),
            None => return Ok(cri::EncodedList::default()),
        }
    }
    if !filter.pod_sandbox_id.is_empty() {
        match node.pod(&filter.pod_sandbox_id)? {
            Some(pod) => filter.pod_sandbox_id = pod.id.clone(),
            None => return Ok(cri::EncodedList::default()),
        }
    }
    Ok(cri::EncodedList { items: node.containers().iter().filter_map(|c| c.listed(&filter)).collect() })
}

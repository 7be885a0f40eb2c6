//! ListPodSandbox: from memory; the kubelet asks each second.

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;
use crate::translate::filters::list_pod;

pub(super) fn call(node: &Node, request: cri::ListPodSandboxRequest) -> Result<cri::ListPodSandboxResponse, CriError> {
    let mut filter = request.filter.unwrap_or_default();
    if !filter.id.is_empty() {
        match node.pod(&filter.id)? {
            Some(pod) => filter.id = pod.id.clone(),
            None => return Ok(cri::ListPodSandboxResponse::default()),
        }
    }
    let items = node.pods().iter().filter_map(|pod| pod.with(|r| list_pod(r, &filter))).collect();
    Ok(cri::ListPodSandboxResponse { items })
}

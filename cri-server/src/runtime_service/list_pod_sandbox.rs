//! ListPodSandbox: from memory; the kubelet asks each second.

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;

pub(super) fn call(node: &Node, request: cri::ListPodSandboxRequest) -> Result<cri::EncodedList, CriError> {
    let mut filter = request.filter.unwrap_or_default();
    if !filter.id.is_empty() {
        match node.pod(&filter.id)? {
            Some(pod) => filter.id = pod.id.clone(),
            None => return Ok(cri::EncodedList::default()),
        }
    }
    Ok(cri::EncodedList { items: node.pods().iter().filter_map(|pod| pod.listed(&filter)).collect() })
}

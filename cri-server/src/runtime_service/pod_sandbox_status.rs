//! PodSandboxStatus: from memory.

use std::collections::HashMap;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::{Node, shorten};
use crate::translate::filters::pod_status;
use crate::translate::inspect::pod_info;

pub(super) fn call(
    node: &Node,
    request: &cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, CriError> {
    let pod = node.known_pod(&request.pod_sandbox_id)?;
    let record = pod.record();
    let status = pod_status(&record)
        .ok_or_else(|| CriError::NotFound(format!("pod sandbox {:?}", shorten(&request.pod_sandbox_id))))?;
    let mut info = HashMap::new();
    if request.verbose {
        let sandbox = pod.sandbox().ok();
        let network = sandbox.as_ref().and_then(|s| s.network());
        let (pid, programs) = (sandbox.as_ref().map(|s| s.pid()), sandbox.as_ref().map(|s| s.programs()));
        info.insert("info".into(), pod_info(&record, pid, network, programs.as_ref()).to_string());
    }
    // `timestamp` and `containers_statuses` stay empty: Kubernetes 1.37 misreads them.
    Ok(cri::PodSandboxStatusResponse { status: Some(status), info, ..Default::default() })
}

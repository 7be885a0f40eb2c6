//! ContainerStatus: from memory.

use std::collections::HashMap;

use cofferdam_proto::cri;
use serde_json::json;

use crate::error::CriError;
use crate::node::{Node, shorten};
use crate::translate::filters::container_status;

pub(super) fn call(
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
        let kind = container.pod.with(|r| r.kind);
        info.insert("info".into(), json!({"sandboxID": record.pod, "kind": kind}).to_string());
    }
    Ok(cri::ContainerStatusResponse { status: Some(status), info })
}

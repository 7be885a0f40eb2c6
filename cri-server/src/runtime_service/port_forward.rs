//! PortForward: a URL that works once. The client names the ports when it connects.

use std::sync::Arc;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;
use crate::node::agent::Ports;
use crate::streaming::{PortSession, Session};

pub(super) fn call(node: &Node, request: &cri::PortForwardRequest) -> Result<cri::PortForwardResponse, CriError> {
    let pod = node.known_pod(&request.pod_sandbox_id)?;
    let session = PortSession { pod_id: pod.id.clone(), target: Arc::new(Ports::of(&pod)?) };
    let url = node.streaming.url(Session::PortForward(session));
    Ok(cri::PortForwardResponse { url: url.map_err(|e| CriError::internal("prepare a port-forward session", e))? })
}

//! PortForward: a URL that works once. Most clients name the ports when they connect.

use std::sync::Arc;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::Node;
use crate::node::agent::Ports;
use crate::streaming::{PortSession, Session};

/// Ports of one request; a WebSocket has two channels for each.
const MAX_PORTS: usize = 100;

pub(super) fn call(node: &Node, request: &cri::PortForwardRequest) -> Result<cri::PortForwardResponse, CriError> {
    let pod = node.known_pod(&request.pod_sandbox_id)?;
    if request.port.len() > MAX_PORTS {
        return Err(CriError::invalid(format!("{} ports: at most {MAX_PORTS} are forwarded", request.port.len())));
    }
    let port = |port: &i32| u16::try_from(*port).ok().filter(|port| *port > 0);
    let ports: Option<Vec<u16>> = request.port.iter().map(port).collect();
    let ports = ports.ok_or_else(|| CriError::invalid(format!("{:?} are not ports from 1 to 65535", request.port)))?;
    let session = PortSession { pod_id: pod.id.clone(), ports, target: Arc::new(Ports::of(&pod)?) };
    let url = node.streaming.url(Session::PortForward(session));
    Ok(cri::PortForwardResponse { url: url.map_err(|e| CriError::internal("prepare a port-forward session", e))? })
}

//! Attach: checks, and a URL that works once.

use std::sync::Arc;

use cofferdam_proto::agent::AttachStart;
use cofferdam_proto::cri;

use super::exec::{check_streams, running};
use crate::error::CriError;
use crate::node::Node;
use crate::node::agent::Attach;
use crate::streaming::{CommandSession, Session};

pub(super) fn call(node: &Node, request: &cri::AttachRequest) -> Result<cri::AttachResponse, CriError> {
    check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
    let container = running(node, &request.container_id)?;
    if request.tty && !container.with(|r| r.terminal) {
        let id = &container.id;
        return Err(CriError::Invalid(format!("container {id} was created without a terminal: attach without tty")));
    }
    let start = AttachStart { container_id: container.id.clone(), stdin: request.stdin };
    let session = CommandSession {
        container_id: container.id.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        target: Arc::new(Attach { sandbox: container.pod.sandbox()?, start }),
    };
    let url = node.streaming.url(Session::Attach(session));
    Ok(cri::AttachResponse { url: url.map_err(|e| CriError::internal("prepare an attach session", e))? })
}

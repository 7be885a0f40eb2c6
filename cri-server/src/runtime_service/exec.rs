//! Exec: checks, and a URL that works once.

use std::sync::Arc;

use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::agent::Exec;
use crate::node::{Container, Node};
use crate::records::ContainerPhase;
use crate::streaming::ExecSession;

pub(super) fn call(node: &Node, request: cri::ExecRequest) -> Result<cri::ExecResponse, CriError> {
    if request.tty && request.stderr {
        return Err(CriError::invalid("tty and stderr exclude each other: a terminal has one output"));
    }
    if !request.stdin && !request.stdout && !request.stderr {
        return Err(CriError::invalid("one of stdin, stdout and stderr must be set"));
    }
    let container = running(node, &request.container_id)?;
    check_command(&request.cmd)?;
    let session = ExecSession {
        container_id: container.id.clone(),
        cmd: request.cmd,
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        target: Arc::new(Exec(container.pod.sandbox()?)),
    };
    let url = node.streaming.exec_url(session).map_err(|e| CriError::internal("prepare an exec session", e))?;
    Ok(cri::ExecResponse { url })
}

/// A container in which something can be executed.
pub(super) fn running(node: &Node, id: &str) -> Result<Arc<Container>, CriError> {
    let container = node.known_container(id)?;
    match container.with(|r| r.phase) {
        ContainerPhase::Running => Ok(container),
        phase => Err(CriError::State(format!("container {} is {phase:?}, not Running", container.id))),
    }
}

pub(super) fn check_command(cmd: &[String]) -> Result<(), CriError> {
    if cmd.first().is_none_or(String::is_empty) {
        return Err(CriError::invalid("there is no command"));
    }
    if cmd.iter().any(|a| a.contains('\0')) {
        return Err(CriError::invalid("an argument has a NUL"));
    }
    Ok(())
}

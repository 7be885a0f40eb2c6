//! Exec: checks, and a URL that works once.

use std::sync::Arc;

use cofferdam_proto::agent::ExecStart;
use cofferdam_proto::cri;

use crate::error::CriError;
use crate::node::agent::Exec;
use crate::node::{Container, Node};
use crate::records::ContainerPhase;
use crate::streaming::{CommandSession, Session};

pub(super) fn call(node: &Node, request: cri::ExecRequest) -> Result<cri::ExecResponse, CriError> {
    check_streams(request.tty, [request.stdin, request.stdout, request.stderr])?;
    let container = running(node, &request.container_id)?;
    check_command(&request.cmd)?;
    let start = ExecStart {
        container_id: container.id.clone(),
        args: request.cmd,
        terminal: request.tty,
        stdin: request.stdin,
        timeout_ms: 0,
    };
    let session = CommandSession {
        container_id: container.id.clone(),
        tty: request.tty,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        target: Arc::new(Exec { sandbox: container.pod.sandbox()?, start }),
    };
    let url =
        node.streaming.url(Session::Exec(session)).map_err(|e| CriError::internal("prepare an exec session", e))?;
    Ok(cri::ExecResponse { url })
}

/// Which of a process' streams may be asked for together (stdin, stdout, stderr).
pub(super) fn check_streams(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), CriError> {
    if tty && stderr {
        return Err(CriError::invalid("tty and stderr exclude each other: a terminal has one output"));
    }
    if !stdin && !stdout && !stderr {
        return Err(CriError::invalid("one of stdin, stdout and stderr must be set"));
    }
    Ok(())
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

//! Attach: a client joins the stdio of a container that runs.

use std::sync::Arc;

use cofferdam_proto::agent::attach_input::Kind as In;
use cofferdam_proto::agent::attach_output::Kind as Out;
use cofferdam_proto::agent::{AttachInput, AttachOutput, AttachStart, AttachStarted};
use cofferdam_proto::sink::Stream;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::lifecycle::Container;
use super::stdio::End;
use crate::agent::Agent;
use crate::error::{Error, Kind, Result};
use crate::lock;
use crate::logs::tee::{Joined, Piece};

type Output = mpsc::Sender<Result<AttachOutput, Status>>;

/// A container's standard input, as the agent holds it.
#[derive(Debug)]
pub enum Stdin {
    /// It was created without.
    Never,
    /// Open.
    Open(Arc<End>),
    /// Closed, by the end of the container or by the one client that it was for.
    Closed,
}

impl Stdin {
    /// Open, if there is one.
    pub fn new(end: Option<End>) -> Self {
        end.map_or(Self::Never, |end| Self::Open(Arc::new(end)))
    }
}

/// Joins a container.
///
/// # Errors
/// When it does not run, has no input although some is wanted, or has too many clients.
pub fn join(agent: &Agent, start: &AttachStart) -> Result<(Arc<Container>, Joined)> {
    let id = &start.container_id;
    let container = agent.container(id)?;
    if !container.running() {
        return Err(Error::precondition(format!("container {id} does not run")));
    }
    if start.stdin && container.spec.stdin && matches!(*lock(&container.stdin), Stdin::Closed) {
        return Err(Error::precondition(format!(
            "the input of container {id} was for one client (stdin once), which has closed it: attach without input"
        )));
    }
    let joined = container.tee.join()?;
    Ok((container, joined))
}

/// Carries input and output until the container has ended or the caller has gone.
pub async fn serve(
    container: Arc<Container>,
    mut joined: Joined,
    start: AttachStart,
    mut input: Streaming<AttachInput>,
    output: Output,
) {
    let say = |kind| output.send(Ok(AttachOutput { kind: Some(kind) }));
    if say(Out::Started(AttachStarted {})).await.is_ok() {
        let wanted = start.stdin;
        let failed = tokio::select! {
            result = carry(&container, &mut joined, &output) => result.err(),
            () = feed(&container, &mut input, wanted) => None,
            () = output.closed() => None,
        };
        if let Some(error) = failed {
            let _ = output.send(Err(error.into())).await;
        }
    }
    if start.stdin {
        // As in the definition of stdin_once: the client's going closes it too.
        close_once(&container);
    }
}

async fn carry(container: &Container, joined: &mut Joined, output: &Output) -> Result<()> {
    let wrap = |(stream, bytes): Piece| match stream {
        Stream::Stdout => Out::Stdout(bytes),
        Stream::Stderr => Out::Stderr(bytes),
    };
    let say = |piece| output.send(Ok(AttachOutput { kind: Some(wrap(piece)) }));
    loop {
        let piece = tokio::select! {
            biased;
            piece = joined.next() => piece,
            () = container.wait() => break,
        };
        let Some(piece) = piece else {
            let id = &container.spec.id;
            let why =
                format!("this client reads the output of container {id} too slowly: attach again, or read the log");
            return Err(Error::new(Kind::Exhausted, why));
        };
        if say(piece).await.is_err() {
            return Ok(());
        }
    }
    // Its end is announced only when all output was read.
    while let Some(piece) = joined.rest() {
        if say(piece).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Passes input on. Ends when the caller has gone; a caller that has only nothing more to say keeps the call.
async fn feed(container: &Container, input: &mut Streaming<AttachInput>, wanted: bool) {
    loop {
        match input.message().await {
            Ok(Some(AttachInput { kind })) => match kind {
                Some(In::Stdin(bytes)) if wanted => {
                    let end = match &*lock(&container.stdin) {
                        Stdin::Open(end) => end.clone(),
                        Stdin::Never | Stdin::Closed => continue,
                    };
                    // Nobody may be reading: the client learns of it from the container's output or end.
                    let _ = end.write_all(&bytes).await;
                }
                Some(In::StdinClosed(true)) if wanted => close_once(container),
                Some(In::Resize(size)) if container.spec.process.terminal => {
                    let end = lock(&container.terminal).clone();
                    if let Some(end) = end {
                        let _ = end.resize(size.width, size.height);
                    }
                }
                _ => {}
            },
            Ok(None) => std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Closes the input for good if it is for one client only. A terminal stays open: its user may come back.
fn close_once(container: &Container) {
    if container.spec.stdin_once && !container.spec.process.terminal {
        let mut stdin = lock(&container.stdin);
        if let Stdin::Open(_) = *stdin {
            *stdin = Stdin::Closed;
        }
    }
}

//! One remote command, exec or attach, over one connection of either kind.
//!
//! A client has up to five channels: `error`, `stdin`, `stdout`, `stderr` and `resize`. Output goes out on its channels as it
//! comes; the end is a `Status` on the error channel.

mod spdy_client;
mod websocket_client;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use cofferdam_proto::agent::WindowSize;
use futures::StreamExt;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::channels::Encoding;
use super::idle::{IDLE_TIME, Idle};
use super::{CommandSession, Input, Output, Stdio};

/// How long a client may take to open its streams.
const CREATION_TIME: Duration = Duration::from_secs(30);
/// How long a client may take to hang up after the end.
const LINGER: Duration = Duration::from_secs(5);
/// Longest resize message, bytes.
const MAX_RESIZE: usize = 1024;

/// What the number of a remote command protocol means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// 1 and 2: no resize; the error channel carries text.
    Plain,
    /// 3: with resize.
    Resize,
    /// 4 and later: the error channel carries a `Status`.
    Status,
}

/// How a command came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this code.
    Exited(i32),
    /// It could not be run or watched to its end.
    Failed(String),
}

/// What a client did.
#[derive(Debug)]
enum Event {
    Stdin(Bytes),
    StdinClosed,
    Resize(Bytes),
    /// Something without a meaning here.
    Nothing,
}

/// A client's connection broke, or it does not keep to the protocol.
type Broken = Box<dyn std::error::Error + Send + Sync>;

/// The reading half of a client.
trait Receive: Send {
    /// What it does next; `None` when it has hung up. Not cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Option<Event>, Broken>> + Send;
}

/// The writing half of a client.
trait Transmit: Sync {
    /// Sends output, if the client wants it.
    fn output(&self, output: Output) -> impl Future<Output = Result<(), Broken>> + Send;
    /// Sends the end and closes our half.
    fn finish(&self, end: &End) -> impl Future<Output = Result<(), Broken>> + Send;
}

/// Serves `session` over SPDY on an upgraded connection, to its end.
pub(super) async fn over_spdy<T>(io: T, session: CommandSession, version: Version)
where
    T: AsyncRead + AsyncWrite + Send,
{
    let opened = timeout(CREATION_TIME, spdy_client::open(io, &session, version)).await;
    match opened {
        Ok(Ok(Some((mut reader, writer)))) => serve(&mut reader, &writer, &session).await,
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(container = session.container_id, %error, "streams refused"),
        Err(_) => tracing::debug!(container = session.container_id, "streams not opened in time"),
    }
}

/// Same, over WebSocket.
pub(super) async fn over_websocket<T>(io: T, session: CommandSession, encoding: Encoding, version: Version)
where
    T: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut reader, writer) = websocket_client::open(io, &session, encoding, version).await;
    if writer.greet().await.is_err() {
        return;
    }
    serve(&mut reader, &writer, &session).await;
}

async fn serve<R: Receive, W: Transmit>(reader: &mut R, writer: &W, session: &CommandSession) {
    let end = match session.target.start().await {
        Ok(stdio) => talk(reader, writer, session, stdio).await,
        Err(error) => Some(End::Failed(error.message().to_owned())),
    };
    let Some(end) = end else { return };
    if let Ok(Ok(())) = timeout(IDLE_TIME, writer.finish(&end)).await {
        let _ = timeout(LINGER, async { while let Ok(Some(_)) = reader.next().await {} }).await;
    }
}

/// Carries bytes both ways until the process has ended; `None` when the client left first.
async fn talk<R: Receive, W: Transmit>(
    reader: &mut R,
    writer: &W,
    session: &CommandSession,
    (input, mut output): Stdio,
) -> Option<End> {
    let idle = Idle::new();
    let client = async {
        if let Err(error) = from_client(reader, input, &idle).await {
            tracing::debug!(container = session.container_id, %error, "streaming client failed");
        }
    };
    let process = async {
        while let Some(message) = output.next().await {
            idle.touch();
            match message {
                Ok(Output::Exited(code)) => return Some(End::Exited(code)),
                Ok(piece) => writer.output(piece).await.ok()?,
                Err(error) => return Some(End::Failed(error.message().to_owned())),
            }
        }
        Some(End::Failed("the pod's agent ended before the command did".into()))
    };
    tokio::select! {
        end = process => end,
        () = client => None,
        () = idle.expired() => Some(End::Failed("no byte in either direction for four hours".into())),
    }
}

/// Hands on what the client sends, until it hangs up.
async fn from_client<R: Receive>(reader: &mut R, input: mpsc::Sender<Input>, idle: &Idle) -> Result<(), Broken> {
    // The agent may have closed its end already; the client still learns the exit code.
    let send = async |piece| drop(input.send(piece).await);
    let mut resize = Vec::new();
    while let Some(event) = reader.next().await? {
        idle.touch();
        match event {
            Event::Stdin(bytes) if bytes.is_empty() => {}
            Event::Stdin(bytes) => send(Input::Stdin(bytes)).await,
            Event::StdinClosed => send(Input::StdinClosed).await,
            Event::Resize(bytes) => {
                resize.extend_from_slice(&bytes);
                for size in take_sizes(&mut resize) {
                    send(Input::Resize(size)).await;
                }
            }
            Event::Nothing => {}
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TerminalSize {
    width: u16,
    height: u16,
}

/// Takes the whole JSON objects `{"Width":80,"Height":24}` off the front of `buffer`.
fn take_sizes(buffer: &mut Vec<u8>) -> Vec<WindowSize> {
    let mut objects = serde_json::Deserializer::from_slice(buffer).into_iter::<TerminalSize>();
    let mut sizes = Vec::new();
    let mut broken = false;
    for object in objects.by_ref() {
        match object {
            Ok(size) => sizes.push(WindowSize { width: size.width.into(), height: size.height.into() }),
            Err(error) => {
                broken = !error.is_eof();
                break;
            }
        }
    }
    let used = objects.byte_offset();
    buffer.drain(..used);
    if broken || buffer.len() > MAX_RESIZE {
        buffer.clear();
    }
    sizes
}

#[cfg(test)]
mod tests;

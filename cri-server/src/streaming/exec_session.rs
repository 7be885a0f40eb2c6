//! One remote command over one SPDY connection, `v4.channel.k8s.io`.
//!
//! The client opens a stream for each of `error`, `stdin`, `stdout`, `stderr` and `resize` that the session has, named
//! by the header `streamtype`. Output goes out on its streams; the end is a `Status` on the error stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_proto::agent::{ExecInput, ExecOutput, ExecStart, WindowSize, exec_input, exec_output};
use futures::StreamExt;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep_until, timeout};

use super::spdy::{self, Event, Reader, SpdyError, Writer};
use super::{ExecSession, ExecStreams, status};

/// How long a client may take to open its streams.
const CREATION_TIME: Duration = Duration::from_secs(30);
/// How long a session may stay without a byte in either direction.
const IDLE_TIME: Duration = Duration::from_secs(4 * 60 * 60);
/// How long a client may take to hang up after the end.
const LINGER: Duration = Duration::from_secs(5);
/// Longest resize message, bytes.
const MAX_RESIZE: usize = 1024;

/// Stream ids by role; 0 where the session has none.
#[derive(Default)]
struct Roles {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

impl Roles {
    fn slot(&mut self, name: &str, session: &ExecSession) -> Option<&mut u32> {
        let slot = match name {
            "error" => &mut self.error,
            "stdin" if session.stdin => &mut self.stdin,
            "stdout" if session.stdout => &mut self.stdout,
            "stderr" if session.stderr && !session.tty => &mut self.stderr,
            "resize" if session.tty => &mut self.resize,
            _ => return None,
        };
        (*slot == 0).then_some(slot)
    }

    fn complete(&self, session: &ExecSession) -> bool {
        self.error != 0
            && (self.stdin != 0) == session.stdin
            && (self.stdout != 0) == session.stdout
            && (self.stderr != 0) == (session.stderr && !session.tty)
            && (self.resize != 0) == session.tty
    }
}

/// Serves `session` on an upgraded connection, to its end.
pub(super) async fn run<T: AsyncRead + AsyncWrite + Send>(io: T, session: ExecSession) {
    let (mut reader, mut writer) = spdy::split(io);
    let opened = timeout(CREATION_TIME, open_streams(&mut reader, &mut writer, &session)).await;
    let roles = match opened {
        Ok(Ok(Some(roles))) => roles,
        Ok(Ok(None)) => return,
        Ok(Err(error)) => return tracing::debug!(container = session.container_id, %error, "exec streams refused"),
        Err(_) => return tracing::debug!(container = session.container_id, "exec streams not opened in time"),
    };
    let start = ExecStart {
        container_id: session.container_id.clone(),
        args: session.cmd.clone(),
        terminal: session.tty,
        stdin: session.stdin,
        timeout_ms: 0,
    };
    let end = match session.target.exec(start).await {
        Ok(streams) => talk(&mut reader, &mut writer, &roles, streams).await,
        Err(error) => Some(status::failed(error.message())),
    };
    let Some(end) = end else { return };
    if finish(&mut writer, &roles, &end).await.is_ok() {
        let _ = timeout(LINGER, async { while let Ok(Some(_)) = reader.next().await {} }).await;
    }
}

async fn open_streams<T: AsyncRead + AsyncWrite>(
    reader: &mut Reader<T>,
    writer: &mut Writer<T>,
    session: &ExecSession,
) -> Result<Option<Roles>, SpdyError> {
    let mut roles = Roles::default();
    while !roles.complete(session) {
        match reader.next().await? {
            None | Some(Event::GoAway) => return Ok(None),
            Some(Event::Ping { id }) => writer.pong(id).await?,
            Some(Event::Opened { stream, headers, .. }) => {
                let name = headers.iter().find(|(name, _)| name == "streamtype").map_or("", |(_, value)| value);
                match roles.slot(name, session) {
                    Some(slot) => {
                        *slot = stream;
                        writer.accept(stream).await?;
                    }
                    None => writer.refuse(stream).await?,
                }
            }
            // The clients wait for our replies before they send.
            Some(Event::Data { .. } | Event::Reset { .. }) => {}
        }
    }
    Ok(Some(roles))
}

/// Carries bytes both ways until the process has ended; `None` when the client left first.
async fn talk<T: AsyncRead + AsyncWrite + Send>(
    reader: &mut Reader<T>,
    writer: &mut Writer<T>,
    roles: &Roles,
    (input, mut output): ExecStreams,
) -> Option<Vec<u8>> {
    let idle = Idle::new();
    let writer = Mutex::new(writer);
    let client = async {
        let ended = from_client(reader, &writer, roles, input, &idle).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "exec client failed");
        }
    };
    let process = async {
        while let Some(message) = output.next().await {
            idle.touch();
            let kind = match message {
                Ok(ExecOutput { kind: Some(kind) }) => kind,
                Ok(ExecOutput { kind: None }) => continue,
                Err(error) => return Some(status::failed(error.message())),
            };
            let (stream, bytes) = match kind {
                exec_output::Kind::Stdout(bytes) => (roles.stdout, bytes),
                exec_output::Kind::Stderr(bytes) => (roles.stderr, bytes),
                exec_output::Kind::Exited(exited) => return Some(status::exited(exited.exit_code)),
                exec_output::Kind::Started(_) => continue,
            };
            if stream != 0 && writer.lock().await.data(stream, &bytes, false).await.is_err() {
                return None;
            }
        }
        Some(status::failed("the pod's agent ended before the command did"))
    };
    tokio::select! {
        end = process => end,
        () = client => None,
        () = idle.expired() => Some(status::failed("no byte in either direction for four hours")),
    }
}

/// Hands on what the client sends, until it hangs up.
async fn from_client<T: AsyncRead + AsyncWrite>(
    reader: &mut Reader<T>,
    writer: &Mutex<&mut Writer<T>>,
    roles: &Roles,
    input: mpsc::Sender<ExecInput>,
    idle: &Idle,
) -> Result<(), SpdyError> {
    // The agent may have closed its end already; the client still learns the exit code.
    let send = async |kind| drop(input.send(ExecInput { kind: Some(kind) }).await);
    let mut resize = Vec::new();
    while let Some(event) = reader.next().await? {
        idle.touch();
        match event {
            Event::Data { stream, bytes, fin } if stream == roles.stdin && stream != 0 => {
                if !bytes.is_empty() {
                    send(exec_input::Kind::Stdin(bytes.into())).await;
                }
                if fin {
                    send(exec_input::Kind::StdinClosed(true)).await;
                }
            }
            Event::Data { stream, bytes, .. } if stream == roles.resize && stream != 0 => {
                resize.extend_from_slice(&bytes);
                for size in take_sizes(&mut resize) {
                    send(exec_input::Kind::Resize(size)).await;
                }
            }
            Event::Reset { stream } if stream == roles.stdin && stream != 0 => {
                send(exec_input::Kind::StdinClosed(true)).await;
            }
            Event::Ping { id } => writer.lock().await.pong(id).await?,
            Event::Opened { stream, .. } => writer.lock().await.refuse(stream).await?,
            Event::Data { .. } | Event::Reset { .. } | Event::GoAway => {}
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

async fn finish<T: AsyncRead + AsyncWrite>(writer: &mut Writer<T>, roles: &Roles, end: &[u8]) -> std::io::Result<()> {
    for stream in [roles.stdout, roles.stderr] {
        if stream != 0 {
            writer.data(stream, &[], true).await?;
        }
    }
    writer.data(roles.error, end, true).await?;
    writer.close().await
}

/// When the session last carried a byte.
struct Idle {
    start: Instant,
    last_ms: AtomicU64,
}

impl Idle {
    fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    async fn expired(&self) {
        loop {
            let until = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + IDLE_TIME;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests;

//! A client that opens a SPDY stream for each channel, named by the header `streamtype`.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;

use super::super::spdy::{self, Event as Frame, SpdyError};
use super::super::{CommandSession, Output, status};
use super::{Broken, End, Event, Receive, Transmit, Version};

/// Stream ids by role; 0 where the session has none.
#[derive(Default, Clone, Copy)]
struct Roles {
    error: u32,
    stdin: u32,
    stdout: u32,
    stderr: u32,
    resize: u32,
}

impl Roles {
    fn slot(&mut self, name: &str, session: &CommandSession, version: Version) -> Option<&mut u32> {
        let slot = match name {
            "error" => &mut self.error,
            "stdin" if session.stdin => &mut self.stdin,
            "stdout" if session.stdout => &mut self.stdout,
            "stderr" if session.stderr && !session.tty => &mut self.stderr,
            "resize" if resizes(session, version) => &mut self.resize,
            _ => return None,
        };
        (*slot == 0).then_some(slot)
    }

    fn complete(&self, session: &CommandSession, version: Version) -> bool {
        self.error != 0
            && (self.stdin != 0) == session.stdin
            && (self.stdout != 0) == session.stdout
            && (self.stderr != 0) == (session.stderr && !session.tty)
            && (self.resize != 0) == resizes(session, version)
    }
}

fn resizes(session: &CommandSession, version: Version) -> bool {
    session.tty && version != Version::Plain
}

pub(super) struct Reader<T> {
    frames: spdy::Reader<T>,
    writer: Arc<Mutex<spdy::Writer<T>>>,
    roles: Roles,
}

pub(super) struct Writer<T> {
    frames: Arc<Mutex<spdy::Writer<T>>>,
    roles: Roles,
    version: Version,
}

/// Waits until the client has opened all streams of the session; `None` when it leaves before.
pub(super) async fn open<T: AsyncRead + AsyncWrite>(
    io: T,
    session: &CommandSession,
    version: Version,
) -> Result<Option<(Reader<T>, Writer<T>)>, SpdyError> {
    let (mut reader, mut writer) = spdy::split(io);
    let mut roles = Roles::default();
    while !roles.complete(session, version) {
        match reader.next().await? {
            None | Some(Frame::GoAway) => return Ok(None),
            Some(Frame::Ping { id }) => writer.pong(id).await?,
            Some(Frame::Opened { stream, headers, .. }) => {
                let name = spdy::header(&headers, "streamtype").unwrap_or_default();
                match roles.slot(name, session, version) {
                    Some(slot) => {
                        *slot = stream;
                        writer.accept(stream).await?;
                    }
                    None => writer.refuse(stream).await?,
                }
            }
            // The clients wait for our replies before they send.
            Some(Frame::Data { .. } | Frame::Reset { .. }) => {}
        }
    }
    let writer = Arc::new(Mutex::new(writer));
    Ok(Some((Reader { frames: reader, writer: writer.clone(), roles }, Writer { frames: writer, roles, version })))
}

impl<T: AsyncRead + AsyncWrite + Send> Receive for Reader<T> {
    async fn next(&mut self) -> Result<Option<Event>, Broken> {
        let Some(frame) = self.frames.next().await? else { return Ok(None) };
        let Roles { stdin, resize, .. } = self.roles;
        Ok(Some(match frame {
            Frame::Data { stream, fin: true, .. } | Frame::Reset { stream } if stream == stdin && stream != 0 => {
                Event::StdinClosed
            }
            Frame::Data { stream, bytes, .. } if stream == stdin && stream != 0 => Event::Stdin(bytes),
            Frame::Data { stream, bytes, .. } if stream == resize && stream != 0 => Event::Resize(bytes),
            Frame::Ping { id } => {
                self.writer.lock().await.pong(id).await?;
                Event::Nothing
            }
            Frame::Opened { stream, .. } => {
                self.writer.lock().await.refuse(stream).await?;
                Event::Nothing
            }
            Frame::Data { .. } | Frame::Reset { .. } | Frame::GoAway => Event::Nothing,
        }))
    }
}

impl<T: AsyncRead + AsyncWrite + Send> Transmit for Writer<T> {
    async fn output(&self, output: Output) -> Result<(), Broken> {
        let (stream, bytes) = match output {
            Output::Stdout(bytes) => (self.roles.stdout, bytes),
            Output::Stderr(bytes) => (self.roles.stderr, bytes),
            Output::Exited(_) => return Ok(()),
        };
        if stream != 0 {
            self.frames.lock().await.data(stream, &bytes, false).await?;
        }
        Ok(())
    }

    async fn finish(&self, end: &End) -> Result<(), Broken> {
        let mut writer = self.frames.lock().await;
        for stream in [self.roles.stdout, self.roles.stderr] {
            if stream != 0 {
                writer.data(stream, &[], true).await?;
            }
        }
        let status = if self.version == Version::Status { status::json(end) } else { status::text(end) };
        writer.data(self.roles.error, &status, true).await?;
        Ok(writer.close().await?)
    }
}

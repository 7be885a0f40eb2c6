//! A client whose channels share a WebSocket.
//!
//! ```text
//! 0 stdin | 1 stdout | 2 stderr | 3 error | 4 resize | 255 (version 5): the channel in the next byte is closed
//! ```

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::channels::Encoding;
use super::super::{CommandSession, Output, status, websocket};
use super::{Broken, End, Event, Receive, Transmit, Version};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub(super) struct Reader<T> {
    messages: SplitStream<WebSocketStream<T>>,
    encoding: Encoding,
    stdin: bool,
    resize: bool,
}

pub(super) struct Writer<T> {
    messages: Mutex<SplitSink<WebSocketStream<T>, Message>>,
    encoding: Encoding,
    version: Version,
    stdout: bool,
    stderr: bool,
}

pub(super) async fn open<T>(
    io: T,
    session: &CommandSession,
    encoding: Encoding,
    version: Version,
) -> (Reader<T>, Writer<T>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, stream) = websocket::accept(io).await.split();
    let messages = Mutex::new(sink);
    let (stdout, stderr) = (session.stdout, session.stderr && !session.tty);
    (
        Reader { messages: stream, encoding, stdin: session.stdin, resize: session.tty },
        Writer { messages, encoding, version, stdout, stderr },
    )
}

/// What a message of `channel` says.
fn event(channel: u8, bytes: Bytes, stdin: bool, resize: bool) -> Event {
    match channel {
        STDIN if stdin => Event::Stdin(bytes),
        RESIZE if resize => Event::Resize(bytes),
        CLOSE if stdin && bytes.first() == Some(&STDIN) => Event::StdinClosed,
        _ => Event::Nothing,
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Receive for Reader<T> {
    async fn next(&mut self) -> Result<Option<Event>, Broken> {
        let message = match self.messages.next().await.transpose()? {
            None | Some(Message::Close(_)) => return Ok(None),
            Some(Message::Binary(bytes)) => bytes,
            Some(Message::Text(text)) => text.into(),
            // Pings are answered by the library.
            Some(_) => return Ok(Some(Event::Nothing)),
        };
        let read = self.encoding.read(&message)?;
        Ok(Some(read.map_or(Event::Nothing, |(channel, bytes)| event(channel, bytes, self.stdin, self.resize))))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transmit for Writer<T> {
    async fn output(&self, output: Output) -> Result<(), Broken> {
        match output {
            Output::Stdout(bytes) if self.stdout => self.send(STDOUT, &bytes).await,
            Output::Stderr(bytes) if self.stderr => self.send(STDERR, &bytes).await,
            _ => Ok(()),
        }
    }

    async fn finish(&self, end: &End) -> Result<(), Broken> {
        match self.version {
            Version::Status => self.send(ERROR, &status::json(end)).await?,
            Version::Plain | Version::Resize if *end == End::Exited(0) => {}
            Version::Plain | Version::Resize => self.send(ERROR, &status::text(end)).await?,
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        Ok(self.messages.lock().await.send(Message::Close(Some(normal))).await?)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Writer<T> {
    /// Tells the client that the session is there, by a message without bytes on its first channel.
    pub(super) async fn greet(&self) -> Result<(), Broken> {
        let channel = match (self.stdout, self.stderr) {
            (true, _) => STDOUT,
            (false, true) => STDERR,
            (false, false) => ERROR,
        };
        self.send(channel, &[]).await
    }

    async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), Broken> {
        Ok(self.messages.lock().await.send(self.encoding.message(channel, bytes)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_only_those_of_the_session() {
        let event = |channel, bytes: &'static [u8], stdin, resize| {
            format!("{:?}", event(channel, Bytes::from_static(bytes), stdin, resize))
        };
        assert_eq!(event(0, b"hi", true, false), r#"Stdin(b"hi")"#);
        assert_eq!(event(4, b"{}", false, true), r#"Resize(b"{}")"#);
        assert_eq!(event(255, b"\x00", true, false), "StdinClosed");
        assert_eq!(event(255, b"\x01", true, false), "Nothing");
        for (channel, bytes) in [(0, &b"hi"[..]), (4, b"{}"), (255, b"\x00"), (255, b""), (1, b"x"), (9, b"")] {
            assert_eq!(event(channel, bytes, false, false), "Nothing");
        }
    }
}

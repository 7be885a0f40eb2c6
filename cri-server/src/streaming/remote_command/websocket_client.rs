//! A client whose channels are told apart by the first byte of each binary message.
//!
//! ```text
//! 0 stdin | 1 stdout | 2 stderr | 3 error | 4 resize | 255 (version 5): the channel in the next byte is closed
//! ```

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::{CommandSession, Output, status, websocket};
use super::{Broken, End, Event, Receive, Transmit};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

pub(super) struct Reader<T> {
    messages: SplitStream<WebSocketStream<T>>,
    stdin: bool,
    resize: bool,
}

pub(super) struct Writer<T> {
    messages: Mutex<SplitSink<WebSocketStream<T>, Message>>,
    stdout: bool,
    stderr: bool,
}

pub(super) async fn open<T>(io: T, session: &CommandSession) -> (Reader<T>, Writer<T>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (sink, stream) = websocket::accept(io).await.split();
    (
        Reader { messages: stream, stdin: session.stdin, resize: session.tty },
        Writer { messages: Mutex::new(sink), stdout: session.stdout, stderr: session.stderr && !session.tty },
    )
}

/// What a message says.
fn event(message: &Bytes, stdin: bool, resize: bool) -> Event {
    match message.first() {
        Some(&STDIN) if stdin => Event::Stdin(message.slice(1..)),
        Some(&RESIZE) if resize => Event::Resize(message.slice(1..)),
        Some(&CLOSE) if stdin && message.get(1) == Some(&STDIN) => Event::StdinClosed,
        _ => Event::Nothing,
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Receive for Reader<T> {
    async fn next(&mut self) -> Result<Option<Event>, Broken> {
        match self.messages.next().await.transpose()? {
            None | Some(Message::Close(_)) => Ok(None),
            Some(Message::Binary(bytes)) => Ok(Some(event(&bytes, self.stdin, self.resize))),
            Some(Message::Text(_)) => Err("a text message: channels are binary".into()),
            // Pings are answered by the library.
            Some(_) => Ok(Some(Event::Nothing)),
        }
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
        self.send(ERROR, &status::json(end)).await?;
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        Ok(self.messages.lock().await.send(Message::Close(Some(normal))).await?)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Writer<T> {
    async fn send(&self, channel: u8, bytes: &[u8]) -> Result<(), Broken> {
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.extend_from_slice(&[channel]);
        message.extend_from_slice(bytes);
        Ok(self.messages.lock().await.send(Message::Binary(message.freeze())).await?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn channels_are_only_those_of_the_session() {
        let event =
            |bytes: &'static [u8], stdin, resize| format!("{:?}", event(&Bytes::from_static(bytes), stdin, resize));
        assert_eq!(event(b"\x00hi", true, false), r#"Stdin(b"hi")"#);
        assert_eq!(event(b"\x04{}", false, true), r#"Resize(b"{}")"#);
        assert_eq!(event(b"\xff\x00", true, false), "StdinClosed");
        for nothing in [&b"\x00hi"[..], b"\x04{}", b"\xff\x00", b"\xff", b"\xff\x01", b"\x01x", b""] {
            assert_eq!(event(nothing, false, false), "Nothing");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), stdin: bool, resize: bool) {
            let _ = event(&bytes.into(), stdin, resize);
        }
    }
}

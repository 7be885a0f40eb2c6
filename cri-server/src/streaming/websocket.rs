//! WebSocket connections (RFC 6455): their limits, and a tunnel of bytes through one.

use std::io;

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// Longest message and frame that are read, bytes; the clients send pieces of 32 KiB.
pub(super) const MAX_MESSAGE: usize = 1 << 20;

/// The answer to a client's `Sec-WebSocket-Key`.
pub(super) fn accept_key(key: &[u8]) -> String {
    derive_accept_key(key)
}

/// The server's end of an upgraded connection.
pub(super) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// The bytes that a client carries in binary messages, as a connection.
pub(super) async fn tunnel<T>(io: T) -> impl AsyncRead + AsyncWrite + Send
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, stream) = accept(io).await.split();
    let bytes = stream.filter_map(|message| {
        future::ready(match message {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(Message::Text(_)) => Some(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message in a tunnel"))),
            // Pings are answered by the library, and a close ends the stream.
            Ok(_) => None,
            Err(error) => Some(Err(Broken(error).into())),
        })
    });
    // Not `sink_map_err`, which panics at the second error: whoever writes here may try again, also when the client is gone.
    let sink = sink.with(|bytes: Bytes| future::ok::<_, Broken>(Message::Binary(bytes)));
    tokio::io::join(StreamReader::new(bytes), SinkWriter::new(CopyToBytes::new(sink)))
}

/// Why nothing can be sent or read any more.
struct Broken(Error);

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<Broken> for io::Error {
    fn from(Broken(error): Broken) -> Self {
        match error {
            Error::Io(error) => error,
            other => Self::other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A client that hangs up: each write fails, however often one tries. A panic would end the daemon.
    #[tokio::test]
    async fn a_tunnel_without_its_client_fails_each_time() {
        let (client, server) = tokio::io::duplex(64);
        let mut tunnel = tunnel(server).await;
        tunnel.write_all(b"heard").await.unwrap();
        drop(client);
        for _ in 0..3 {
            let _ = tunnel.write_all(b"not heard").await; // the first is kept for the flush
            assert!(tunnel.flush().await.is_err());
        }
        let _ = tunnel.shutdown().await;
        let _ = tunnel.shutdown().await;
    }
}

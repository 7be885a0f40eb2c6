//! The protocols of exec, attach and port-forward, read from a buffer, for the fuzz targets.

#![allow(clippy::disallowed_methods, reason = "a fuzz target has no asynchronous workers")]

use std::io::Cursor;

use bytes::Bytes;
use futures::StreamExt;
use futures::executor::block_on;
use tokio::io::AsyncReadExt;

use super::channels::Encoding;
use super::{spdy, websocket};

/// Reads what a client says on a connection of SPDY/3.1.
///
/// # Panics
/// When more bytes of data come out than went in.
pub fn spdy(bytes: &[u8]) {
    block_on(read_spdy(connection(bytes), bytes.len()));
}

/// A connection that says this, and takes everything.
fn connection(bytes: &[u8]) -> tokio::io::Join<Cursor<Vec<u8>>, tokio::io::Sink> {
    tokio::io::join(Cursor::new(bytes.to_vec()), tokio::io::sink())
}

async fn read_spdy(io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite, most: usize) {
    let (mut reader, mut writer) = spdy::split(io);
    let mut data = 0;
    while let Ok(Some(event)) = reader.next().await {
        let answered = match event {
            spdy::Event::Opened { stream, headers, .. } => match spdy::header(&headers, "streamtype") {
                Some(_) => writer.accept(stream).await,
                None => writer.refuse(stream).await,
            },
            spdy::Event::Data { stream, bytes, fin } => {
                data += bytes.len();
                writer.data(stream, &bytes, fin).await
            }
            spdy::Event::Ping { id } => writer.pong(id).await,
            spdy::Event::Reset { .. } | spdy::Event::GoAway => Ok(()),
        };
        if answered.is_err() {
            return;
        }
    }
    assert!(data <= most, "{data} bytes of data out of {most}");
}

/// Reads what a client says in a WebSocket: channels of both encodings, and a tunnel of SPDY.
pub fn websocket(bytes: &[u8]) {
    block_on(async {
        let mut socket = websocket::accept(connection(bytes)).await;
        while let Some(Ok(message)) = socket.next().await {
            channels(&message.into_data());
        }
        let mut tunnel = std::pin::pin!(websocket::tunnel(connection(bytes)).await);
        let mut content = Vec::new();
        let _ = tunnel.read_to_end(&mut content).await;
        assert!(content.len() <= bytes.len(), "a tunnel gave more than it got");
        read_spdy(websocket::tunnel(connection(bytes)).await, bytes.len()).await;
    });
}

/// Reads one message of a WebSocket with channels.
///
/// # Panics
/// When a message that was written is read as another one.
pub fn channels(message: &[u8]) {
    for encoding in [Encoding::Binary, Encoding::Base64] {
        let Ok(Some((channel, bytes))) = encoding.read(&Bytes::copy_from_slice(message)) else { continue };
        // Only a digit can be written where bytes are in Base64.
        if channel < 10 {
            let written = encoding.message(channel, &bytes).into_data();
            assert_eq!(encoding.read(&written).ok().flatten(), Some((channel, bytes)));
        }
    }
}

//! A client written with the same frames talks to a session over an in-memory connection.

use std::sync::Arc;

use flate2::{Compress, Compression, FlushCompress};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, SinkExt, stream};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::Status;

use super::super::CommandTarget;
use super::super::channels::Encoding;
use super::*;

/// Answers with what it reads on stdin, in upper case, and exits with the number of bytes.
struct Upper;

impl CommandTarget for Upper {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        async {
            let (sender, mut receiver) = mpsc::channel::<Input>(4);
            let rest = async move {
                let mut text = Vec::new();
                while let Some(Input::Stdin(bytes)) = receiver.recv().await {
                    text.extend(bytes.to_ascii_uppercase());
                }
                let code = i32::try_from(text.len()).unwrap();
                stream::iter([Ok(Output::Stdout(text)), Ok(Output::Exited(code))])
            };
            let all: BoxStream<'static, _> = rest.flatten_stream().boxed();
            Ok((sender, all))
        }
        .boxed()
    }
}

fn session(stdin: bool) -> CommandSession {
    CommandSession { container_id: "c".into(), tty: false, stdin, stdout: true, stderr: false, target: Arc::new(Upper) }
}

async fn open(client: &mut DuplexStream, deflate: &mut Compress, stream: u32, name: &str) {
    let mut block = 1u32.to_be_bytes().to_vec();
    for text in ["streamtype", name] {
        block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    let mut deflated = Vec::with_capacity(256);
    deflate.compress_vec(&block, &mut deflated, FlushCompress::Sync).unwrap();
    let length = u8::try_from(10 + deflated.len()).unwrap();
    client.write_all(&[0x80, 3, 0, 1, 0, 0, 0, length]).await.unwrap();
    client.write_all(&stream.to_be_bytes()).await.unwrap();
    client.write_all(&[0; 6]).await.unwrap();
    client.write_all(&deflated).await.unwrap();
}

/// All bytes that arrived on `stream`.
fn on_stream(mut frames: &[u8], stream: u32) -> Vec<u8> {
    let mut found = Vec::new();
    while let Some((head, rest)) = frames.split_first_chunk::<8>() {
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let (payload, rest) = rest.split_at(length);
        if head[0] & 0x80 == 0 && u32::from_be_bytes(head[..4].try_into().unwrap()) == stream {
            found.extend_from_slice(payload);
        }
        frames = rest;
    }
    found
}

#[tokio::test(start_paused = true)]
async fn stdin_output_and_exit_code_reach_the_other_side() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(over_spdy(server, session(true), Version::Status));
    let mut deflate = Compress::new(Compression::fast(), true);
    for (stream, name) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        open(&mut client, &mut deflate, stream, name).await;
    }
    client.write_all(&[0, 0, 0, 3, 0, 0, 0, 5]).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.write_all(&[0, 0, 0, 3, 1, 0, 0, 0]).await.unwrap();
    let mut frames = Vec::new();
    client.read_to_end(&mut frames).await.unwrap();
    assert_eq!(on_stream(&frames, 5), b"HELLO");
    let status: serde_json::Value = serde_json::from_slice(&on_stream(&frames, 1)).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "5");
    drop(client);
    serving.await.unwrap();
}

/// Versions before 4 end with text, which is empty for success, and 1 and 2 have no resize stream.
#[tokio::test(start_paused = true)]
async fn old_clients_get_text() {
    for (text, wanted) in [("", ""), ("abc", "command terminated with non-zero exit code: exit status 3")] {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let with_terminal = CommandSession { tty: true, ..session(true) };
        let serving = tokio::spawn(over_spdy(server, with_terminal, Version::Plain));
        let mut deflate = Compress::new(Compression::fast(), true);
        for (stream, name) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            open(&mut client, &mut deflate, stream, name).await;
        }
        client.write_all(&[0, 0, 0, 3, 1, 0, 0, u8::try_from(text.len()).unwrap()]).await.unwrap();
        client.write_all(text.as_bytes()).await.unwrap();
        let mut frames = Vec::new();
        client.read_to_end(&mut frames).await.unwrap();
        assert_eq!(on_stream(&frames, 5), text.to_ascii_uppercase().as_bytes());
        assert_eq!(on_stream(&frames, 1), wanted.as_bytes());
        drop(client);
        serving.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_websocket_carries_all_channels() {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(over_websocket(server, session(true), Encoding::Binary, Version::Status));
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    client.send(Message::Binary(Bytes::from_static(b"\x00hello"))).await.unwrap();
    client.send(Message::Ping(Bytes::from_static(b"?"))).await.unwrap();
    client.send(Message::Binary(Bytes::from_static(b"\xff\x00"))).await.unwrap();
    let (mut stdout, mut error, mut closed, mut pong) = (Vec::new(), Vec::new(), false, false);
    while let Some(Ok(message)) = client.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == 1 => stdout.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 3 => error.extend_from_slice(&bytes[1..]),
            Message::Close(frame) => closed = u16::from(frame.unwrap().code) == 1000,
            Message::Pong(bytes) => pong = &bytes[..] == b"?",
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((stdout.as_slice(), closed, pong), (&b"HELLO"[..], true, true));
    let status: serde_json::Value = serde_json::from_slice(&error).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "5");
    serving.await.unwrap();
}

/// Says `out` and exits with this code, whatever it reads.
struct Fixed(i32);

impl CommandTarget for Fixed {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        let said = [Ok(Output::Stdout(b"out".to_vec())), Ok(Output::Exited(self.0))];
        async { Ok((mpsc::channel(4).0, stream::iter(said).boxed())) }.boxed()
    }
}

/// Clients in browsers get text messages in Base64; a version before 4 ends with text, and with
/// nothing for success. The first message tells that the session is there.
#[tokio::test(start_paused = true)]
async fn a_browser_of_old_is_served() {
    for (code, error) in [(0, None), (3, Some("command terminated with non-zero exit code: exit status 3"))] {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let command = CommandSession { target: Arc::new(Fixed(code)), ..session(true) };
        let serving = tokio::spawn(over_websocket(server, command, Encoding::Base64, Version::Plain));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        let mut heard = Vec::new();
        while let Some(Ok(Message::Text(message))) = client.next().await {
            heard.push(Encoding::Base64.read(&message.into()).unwrap().unwrap());
        }
        let mut wanted = vec![(1, Bytes::new()), (1, Bytes::from_static(b"out"))];
        wanted.extend(error.map(|text| (3, Bytes::from_static(text.as_bytes()))));
        assert_eq!(heard, wanted);
        drop(client);
        serving.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_streams_is_given_up() {
    let (client, server) = tokio::io::duplex(1024);
    let started = Instant::now();
    over_spdy(server, session(false), Version::Status).await;
    assert_eq!(started.elapsed().as_secs(), CREATION_TIME.as_secs());
    drop(client);
}

#[test]
fn sizes_are_taken_as_they_become_whole() {
    let mut buffer = br#"{"Width":80,"Height":24}{"Width":1"#.to_vec();
    assert_eq!(take_sizes(&mut buffer), [WindowSize { width: 80, height: 24 }]);
    buffer.extend_from_slice(br#"00,"Height":30}"#);
    assert_eq!(take_sizes(&mut buffer), [WindowSize { width: 100, height: 30 }]);
    assert!(buffer.is_empty());
}

proptest! {
    /// Whatever bytes a client sends, the session ends and nothing panics.
    #[test]
    fn no_client_breaks_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(4096);
            let serving = tokio::spawn(over_spdy(server, session(true), Version::Status));
            let _ = client.write_all(&bytes).await;
            drop(client);
            serving.await.unwrap();
            let (mut client, server) = tokio::io::duplex(4096);
            let serving = tokio::spawn(over_websocket(server, session(true), Encoding::Binary, Version::Status));
            let _ = client.write_all(&bytes).await;
            drop(client);
            serving.await.unwrap();
        });
    }
}

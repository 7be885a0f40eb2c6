//! A client written with the same frames forwards ports over an in-memory connection.

use flate2::{Compress, Compression, FlushCompress};
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, stream};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::Status;

use super::super::channels::Encoding;
use super::super::{PortConnection, websocket};
use super::*;

/// Port 80 answers with what it reads, once that has ended; nothing listens on others.
struct Echo;

impl PortTarget for Echo {
    fn dial(&self, port: u16) -> BoxFuture<'static, Result<PortConnection, Status>> {
        async move {
            if port != 80 {
                return Err(Status::failed_precondition(format!("connection refused to port {port}")));
            }
            let (send, mut receive) = mpsc::channel::<Bytes>(1);
            let answer = async move {
                let mut heard = Vec::new();
                while let Some(bytes) = receive.recv().await {
                    heard.extend_from_slice(&bytes);
                }
                stream::iter([Ok(FromPort::Data(heard)), Ok(FromPort::Closed)])
            };
            Ok((send, answer.flatten_stream().boxed()))
        }
        .boxed()
    }

    fn ended(&self) -> BoxFuture<'static, ()> {
        std::future::pending().boxed()
    }
}

fn session() -> PortSession {
    PortSession { pod_id: "p".into(), ports: vec![80, 81], target: Arc::new(Echo) }
}

fn syn(deflate: &mut Compress, stream: u32, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    let mut deflated = Vec::with_capacity(512);
    deflate.compress_vec(&block, &mut deflated, FlushCompress::Sync).unwrap();
    let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, u8::try_from(10 + deflated.len()).unwrap()];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&deflated);
    frame
}

/// A pair of streams for `port`, then `text` and the end on the second.
fn pair(deflate: &mut Compress, first: u32, id: &str, port: &str, text: &str) -> Vec<u8> {
    let mut frames = syn(deflate, first, &[("streamtype", "error"), ("port", port), ("requestid", id)]);
    frames.extend(syn(deflate, first + 2, &[("streamtype", "data"), ("port", port), ("requestid", id)]));
    frames.extend_from_slice(&(first + 2).to_be_bytes());
    frames.extend_from_slice(&[1, 0, 0, u8::try_from(text.len()).unwrap()]);
    frames.extend_from_slice(text.as_bytes());
    frames
}

#[derive(Debug, Default)]
struct Seen {
    bytes: Vec<u8>,
    ended: bool,
    refused: bool,
}

/// Reads until each of `streams` has ended or was refused.
async fn read(client: &mut (impl AsyncReadExt + Unpin), streams: &[u32]) -> HashMap<u32, Seen> {
    let mut seen: HashMap<u32, Seen> = HashMap::new();
    while !streams.iter().all(|s| seen.get(s).is_some_and(|s| s.ended || s.refused)) {
        let mut head = [0u8; 8];
        client.read_exact(&mut head).await.unwrap();
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let mut payload = vec![0; length];
        client.read_exact(&mut payload).await.unwrap();
        if head[0] & 0x80 == 0 {
            let stream = seen.entry(u32::from_be_bytes(head[..4].try_into().unwrap())).or_default();
            stream.bytes.extend(payload);
            stream.ended |= head[4] & 1 != 0;
        } else if head[3] == 3 {
            seen.entry(u32::from_be_bytes(payload[..4].try_into().unwrap())).or_default().refused = true;
        }
    }
    seen
}

fn deflate() -> Compress {
    Compress::new(Compression::fast(), true)
}

#[tokio::test(start_paused = true)]
async fn many_connections_share_a_client() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(run(server, session()));
    let mut deflate = deflate();
    for n in 0..50u32 {
        let port = if n % 2 == 0 { "80" } else { "81" };
        client.write_all(&pair(&mut deflate, 1 + 4 * n, &n.to_string(), port, &format!("hello {n}"))).await.unwrap();
    }
    let all: Vec<u32> = (0..100).map(|n| 1 + 2 * n).collect();
    let seen = read(&mut client, &all).await;
    for n in 0..50u32 {
        let (error, data) = (&seen[&(1 + 4 * n)].bytes, &seen[&(3 + 4 * n)].bytes);
        if n % 2 == 0 {
            assert_eq!((error.as_slice(), data.as_slice()), (&b""[..], format!("hello {n}").as_bytes()));
        } else {
            let error = String::from_utf8_lossy(error);
            assert!(error.contains("port 81 of pod p: connection refused"), "{error}");
        }
    }
    drop(client);
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_pair_is_refused_and_a_reset_ends_a_connection() {
    let (mut client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(run(server, session()));
    let mut deflate = deflate();
    let bad: [&[(&str, &str)]; 5] = [
        &[("streamtype", "error"), ("port", "0"), ("requestid", "a")],
        &[("streamtype", "error"), ("port", "65536"), ("requestid", "a")],
        &[("streamtype", "stdin"), ("port", "80"), ("requestid", "a")],
        &[("port", "80"), ("requestid", "a")],
        &[],
    ];
    for (n, headers) in (0..).zip(bad) {
        client.write_all(&syn(&mut deflate, 1 + 2 * n, headers)).await.unwrap();
    }
    let seen = read(&mut client, &[1, 3, 5, 7, 9]).await;
    assert!(seen.values().all(|s| s.refused));
    // A second stream of the same kind, or for another port, does not fit.
    for (stream, kind, port) in [(11, "error", "80"), (13, "error", "80"), (15, "data", "81"), (17, "data", "80")] {
        let headers = [("streamtype", kind), ("port", port), ("requestid", "b")];
        client.write_all(&syn(&mut deflate, stream, &headers)).await.unwrap();
    }
    let seen = read(&mut client, &[13, 15]).await;
    assert!(seen[&13].refused && seen[&15].refused);
    // RST_STREAM, CANCEL: the error stream then ends empty, as the clients wait for.
    client.write_all(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 17, 0, 0, 0, 5]).await.unwrap();
    let seen = read(&mut client, &[11]).await;
    assert!(seen[&11].ended && seen[&11].bytes.is_empty(), "{seen:?}");
    drop(client);
    serving.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_carries_the_same() {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let serving = tokio::spawn(async move { run(websocket::tunnel(server).await, session()).await });
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    // Frames need not begin where messages do.
    for part in pair(&mut deflate(), 1, "0", "80", "through").chunks(7) {
        client.send(Message::Binary(Bytes::copy_from_slice(part))).await.unwrap();
    }
    let (mut ours, mut theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
    let reading = tokio::spawn(async move { read(&mut theirs, &[1, 3]).await });
    while !reading.is_finished() {
        let Ok(Some(Ok(Message::Binary(bytes)))) = timeout(Duration::from_secs(1), client.next()).await else {
            continue;
        };
        ours.write_all(&bytes).await.unwrap();
    }
    assert_eq!(reading.await.unwrap()[&3].bytes, b"through");
    drop(client);
    serving.await.unwrap();
}

proptest! {
    /// Whatever frames a client sends, the session ends and nothing panics.
    #[test]
    fn no_client_breaks_a_session(
        pieces in proptest::collection::vec((0u32..12, "error|data|x", "80|81|0", "a|b"), 0..12),
        bytes in proptest::collection::vec(any::<u8>(), 0..128),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            let serving = tokio::spawn(run(server, session()));
            let mut deflate = deflate();
            for (stream, kind, port, id) in &pieces {
                let headers = [("streamtype", kind.as_str()), ("port", port), ("requestid", id)];
                let _ = client.write_all(&syn(&mut deflate, *stream, &headers)).await;
                let _ = client.write_all(&[0, 0, 0, u8::try_from(*stream).unwrap(), 0, 0, 0, 1, b'x']).await;
            }
            let _ = client.write_all(&bytes).await;
            drop(client);
            serving.await.unwrap();
        });
    }
}

/// Two ports of one request: each has two channels, which begin with its number.
#[tokio::test(start_paused = true)]
async fn ports_of_a_request_have_channels_of_a_websocket() {
    for encoding in [Encoding::Binary, Encoding::Base64] {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let serving = tokio::spawn(channels::run(server, session(), encoding));
        let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
        client.send(encoding.message(0, b"hello")).await.unwrap();
        let mut heard: HashMap<u8, Vec<u8>> = HashMap::new();
        while heard.values().map(Vec::len).sum::<usize>() < 8 || heard[&3].len() == 2 {
            let message = client.next().await.unwrap().unwrap().into_data();
            let (channel, bytes) = encoding.read(&message).unwrap().unwrap();
            heard.entry(channel).or_default().extend_from_slice(&bytes);
        }
        assert_eq!((&heard[&0][..], &heard[&1][..], &heard[&2][..]), (&[80, 0][..], &[80, 0][..], &[81, 0][..]));
        assert!(String::from_utf8_lossy(&heard[&3][2..]).contains("connection refused to port 81"));
        drop(client);
        serving.await.unwrap();
    }
}

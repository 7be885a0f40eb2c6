use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tonic::Status;

use super::super::{CommandSession, CommandTarget, Input, Output, Stdio};
use super::*;

/// A process that takes no input and says nothing; knows whether somebody still holds it.
struct Deaf(Arc<AtomicBool>);

struct Held(Arc<AtomicBool>, #[allow(dead_code, reason = "held")] mpsc::Receiver<Input>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl CommandTarget for Deaf {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        let dropped = self.0.clone();
        async move {
            let (send, receive) = mpsc::channel(1);
            let held = Held(dropped, receive);
            let silence = stream::pending::<Result<Output, Status>>().map(move |m| {
                let _ = &held;
                m
            });
            Ok((send, silence.boxed()))
        }
        .boxed()
    }
}

async fn server() -> (StreamingServer, String, Arc<AtomicBool>) {
    let dropped = Arc::new(AtomicBool::new(false));
    let (server, path) = serving(Arc::new(Deaf(dropped.clone()))).await;
    (server, path, dropped)
}

/// A server, and the path of a session for `target`.
async fn serving(target: Arc<dyn CommandTarget>) -> (StreamingServer, String) {
    let server = StreamingServer::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let session =
        CommandSession { container_id: "c".into(), tty: false, stdin: true, stdout: true, stderr: false, target };
    let url = server.url(Session::Exec(session)).unwrap();
    let path = url.strip_prefix(&format!("http://{}", server.address)).unwrap().to_owned();
    (server, path)
}

async fn ask(server: &StreamingServer, path: &str, headers: &str) -> (TcpStream, String) {
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    (client, String::from_utf8(answer).unwrap())
}

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n";

#[tokio::test]
async fn a_url_works_once_and_only_for_what_it_is() {
    let (server, path, _) = server().await;
    let (_, answer) = ask(&server, &path, "").await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let (_, answer) = ask(&server, &path, &WEBSOCKET.replace("v5", "v9")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let (_, answer) = ask(&server, &path.replace("/exec/", "/attach/"), WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let (_client, answer) = ask(&server, &path, WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // The example of RFC 6455, section 1.3.
    assert!(answer.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
    let (_, answer) = ask(&server, &path, WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_a_process_that_takes_no_input() {
    let (server, path, dropped) = server().await;
    let (mut client, answer) = ask(&server, &path, WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    // Masked with zeros: one byte of stdin each, more than is ever taken.
    let frames = [0x82u8, 0x82, 0, 0, 0, 0, 0, b'x'].repeat(10);
    client.write_all(&frames).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!dropped.load(Ordering::Acquire));
    drop(client);
    for _ in 0..200 {
        if dropped.load(Ordering::Acquire) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the process is still held");
}

/// A process that never comes up.
struct Stuck;

impl CommandTarget for Stuck {
    fn start(&self) -> BoxFuture<'static, Result<Stdio, Status>> {
        futures::future::pending().boxed()
    }
}

/// What a client of `path` finds on its error channel when the daemon ends.
async fn told(server: &StreamingServer, path: &str) -> serde_json::Value {
    let (client, answer) = ask(server, path, WEBSOCKET).await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
    let ((), error) = tokio::join!(server.leave(), async {
        let mut error = Vec::new();
        while let Some(Ok(message)) = client.next().await {
            if let Message::Binary(bytes) = message
                && bytes[0] == 3
            {
                error.extend_from_slice(&bytes[1..]);
            }
        }
        error
    });
    serde_json::from_slice(&error).unwrap()
}

#[tokio::test]
async fn the_daemons_end_is_no_success_of_a_command() {
    let (running, path, dropped) = server().await;
    let status = told(&running, &path).await;
    assert_eq!(status["status"], "Failure");
    assert!(status["message"].as_str().unwrap().contains("being restarted"), "{status}");
    assert!(dropped.load(Ordering::Acquire), "the process is still held");

    let (starting, path) = serving(Arc::new(Stuck)).await;
    assert_eq!(told(&starting, &path).await["status"], "Failure");
}

#[tokio::test]
async fn others_than_loopback_are_refused() {
    let refused = StreamingServer::start("0.0.0.0:0".parse().unwrap()).await;
    assert!(matches!(refused, Err(StreamingError::NotLoopback(_))));
}

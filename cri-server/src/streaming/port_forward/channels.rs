//! Connections to a pod's ports over the channels of one WebSocket, `v4.channel.k8s.io`, as clients
//! of Kubernetes in Python speak it.
//!
//! The request names the ports. Port number n of the request has the channels 2n (data) and 2n+1
//! (error); each begins with the port, two bytes, the low one first. No direction can be closed
//! alone: a connection ends when the pod closes it, the client's end is the end of the WebSocket.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::super::channels::Encoding;
use super::super::idle::Idle;
use super::super::websocket;
use super::{FromPort, GOODBYE, PortSession, QUEUE};

type Sink<T> = Arc<Mutex<SplitSink<WebSocketStream<T>, Message>>>;

/// Serves `session` on an upgraded connection, until the client or the pod goes, or each port's
/// connection has ended.
pub(in super::super) async fn run<T>(io: T, session: PortSession, encoding: Encoding)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sink, mut messages) = websocket::accept(io).await.split();
    let sink = Arc::new(Mutex::new(sink));
    let idle = Arc::new(Idle::new());
    let mut lanes = Vec::new();
    let mut tasks = JoinSet::new();
    // The protocol has no more channels than a byte has values.
    for (port, channel) in session.ports.iter().zip((0..=u8::MAX - 1).step_by(2)) {
        let (to_port, from_client) = mpsc::channel(QUEUE);
        lanes.push(to_port);
        let (session, idle) = (session.clone(), idle.clone());
        let connection = Connection { session, port: *port, channel, encoding, sink: sink.clone(), idle };
        tasks.spawn(connection.run(from_client));
    }
    let from_client = async {
        while let Some(Ok(message)) = messages.next().await {
            idle.touch();
            let data = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                // Pings are answered by the library.
                _ => continue,
            };
            let Ok(read) = encoding.read(&data) else { return };
            if let Some((channel, bytes)) = read
                && channel % 2 == 0
                && let Some(lane) = lanes.get(usize::from(channel / 2))
            {
                // A connection that has ended takes nothing more.
                let _ = lane.send(bytes).await;
            }
        }
    };
    tokio::select! {
        () = from_client => {}
        () = async { while tasks.join_next().await.is_some() {} } => {}
        () = idle.expired() => {}
        () = session.target.ended() => {}
    }
    drop(tasks);
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = timeout(GOODBYE, async { sink.lock().await.send(Message::Close(Some(normal))).await }).await;
}

/// One port's connection.
struct Connection<T> {
    session: PortSession,
    port: u16,
    /// Of its data.
    channel: u8,
    encoding: Encoding,
    sink: Sink<T>,
    idle: Arc<Idle>,
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Connection<T> {
    async fn run(self, from_client: mpsc::Receiver<Bytes>) {
        for channel in [self.channel, self.channel + 1] {
            self.send(channel, &self.port.to_le_bytes()).await;
        }
        if let Err(why) = self.carry(from_client).await {
            let why = format!("cannot forward port {} of pod {}: {why}", self.port, self.session.pod_id);
            self.send(self.channel + 1, why.as_bytes()).await;
        }
    }

    async fn carry(&self, mut from_client: mpsc::Receiver<Bytes>) -> Result<(), String> {
        let told = |status: tonic::Status| status.message().to_owned();
        let (to_port, mut from_port) = self.session.target.dial(self.port).await.map_err(told)?;
        let up = async {
            while let Some(bytes) = from_client.recv().await {
                if to_port.send(bytes).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let down = async {
            while let Some(message) = from_port.next().await {
                self.idle.touch();
                match message.map_err(told)? {
                    FromPort::Data(bytes) => self.send(self.channel, &bytes).await,
                    FromPort::Closed => break,
                }
            }
            Ok(())
        };
        tokio::select! {
            result = down => result,
            () = up => Ok(()),
        }
    }

    /// A client that cannot be written to is noticed by the reader of messages.
    async fn send(&self, channel: u8, bytes: &[u8]) {
        let _ = self.sink.lock().await.send(self.encoding.message(channel, bytes)).await;
    }
}

//! Connections to a pod's ports over one SPDY connection, `portforward.k8s.io`.
//!
//! For each connection the client opens a pair of streams that share the header `requestID`: one of `streamtype` `error`,
//! then one of `streamtype` `data`, both with the header `port`. An error stream that ends empty means that all went well.

pub(super) mod channels;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::idle::Idle;
use super::spdy::{self, Event, Reader, SpdyError};
use super::{FromPort, PortSession, PortTarget};

/// How long a client may take to open a connection's second stream.
const CREATION_TIME: Duration = Duration::from_secs(30);
/// How many connections one client may have at once.
const MAX_CONNECTIONS: usize = 128;
/// How many pieces of at most 32 KiB wait for a port. Then the whole client waits: SPDY as it is used here has no windows.
const QUEUE: usize = 8;
/// How long the end of the connection may take.
const GOODBYE: Duration = Duration::from_secs(5);
/// Longest request id, bytes.
const MAX_ID: usize = 64;

type Writer<T> = Arc<Mutex<spdy::Writer<T>>>;

/// What the client does with a connection.
enum ToPort {
    Data(Bytes),
    Closed,
}

/// A stream of a pair, on its way to the connection's task.
enum Half {
    Error(u32),
    Data { stream: u32, from_client: mpsc::Receiver<ToPort>, reset: CancellationToken },
}

/// A pair of which the reader of frames has seen at least one stream.
struct Pair {
    port: u16,
    has_error: bool,
    has_data: bool,
    halves: mpsc::Sender<Half>,
}

/// A data stream, as the reader of frames sees it.
struct Lane {
    to_port: mpsc::Sender<ToPort>,
    reset: CancellationToken,
}

/// Serves `session` on an upgraded connection, until the client or the pod goes.
pub(super) async fn run<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, session: PortSession) {
    let (mut reader, writer) = spdy::split(io);
    let idle = Arc::new(Idle::new());
    let mut forwarder = Forwarder {
        session: session.clone(),
        writer: Arc::new(Mutex::new(writer)),
        idle: idle.clone(),
        pairs: HashMap::new(),
        lanes: HashMap::new(),
        last_stream: 0,
        tasks: JoinSet::new(),
    };
    tokio::select! {
        result = forwarder.serve(&mut reader) => {
            if let Err(error) = result {
                tracing::debug!(pod = session.pod_id, %error, "port-forward client failed");
            }
        }
        () = idle.expired() => {}
        () = session.target.ended() => {}
    }
    // Tasks of connections end with the set.
    let _ = timeout(GOODBYE, async { forwarder.writer.lock().await.close().await }).await;
}

/// The reader of frames, and what it knows.
struct Forwarder<T> {
    session: PortSession,
    writer: Writer<T>,
    idle: Arc<Idle>,
    pairs: HashMap<String, Pair>,
    lanes: HashMap<u32, Lane>,
    last_stream: u32,
    tasks: JoinSet<()>,
}

impl<T: AsyncRead + AsyncWrite + Send + 'static> Forwarder<T> {
    async fn serve(&mut self, reader: &mut Reader<T>) -> Result<(), SpdyError> {
        while let Some(event) = reader.next().await? {
            self.idle.touch();
            match event {
                Event::Opened { stream, headers, fin } => self.opened(stream, &headers, fin).await?,
                Event::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
                Event::Reset { stream } => {
                    if let Some(lane) = self.lanes.remove(&stream) {
                        lane.reset.cancel();
                    }
                }
                Event::Ping { id } => self.writer.lock().await.pong(id).await?,
                Event::GoAway => {}
            }
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) {
        let Some(lane) = self.lanes.get(&stream) else { return };
        let piece = if fin { ToPort::Closed } else { ToPort::Data(bytes) };
        // A connection that has ended takes nothing more.
        let _ = lane.to_port.send(piece).await;
    }

    async fn opened(&mut self, stream: u32, headers: &[(String, String)], fin: bool) -> Result<(), SpdyError> {
        while self.tasks.try_join_next().is_some() {}
        self.pairs.retain(|_, pair| !pair.halves.is_closed());
        self.lanes.retain(|_, lane| !lane.to_port.is_closed());
        let in_order = stream % 2 == 1 && stream > self.last_stream;
        self.last_stream = self.last_stream.max(stream);
        match self.half(stream, headers, fin).filter(|_| in_order) {
            Some((halves, half)) => {
                self.writer.lock().await.accept(stream).await?;
                // There is room for both, and the task may have given up meanwhile.
                let _ = halves.try_send(half);
            }
            None => self.writer.lock().await.refuse(stream).await?,
        }
        Ok(())
    }

    /// The half that a new stream is; `None` when it does not fit.
    fn half(&mut self, stream: u32, headers: &[(String, String)], fin: bool) -> Option<(mpsc::Sender<Half>, Half)> {
        let port = spdy::header(headers, "port")?.parse().ok().filter(|p| *p != 0)?;
        let data = match spdy::header(headers, "streamtype")? {
            "error" => false,
            "data" => true,
            _ => return None,
        };
        let id = match spdy::header(headers, "requestid") {
            Some(id) if id.len() <= MAX_ID => id.to_owned(),
            Some(_) => return None,
            // Clients of old: the data stream follows its error stream.
            None => format!("of stream {}", if data { stream.checked_sub(2)? } else { stream }),
        };
        if !self.pairs.contains_key(&id) {
            self.begin(id.clone(), port)?;
        }
        let pair = self.pairs.get_mut(&id).filter(|pair| pair.port == port)?;
        let taken = if data { &mut pair.has_data } else { &mut pair.has_error };
        if std::mem::replace(taken, true) {
            return None;
        }
        if !data {
            return Some((pair.halves.clone(), Half::Error(stream)));
        }
        let (to_port, from_client) = mpsc::channel(QUEUE);
        if fin {
            let _ = to_port.try_send(ToPort::Closed);
        }
        let reset = CancellationToken::new();
        self.lanes.insert(stream, Lane { to_port, reset: reset.clone() });
        Some((pair.halves.clone(), Half::Data { stream, from_client, reset }))
    }

    /// A connection whose streams are about to come.
    fn begin(&mut self, id: String, port: u16) -> Option<()> {
        if self.tasks.len() >= MAX_CONNECTIONS {
            tracing::debug!(pod = self.session.pod_id, "{MAX_CONNECTIONS} connections of one client: refused another");
            return None;
        }
        let (halves, opened) = mpsc::channel(2);
        self.pairs.insert(id, Pair { port, has_error: false, has_data: false, halves });
        let connection = Connection {
            port,
            pod: self.session.pod_id.clone(),
            target: self.session.target.clone(),
            writer: self.writer.clone(),
            idle: self.idle.clone(),
        };
        self.tasks.spawn(connection.run(opened));
        Some(())
    }
}

/// One connection to a port.
struct Connection<T> {
    port: u16,
    pod: String,
    target: Arc<dyn PortTarget>,
    writer: Writer<T>,
    idle: Arc<Idle>,
}

impl<T: AsyncRead + AsyncWrite + Send> Connection<T> {
    async fn run(self, mut halves: mpsc::Receiver<Half>) {
        let (mut error, mut data) = (None, None);
        let both = async {
            while error.is_none() || data.is_none() {
                match halves.recv().await {
                    Some(Half::Error(stream)) => error = Some(stream),
                    Some(Half::Data { stream, from_client, reset }) => data = Some((stream, from_client, reset)),
                    None => return,
                }
            }
        };
        let _ = timeout(CREATION_TIME, both).await;
        let (Some(error), Some((stream, from_client, reset))) = (error, data.take()) else {
            tracing::debug!(pod = self.pod, port = self.port, "a connection's second stream did not come");
            return;
        };
        let mut open = true;
        let failed = tokio::select! {
            result = self.carry(stream, from_client, &mut open) => result.err(),
            () = reset.cancelled() => {
                open = false;
                None
            }
        };
        let mut writer = self.writer.lock().await;
        let why = failed.map(|why| format!("cannot forward port {} of pod {}: {why}", self.port, self.pod));
        let _ = writer.data(error, why.unwrap_or_default().as_bytes(), true).await;
        if open {
            let _ = writer.data(stream, &[], true).await;
        }
    }

    /// Carries bytes both ways until the connection has ended; `open` says whether our direction of the data stream is.
    async fn carry(&self, stream: u32, mut from_client: mpsc::Receiver<ToPort>, open: &mut bool) -> Result<(), String> {
        let told = |status: tonic::Status| status.message().to_owned();
        let (to_port, mut from_port) = self.target.dial(self.port).await.map_err(told)?;
        let up = async {
            while let Some(ToPort::Data(bytes)) = from_client.recv().await {
                if to_port.send(bytes).await.is_err() {
                    break;
                }
            }
            drop(to_port);
            std::future::pending::<()>().await;
        };
        let down = async {
            while let Some(message) = from_port.next().await {
                self.idle.touch();
                let (bytes, fin) = match message.map_err(told)? {
                    FromPort::Data(bytes) => (bytes, false),
                    FromPort::Closed => (Vec::new(), true),
                };
                *open = !fin;
                // A client that cannot be written to is noticed by the reader of frames.
                let _ = self.writer.lock().await.data(stream, &bytes, fin).await;
            }
            Ok(())
        };
        tokio::select! {
            result = down => result,
            () = up => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

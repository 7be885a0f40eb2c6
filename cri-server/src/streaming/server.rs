//! Listens on loopback, hands out one-time URLs, and upgrades the connections that come to them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{ExecSession, exec_session};

/// How long a URL waits for its client.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How many URLs may wait at once.
const MAX_PENDING: usize = 1000;
/// How many clients may be connected at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The remote command protocol that is spoken.
const PROTOCOL: &str = "v4.channel.k8s.io";
const PROTOCOL_HEADER: &str = "x-stream-protocol-version";

/// Why streaming does not work.
#[derive(Debug, thiserror::Error)]
pub enum StreamingError {
    /// The configured address is open to others.
    #[error("streaming address {0} is not a loopback address; set `streaming.address` to one, such as 127.0.0.1:0")]
    NotLoopback(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on streaming address {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Too many sessions wait for their clients.
    #[error("{MAX_PENDING} streaming sessions wait for their clients already; try again later")]
    TooManyPending,
    /// No randomness for a token.
    #[error("cannot draw a random token")]
    Random(#[source] getrandom::Error),
}

struct Pending {
    session: ExecSession,
    until: Instant,
}

type Sessions = Arc<Mutex<HashMap<String, Pending>>>;

/// The streaming server; ends with the process.
pub struct StreamingServer {
    address: SocketAddr,
    sessions: Sessions,
}

impl StreamingServer {
    /// Starts to listen on `address`, which must be loopback; port 0 picks one.
    ///
    /// # Errors
    /// When the address is not loopback or is taken.
    pub async fn start(address: SocketAddr) -> Result<Self, StreamingError> {
        if !address.ip().is_loopback() {
            return Err(StreamingError::NotLoopback(address));
        }
        let failed = |e| StreamingError::Listen(address, e);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let sessions = Sessions::default();
        tokio::spawn(accept(listener, sessions.clone()));
        Ok(Self { address, sessions })
    }

    /// Promises `session` to whoever connects to the returned URL first, within a minute.
    ///
    /// # Errors
    /// When too many sessions wait already.
    pub fn exec_url(&self, session: ExecSession) -> Result<String, StreamingError> {
        let mut token = [0u8; 24];
        getrandom::fill(&mut token).map_err(StreamingError::Random)?;
        let token = hex::encode(token);
        let now = Instant::now();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, pending| pending.until > now);
        if sessions.len() >= MAX_PENDING {
            return Err(StreamingError::TooManyPending);
        }
        sessions.insert(token.clone(), Pending { session, until: now + TOKEN_LIFE });
        Ok(format!("http://{}/exec/{token}", self.address))
    }
}

async fn accept(listener: TcpListener, sessions: Sessions) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors: give connections time to end instead of spinning.
                tracing::warn!(%error, "streaming accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let sessions = sessions.clone();
        tokio::spawn(async move {
            let slot = Arc::new(slot);
            let service = service_fn(|request| {
                let answer = answer(request, &sessions, slot.clone());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            // Not keep_alive(false): it puts `Connection: close` into the answer to an upgrade, which clients refuse.
            http.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(REQUEST_TIME);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
                tracing::debug!(%error, "streaming connection failed");
            }
        });
    }
}

type Slot = Arc<tokio::sync::OwnedSemaphorePermit>;

fn answer(request: Request<Incoming>, sessions: &Sessions, slot: Slot) -> Response<String> {
    let refuse = |status, why: &str| {
        let mut response = Response::new(format!("{why}\n"));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        response
    };
    if !upgrades_to_spdy(request.headers()) {
        return refuse(
            StatusCode::BAD_REQUEST,
            "only SPDY/3.1 is spoken: send Connection: Upgrade and Upgrade: SPDY/3.1",
        );
    }
    if !offers_protocol(request.headers()) {
        return refuse(
            StatusCode::FORBIDDEN,
            "only v4.channel.k8s.io is spoken: offer it in X-Stream-Protocol-Version",
        );
    }
    let Some(session) = take(request.uri().path(), sessions) else {
        return refuse(StatusCode::NOT_FOUND, "unknown, used or expired session: ask for a new URL");
    };
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => exec_session::run(TokioIo::new(upgraded), session).await,
            Err(error) => tracing::debug!(%error, "streaming upgrade failed"),
        }
        drop(slot);
    });
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("SPDY/3.1"));
    headers.insert(PROTOCOL_HEADER, header::HeaderValue::from_static(PROTOCOL));
    response
}

fn take(path: &str, sessions: &Sessions) -> Option<ExecSession> {
    let token = path.strip_prefix("/exec/")?;
    let pending = sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(token)?;
    (pending.until > Instant::now()).then_some(pending.session)
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name);
    let mut tokens = values.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    tokens.any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

fn upgrades_to_spdy(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade") && has_token(headers, header::UPGRADE, "spdy/3.1")
}

fn offers_protocol(headers: &HeaderMap) -> bool {
    has_token(headers, header::HeaderName::from_static(PROTOCOL_HEADER), PROTOCOL)
}

//! Listens on loopback, hands out one-time URLs, and upgrades the connections that come to them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::hangup::Hangup;
use super::leaving::Leaving;
use super::negotiate::{self, Choice, Refusal, Wire};
use super::{Session, port_forward, remote_command, websocket};
use crate::door::Door;

/// How long a URL waits for its client.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// How many URLs may wait at once.
const MAX_PENDING: usize = 1000;
/// How many clients may be connected at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long a client may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(30);

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
    session: Session,
    until: Instant,
}

/// Sessions by the path of their URL.
type Sessions = Arc<Mutex<HashMap<String, Pending>>>;

/// The streaming server; ends with the process.
pub struct StreamingServer {
    address: SocketAddr,
    sessions: Sessions,
    leaving: Leaving,
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
        let leaving = Leaving::default();
        tokio::spawn(accept(listener, sessions.clone(), leaving.clone()));
        Ok(Self { address, sessions, leaving })
    }

    /// Tells the clients of running commands that the daemon ends, so that none takes the end of
    /// its connection for success. Takes two seconds at most.
    pub async fn leave(&self) {
        self.leaving.begin().await;
    }

    /// Promises `session` to whoever connects to the returned URL first, within a minute.
    ///
    /// # Errors
    /// When too many sessions wait already.
    pub fn url(&self, session: Session) -> Result<String, StreamingError> {
        let mut token = [0u8; 24];
        getrandom::fill(&mut token).map_err(StreamingError::Random)?;
        let token = hex::encode(token);
        let now = Instant::now();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, pending| pending.until > now);
        if sessions.len() >= MAX_PENDING {
            return Err(StreamingError::TooManyPending);
        }
        let path = format!("/{}/{token}", verb(&session));
        sessions.insert(path.clone(), Pending { session, until: now + TOKEN_LIFE });
        Ok(format!("http://{}{path}", self.address))
    }
}

fn verb(session: &Session) -> &'static str {
    match session {
        Session::Exec(_) => "exec",
        Session::Attach(_) => "attach",
        Session::PortForward(_) => "portforward",
    }
}

async fn accept(listener: TcpListener, sessions: Sessions, leaving: Leaving) {
    let door = Door::new(listener, MAX_CONNECTIONS, "streaming");
    while let Some((stream, permit)) = door.next().await {
        // What users type and see comes in small pieces.
        let _ = stream.set_nodelay(true);
        let hangup = match Hangup::of(&stream) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::warn!(%error, "streaming connection cannot be watched");
                continue;
            }
        };
        let slot = Arc::new(Slot { _permit: permit, hangup, leaving: leaving.clone() });
        let sessions = sessions.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(request, &sessions, slot.clone());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            // Not keep_alive(false): it puts `Connection: close` into the answer to an upgrade,
            // which clients refuse.
            http.timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(REQUEST_TIME);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
                tracing::debug!(%error, "streaming connection failed");
            }
        });
    }
}

/// Held as long as a connection lasts.
struct Slot {
    _permit: OwnedSemaphorePermit,
    hangup: Hangup,
    leaving: Leaving,
}

fn refuse(status: StatusCode, why: &str) -> Response<String> {
    let mut response = Response::new(format!("{why}\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn answer(request: Request<Incoming>, sessions: &Sessions, slot: Arc<Slot>) -> Response<String> {
    let unknown = || refuse(StatusCode::NOT_FOUND, "unknown, used or expired session: ask for a new URL");
    let path = request.uri().path().to_owned();
    // A client that speaks something else has not used its URL up.
    let Some(session) = look(&path, sessions) else { return unknown() };
    let choice = match negotiate::choose(&request, &session) {
        Ok(choice) => choice,
        Err(Refusal::NoUpgrade) => {
            let why =
                "only SPDY/3.1 and WebSocket (version 13, by GET) are spoken: send Connection: Upgrade and Upgrade";
            return refuse(StatusCode::BAD_REQUEST, why);
        }
        Err(Refusal::NoProtocol(spoken)) => {
            return refuse(StatusCode::FORBIDDEN, &format!("none of the offered protocols is spoken, but: {spoken}"));
        }
    };
    let Some(response) = switching(request.headers(), &choice) else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let Some(session) = take(&path, sessions) else { return unknown() };
    let leaving = slot.leaving.clone();
    leaving.sessions.spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => tokio::select! {
                () = serve(TokioIo::new(upgraded), session, choice.wire, &slot.leaving) => {}
                () = slot.hangup.gone() => {}
            },
            Err(error) => tracing::debug!(%error, "streaming upgrade failed"),
        }
    });
    response
}

async fn serve(io: TokioIo<Upgraded>, session: Session, wire: Wire, leaving: &Leaving) {
    match (session, wire) {
        (Session::Exec(mut command) | Session::Attach(mut command), wire) => {
            command.target = leaving.with(command.target);
            match wire {
                Wire::SpdyCommand(version) => remote_command::over_spdy(io, command, version).await,
                Wire::WebSocketCommand(encoding, version) => {
                    remote_command::over_websocket(io, command, encoding, version).await;
                }
                // Not chosen for a command.
                Wire::SpdyPorts | Wire::TunnelledPorts | Wire::WebSocketPorts(_) => {}
            }
        }
        (Session::PortForward(ports), wire) => {
            let forwarding = async {
                match wire {
                    Wire::TunnelledPorts => port_forward::run(websocket::tunnel(io).await, ports).await,
                    Wire::WebSocketPorts(encoding) => port_forward::channels::run(io, ports, encoding).await,
                    _ => port_forward::run(io, ports).await,
                }
            };
            // kubectl takes the end of this connection for what it is.
            tokio::select! {
                () = forwarding => {}
                () = leaving.begun() => {}
            }
        }
    }
}

/// The answer that ends HTTP on a connection.
fn switching(request: &HeaderMap, choice: &Choice) -> Option<Response<String>> {
    let mut response = Response::new(String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol = HeaderValue::from_static(choice.protocol);
    match choice.wire {
        Wire::SpdyCommand(_) | Wire::SpdyPorts => {
            headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            if !protocol.is_empty() {
                headers.insert(negotiate::PROTOCOL_HEADER, protocol);
            }
        }
        Wire::WebSocketCommand(..) | Wire::WebSocketPorts(_) | Wire::TunnelledPorts => {
            let key = websocket::accept_key(request.get(SEC_WEBSOCKET_KEY)?.as_bytes());
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(&key).ok()?);
            if !protocol.is_empty() {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            }
        }
    }
    Some(response)
}

fn look(path: &str, sessions: &Sessions) -> Option<Session> {
    let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    let pending = sessions.get(path)?;
    (pending.until > Instant::now()).then(|| pending.session.clone())
}

fn take(path: &str, sessions: &Sessions) -> Option<Session> {
    let pending = sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(path)?;
    (pending.until > Instant::now()).then_some(pending.session)
}

#[cfg(test)]
mod tests;

//! Serves `/metrics` on loopback.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::door::Door;
use crate::error::CriError;
use crate::node::Node;

/// How many clients may be connected at once.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take for its request and its answer.
const LIMIT: Duration = Duration::from_secs(10);
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Starts to serve on `address`, of which the configuration has made sure that it is loopback; ends with the process.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn start(address: SocketAddr, node: Arc<Node>) -> Result<(), CriError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|e| CriError::internal(format!("listen on metrics.listen = {address}"), e))?;
    tracing::info!(%address, "metrics are served");
    tokio::spawn(accept(listener, move || node.telemetry.show(&node)));
    Ok(())
}

async fn accept<S>(listener: TcpListener, show: S)
where
    S: Fn() -> Result<String, std::fmt::Error> + Clone + Send + Sync + 'static,
{
    let door = Door::new(listener, MAX_CONNECTIONS, "metrics");
    while let Some((stream, permit)) = door.next().await {
        let show = show.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let response = answer(&request, &show);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            // A scraper comes by once in a while: it holds no connection in between.
            http.timer(TokioTimer::new()).header_read_timeout(LIMIT).keep_alive(false);
            match tokio::time::timeout(LIMIT, http.serve_connection(TokioIo::new(stream), service)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "connection of a client of metrics failed"),
                Err(_) => tracing::debug!("a client of metrics took too long"),
            }
        });
    }
}

fn answer(request: &Request<Incoming>, show: impl Fn() -> Result<String, std::fmt::Error>) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match show() {
        Ok(text) => {
            let mut response = Response::new(Full::from(text));
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(FORMAT));
            response
        }
        Err(error) => {
            tracing::error!(%error, "metrics cannot be written");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn only_metrics_are_served_and_only_to_be_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, || Ok("cofferdam_pods 1\n# EOF\n".into())));
        let text = ask(address, "GET /metrics").await;
        assert!(text.starts_with("HTTP/1.1 200") && text.contains(FORMAT) && text.ends_with("# EOF\n"), "{text}");
        assert!(ask(address, "GET /").await.starts_with("HTTP/1.1 404"));
        let text = ask(address, "POST /metrics").await;
        assert!(text.starts_with("HTTP/1.1 405") && text.to_lowercase().contains("allow: get, head"), "{text}");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_leave_room_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(accept(listener, || Ok(String::new())));
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::task::yield_now().await;
        tokio::time::pause();
        let began = tokio::time::Instant::now();
        assert!(ask(address, "GET /metrics").await.starts_with("HTTP/1.1 200"));
        assert!(began.elapsed() <= 2 * LIMIT);
    }
}

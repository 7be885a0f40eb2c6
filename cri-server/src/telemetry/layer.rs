//! One place that sees every call: its method, its code, and how long it took.
//!
//! gRPC says how a call ended in trailers, behind the answer's body, so the measurement travels with the body and ends with it. It
//! begins with the request's headers and so has its reading, the work, the answer's encoding and its handing to HTTP/2; the writing to
//! the socket is HTTP/2's own, unless the answer is more than its client's window: then the wait for the client is in, too.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{Telemetry, methods};

/// Measures what passes through.
#[derive(Debug, Clone)]
pub(crate) struct MeasureCalls(pub(crate) Arc<Telemetry>);

impl<S> Layer<S> for MeasureCalls {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, telemetry: self.0.clone() }
    }
}

/// The services behind it.
#[derive(Debug, Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    telemetry: Arc<Telemetry>,
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut call = Call {
            telemetry: self.telemetry.clone(),
            method: methods::method(request.uri().path()),
            began: Instant::now(),
            code: Code::Cancelled,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let (parts, body) = answer.await?.into_parts();
            // A refusal has no body: its code is among the headers.
            call.look(&parts.headers);
            Ok(Response::from_parts(parts, Body::new(Answer { body, call })))
        })
    }
}

/// A call that has not ended. One that is dropped before its code was seen was given up by its client.
struct Call {
    telemetry: Arc<Telemetry>,
    method: &'static str,
    began: Instant,
    code: Code,
}

impl Call {
    fn look(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.code = status.code();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.telemetry.call(self.method, self.code, self.began.elapsed());
    }
}

/// An answer on its way.
struct Answer {
    body: Body,
    call: Call,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.look(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => self.call.code = status.code(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt;
    use tower::service_fn;

    use super::*;

    /// A body of some data and trailers with this code.
    struct Trailing(Vec<Frame<Bytes>>);

    impl HttpBody for Trailing {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.pop().map(Ok))
        }
    }

    fn count(telemetry: &Telemetry, method: &str, code: &str) -> bool {
        let line = format!("cofferdam_rpc_duration_seconds_count{{method=\"{method}\",code=\"{code}\"}} 1");
        telemetry.encoded().unwrap().lines().any(|l| l == line)
    }

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn a_code_is_found_in_headers_and_in_trailers() {
        let telemetry = Arc::new(Telemetry::default());
        let refuse = service_fn(|_| async { Ok::<_, Infallible>(Status::not_found("no").into_http::<Body>()) });
        let answer =
            MeasureCalls(telemetry.clone()).layer(refuse).call(request("/runtime.v1.RuntimeService/StopContainer"));
        drop(answer.await.unwrap());
        assert!(count(&telemetry, "StopContainer", "NotFound"));

        let serve = service_fn(|_| async {
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            let frames = vec![Frame::trailers(trailers), Frame::data(Bytes::from_static(b"x"))];
            Ok::<_, Infallible>(Response::new(Body::new(Trailing(frames))))
        });
        let answer = MeasureCalls(telemetry.clone()).layer(serve).call(request("/runtime.v1.RuntimeService/Version"));
        let mut body = answer.await.unwrap().into_body();
        let frames = futures::stream::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        assert_eq!(frames.count().await, 2);
        assert!(!count(&telemetry, "Version", "Ok"), "not before its end");
        drop(body);
        assert!(count(&telemetry, "Version", "Ok"));
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_is_counted_and_unknown_paths_are_one_series() {
        let telemetry = Arc::new(Telemetry::default());
        let hang = service_fn(|_| std::future::pending::<Result<Response<Body>, Infallible>>());
        let mut service = MeasureCalls(telemetry.clone()).layer(hang);
        drop(service.call(request("/made/up?by=a-client")));
        assert!(count(&telemetry, "unknown", "Cancelled"));
    }
}

//! A panic costs the call in which it happens, and no other: it is logged with its place, counted, and answered with INTERNAL.
//!
//! What the call held is given back as its stack unwinds. A panic in a task of its own ends that task; whoever waits for it is told
//! ([`crate::runtime_service`]'s detached work answers INTERNAL, too).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many panics there were since the daemon started.
pub(crate) fn count() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Has each panic logged and counted, wherever it happens.
pub(crate) fn watch() {
    set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(place, thread, text = text(panic.payload()), %backtrace, "panic: a bug of the daemon");
    }));
}

fn text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

fn answer(payload: &(dyn Any + Send)) -> Status {
    let text: String = text(payload).chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect();
    Status::internal(format!("a bug of the daemon, which its journal has in full: {text}"))
}

/// Answers for calls that panic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CatchPanics;

impl<S> Layer<S> for CatchPanics {
    type Service = Caught<S>;

    fn layer(&self, inner: S) -> Caught<S> {
        Caught { inner }
    }
}

/// The services behind it.
#[derive(Debug, Clone)]
pub(crate) struct Caught<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Caught<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // What the call shares with others is behind locks, whose holders change it by one assignment each.
        let called = catch_unwind(AssertUnwindSafe(|| self.inner.call(request)));
        Box::pin(async move {
            let answered = match called {
                Ok(call) => AssertUnwindSafe(call).catch_unwind().await,
                Err(panic) => Err(panic),
            };
            match answered {
                Ok(answered) => answered.map(|response| response.map(|body| Body::new(Answer(Some(body))))),
                Err(panic) => Ok(answer(&*panic).into_http()),
            }
        })
    }
}

/// An answer whose parts may come from code that panics.
struct Answer(Option<Body>);

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(context))) {
            Ok(polled) => polled,
            Err(panic) => {
                self.0 = None;
                Poll::Ready(Some(Err(answer(&*panic))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;

    use super::*;

    /// A stream that panics instead of its second part.
    struct Breaks(bool);

    impl HttpBody for Breaks {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            assert!(!std::mem::replace(&mut self.0, true), "in the middle of a stream");
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first")))))
        }
    }

    async fn serve(request: Request<Body>) -> Result<Response<Body>, Infallible> {
        match request.uri().path() {
            "/panics" => panic!("at the first poll"),
            "/panics/later" => {
                tokio::task::yield_now().await;
                panic!("after a wait")
            }
            "/streams" => Ok(Response::new(Body::new(Breaks(false)))),
            _ => Ok(Response::new(Body::empty())),
        }
    }

    #[tokio::test]
    async fn a_call_that_panics_is_answered_and_the_next_one_works() {
        watch();
        let mut service = CatchPanics.layer(tower::service_fn(serve));
        let mut ask = |path: &'static str| service.call(Request::builder().uri(path).body(Body::empty()).unwrap());
        let before = count();
        for (path, text) in [("/panics", "at the first poll"), ("/panics/later", "after a wait")] {
            let status = Status::from_header_map(ask(path).await.unwrap().headers()).unwrap();
            assert_eq!(status.code(), tonic::Code::Internal);
            assert!(status.message().ends_with(text), "{status:?}");
            assert!(Status::from_header_map(ask("/works").await.unwrap().headers()).is_none());
        }
        let mut body = ask("/streams").await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        let status = body.frame().await.unwrap().unwrap_err();
        assert!(status.code() == tonic::Code::Internal && status.message().contains("middle of a stream"));
        assert!(body.frame().await.is_none());
        assert!(count() >= before + 3, "they are counted");
    }
}

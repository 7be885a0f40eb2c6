//! A call whose client has given it no more time fails with DEADLINE_EXCEEDED.
//!
//! tonic ends such calls with CANCELLED, a moment after this layer would; a client whose own clock is that moment behind believes it.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// Ends calls in their clients' time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeepDeadlines;

impl<S> Layer<S> for KeepDeadlines {
    type Service = InTime<S>;

    fn layer(&self, inner: S) -> InTime<S> {
        InTime { inner }
    }
}

/// The services behind it.
#[derive(Debug, Clone)]
pub(crate) struct InTime<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for InTime<S>
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
        let time = timeout(request.headers());
        let answer = self.inner.call(request);
        let Some(time) = time else { return Box::pin(answer) };
        // The clock starts here, before tonic's own.
        let answer = tokio::time::timeout(time, answer);
        Box::pin(async move {
            answer.await.unwrap_or_else(|_| {
                Ok(Status::deadline_exceeded(format!(
                    "the call took longer than the {time:?} that its client gives it"
                ))
                .into_http())
            })
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit. One that is not so counts as none, as tonic has it.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Code;
    use tower::service_fn;

    use super::*;

    fn asked(timeout: &str) -> Request<Body> {
        Request::builder().header("grpc-timeout", timeout).body(Body::empty()).unwrap()
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, time) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("5m", Some(Duration::from_millis(5))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("m", None),
            ("5", None),
            ("+5m", None),
            ("5h", None),
            ("123456789n", None),
        ] {
            assert_eq!(timeout(asked(text).headers()), time, "{text}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_late_says_so() {
        let slow = service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let mut service = KeepDeadlines.layer(slow);
        let late = service.call(asked("999m")).await.unwrap();
        let status = Status::from_header_map(late.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        for in_time in [asked("2S"), asked("nonsense")] {
            let answer = service.call(in_time).await.unwrap();
            assert!(Status::from_header_map(answer.headers()).is_none());
        }
    }
}

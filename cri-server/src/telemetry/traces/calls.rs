//! One span for each call that starts things. It continues the trace of a caller that names one
//! (`traceparent`, W3C Trace Context), as the kubelet does when it is traced itself.

use std::task::{Context, Poll};

use cofferdam_image_store::Reference;
use cofferdam_sandbox::SPANS;
use futures::future::{BoxFuture, Either, FutureExt};
use http::{HeaderMap, Request, Response};
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::records::{ContainerRecord, PodRecord};
use crate::telemetry::{methods, name_of};

/// The calls that are traced: those that start things. The kubelet makes the others by the second.
const TRACED: [&str; 4] = [
    "/runtime.v1.RuntimeService/RunPodSandbox",
    "/runtime.v1.RuntimeService/CreateContainer",
    "/runtime.v1.RuntimeService/StartContainer",
    "/runtime.v1.ImageService/PullImage",
];
/// Longest `tracestate` that is handed on: what every participant has to (W3C Trace Context,
/// section 3.3.1.5).
const MAX_STATE: usize = 512;

/// Says of which pod the present call is.
pub(crate) fn of_pod(record: &PodRecord) {
    let span = Span::current();
    span.record("k8s.pod.name", &record.name)
        .record("k8s.namespace.name", &record.namespace)
        .record("k8s.pod.uid", &record.uid)
        .record("cofferdam.pod.id", &record.id)
        .record("cofferdam.handler", name_of(record.kind));
}

/// Says of which container the present call is.
pub(crate) fn of_container(record: &ContainerRecord) {
    let span = Span::current();
    span.record("k8s.container.name", &record.name)
        .record("container.id", &record.id)
        .record("container.image.id", &record.image_id);
    of_image(record.image_name());
}

/// Says of which image the present call is, if that is a reference: what else a client may call an
/// image has room for anything.
pub(crate) fn of_image(named: &str) {
    let span = Span::current();
    if !span.is_disabled()
        && !named.starts_with("sha256:")
        && let Ok(reference) = named.parse::<Reference>()
    {
        span.record("container.image.name", reference.to_string());
    }
}

/// Traces what passes through, if anything is traced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TraceCalls;

impl<S> Layer<S> for TraceCalls {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// The services behind it.
#[derive(Debug, Clone)]
pub(crate) struct Traced<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Traced<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let span = of_call(&request);
        if span.is_disabled() {
            return Either::Left(self.inner.call(request));
        }
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span.clone());
        // Dropped before its end, it was given up by its caller.
        let mut call = Call { span, code: Code::Cancelled };
        let answer = async move {
            let answer = answer.await;
            if let Ok(response) = &answer {
                call.look(response.headers());
            }
            answer
        };
        Either::Right(answer.boxed())
    }
}

/// The call's span; a disabled one when it is not traced.
fn of_call(request: &Request<Body>) -> Span {
    let Some(name) = TRACED.iter().find_map(|path| path.strip_prefix('/').filter(|_| request.uri().path() == *path))
    else {
        return Span::none();
    };
    let (service, method) = name.split_once('/').unwrap_or_default();
    let span = info_span!(
        target: SPANS,
        "call",
        otel.name = name,
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        k8s.pod.name = Empty,
        k8s.namespace.name = Empty,
        k8s.pod.uid = Empty,
        k8s.container.name = Empty,
        container.id = Empty,
        container.image.id = Empty,
        container.image.name = Empty,
        cofferdam.pod.id = Empty,
        cofferdam.handler = Empty,
    );
    if !span.is_disabled() {
        // Without a parent, or with one that is not well-formed, the span begins a trace of its own.
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        let _ = span.set_parent(parent);
    }
    span
}

/// A call that has not ended.
struct Call {
    span: Span,
    code: Code,
}

impl Call {
    /// The answers of these calls are one message each: a failure has no body, and its code is
    /// among the headers.
    fn look(&mut self, headers: &HeaderMap) {
        self.code = Status::from_header_map(headers).map_or(Code::Ok, |status| status.code());
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.span.record("rpc.grpc.status_code", self.code as i64);
        if self.code != Code::Ok {
            // Not the message: registries, plugins and guests have a say in it. The journal has it.
            self.span.record("otel.status_description", methods::code(self.code));
        }
    }
}

/// What a caller says of its trace.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        (value.len() <= MAX_STATE).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

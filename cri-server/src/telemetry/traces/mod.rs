//! Spans of the calls that start things, for an OpenTelemetry collector; nothing of this exists
//! without `tracing.endpoint`.
//!
//! ```text
//!  calls.rs    one span for each call, continuing its caller's trace ─┐
//!  step()      its steps: sandbox, image store, agent ────────────────┤ spans of target SPANS
//!                                                                     ▼
//!  mod.rs      tracing-opentelemetry ──► queue.rs: at most QUEUE spans ──► OTLP over gRPC
//! ```
//!
//! A collector is not trusted and not waited for: a span that finds the queue full is dropped and
//! counted, and so are those that a collector does not take in time.

mod calls;
mod queue;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cofferdam_sandbox::SPANS;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanExporter as _};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

pub(crate) use self::calls::{TraceCalls, of_container, of_image, of_pod};
use self::queue::{Queue, Sender, queue};
use crate::config::TracingConfig;
use crate::error::CriError;

/// How long a connection to the collector may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long the collector may take for one batch, with connecting and trying again.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// How long the daemon's end waits for the last spans.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many spans no collector has got, since the daemon started.
pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// What makes spans of this daemon's work, before anything is sent.
pub(crate) struct Traces {
    provider: SdkTracerProvider,
    resource: Resource,
    sender: Sender,
    config: TracingConfig,
}

impl Traces {
    /// Prepares it as `config` says.
    pub(crate) fn new(config: TracingConfig) -> Self {
        Self::counting(config, &DROPPED)
    }

    fn counting(config: TracingConfig, dropped: &'static AtomicU64) -> Self {
        let (queue, sender) = queue(dropped);
        let resource = resource();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.clone())
            .with_sampler(sampler(config.sample_percent))
            .with_span_processor::<Queue>(queue)
            .build();
        Self { provider, resource, sender, config }
    }

    /// What takes the spans from whoever makes them. It sees no events: those may have more in
    /// them than should leave the node.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("cofferdam"))
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(Targets::new().with_target(SPANS, LevelFilter::INFO))
    }

    /// Sends spans from now on, on the runtime that this is called on.
    ///
    /// # Errors
    /// When there can be no client for the endpoint; that nobody answers there is none.
    pub(crate) fn start(self) -> Result<Sending, CriError> {
        let what = || format!("send spans to tracing.endpoint = {}", self.config.endpoint);
        let channel = Endpoint::from(self.config.endpoint.clone())
            .connect_timeout(CONNECT_LIMIT)
            .timeout(SEND_LIMIT)
            .connect_lazy();
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel).with_timeout(SEND_LIMIT).build();
        let mut exporter = exporter.map_err(|e| CriError::internal(what(), e))?;
        exporter.set_resource(&self.resource);
        let TracingConfig { endpoint, sample_percent } = &self.config;
        tracing::info!(%endpoint, sample_percent, "calls are traced");
        let ending = CancellationToken::new();
        let task = tokio::spawn(self.sender.run(exporter, SEND_LIMIT, ending.clone()));
        Ok(Sending { ending, task })
    }
}

/// What sends spans, until it is told that there will be no more.
pub(crate) struct Sending {
    ending: CancellationToken,
    task: JoinHandle<()>,
}

impl Sending {
    /// Sends what is left, or gives up after [`FLUSH_LIMIT`].
    pub(crate) async fn finish(self) {
        self.ending.cancel();
        let task = self.task.abort_handle();
        if tokio::time::timeout(FLUSH_LIMIT, self.task).await.is_err() {
            task.abort();
            tracing::warn!(seconds = FLUSH_LIMIT.as_secs(), "the collector has not taken the last spans in time");
        }
    }
}

/// A call that comes with a trace is traced if its caller's is; of the others, this part.
fn sampler(percent: u8) -> Sampler {
    Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(f64::from(percent) / 100.0)))
}

/// Who says all this. Nothing is taken from the environment.
fn resource() -> Resource {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Resource::builder_empty()
        .with_service_name("cofferdam")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("host.name", host),
        ])
        .build()
}

//! What a step of a call is traced as: a span, for the daemon's OpenTelemetry exporter if it has
//! one.
//!
//! Nobody else sees these spans: their target is none of those that the journal takes. What they
//! carry leaves the node, so no credential, environment variable or annotation is put into one,
//! nor an error's text, which registries, plugins and guests have a say in.

use tracing::{Instrument, Span};

/// Target of the spans, as in the daemon and the sandbox.
pub(crate) const SPANS: &str = "spans";

/// Does `work` within `span`, which says so when it fails: it needs an empty field
/// `otel.status_code`.
pub(crate) async fn step<T, E>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let outcome = work.instrument(span.clone()).await;
    if outcome.is_err() {
        span.record("otel.status_code", "ERROR");
    }
    outcome
}

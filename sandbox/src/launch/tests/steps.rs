//! Spans, as whoever traces the daemon's calls gets them.

use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Instrument, Subscriber, info_span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::step::SPANS;

/// A step's name, that of the span around it, and whether it failed.
pub(super) type Step = (&'static str, &'static str, bool);

#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<(Id, Step)>>>);

/// Whether a step said that it failed.
#[derive(Default)]
struct Failed(bool);

impl Visit for Failed {
    fn record_debug(&mut self, field: &Field, _: &dyn std::fmt::Debug) {
        self.0 |= field.name() == "otel.status_code";
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Steps {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let around = context.span(id).and_then(|span| span.parent()).map_or("", |span| span.name());
        if attributes.metadata().target() == SPANS && !around.is_empty() {
            self.0.lock().unwrap().push((id.clone(), (attributes.metadata().name(), around, false)));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut failed = Failed::default();
        values.record(&mut failed);
        for (_, step) in self.0.lock().unwrap().iter_mut().filter(|(known, _)| known == id) {
            step.2 |= failed.0;
        }
    }
}

/// The steps of `work`, which is one call, by their names.
pub(super) async fn of<T>(work: impl Future<Output = T>) -> Vec<Step> {
    let seen = Steps::default();
    let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(seen.clone()));
    work.instrument(info_span!(target: SPANS, "call")).await;
    drop(guard);
    let mut steps: Vec<Step> = seen.0.lock().unwrap().iter().map(|(_, step)| *step).collect();
    steps.sort_unstable();
    steps
}

//! Events to standard error, as journald reads them: `<priority>` first when it does, no time and no colour, since it adds its own.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::telemetry::Traces;

/// Starts logging at `level` and above; what other crates log is seen from `warn` on. Spans go to
/// `traces` alone, if there is any.
pub(crate) fn start(level: Level, traces: Option<&Traces>) {
    match traces {
        None => drop(alone(level).try_init()),
        Some(traces) => drop(with_traces(level, traces).try_init()),
    }
}

/// What takes events, and has no span made.
pub(crate) fn alone(level: Level) -> impl Subscriber + Send + Sync {
    tracing_subscriber::registry().with(filter(level)).with(events())
}

/// What takes events, and gives `traces` the spans.
pub(crate) fn with_traces(level: Level, traces: &Traces) -> impl Subscriber + Send + Sync + use<> {
    tracing_subscriber::registry().with(events().with_filter(filter(level))).with(traces.layer())
}

fn filter(level: Level) -> EnvFilter {
    EnvFilter::new(format!("warn,cofferdam={level},cofferdam_sandbox={level},cofferdam_image_store={level}"))
}

fn events<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let format = Journal { priorities: std::env::var_os("JOURNAL_STREAM").is_some() };
    tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).event_format(format)
}

struct Journal {
    priorities: bool,
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.priorities {
            // sd-daemon(3)
            let priority = match level {
                Level::ERROR => 3,
                Level::WARN => 4,
                Level::INFO => 6,
                _ => 7,
            };
            write!(writer, "<{priority}>")?;
        }
        Format::default()
            .with_target(false)
            .without_time()
            .with_level(level <= Level::WARN)
            .format_event(ctx, writer, event)
    }
}

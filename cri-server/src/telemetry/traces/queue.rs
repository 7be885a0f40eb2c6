//! Spans on their way to the collector: a queue that never makes anybody wait, and a task that
//! empties it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanExporter, SpanProcessor};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Most spans that wait. One has at most some 2 KiB: every attribute is short.
pub(super) const QUEUE: usize = 2048;
/// Most spans in one message.
pub(super) const BATCH: usize = 512;
/// How long a span waits for others to go with.
pub(super) const GATHER: Duration = Duration::from_secs(1);
/// Longest text of an error, of which a collector may have written a part.
const MAX_TEXT: usize = 300;

/// The end that spans go into.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: &'static AtomicU64,
}

/// The end that they come out of.
pub(super) struct Sender {
    spans: mpsc::Receiver<SpanData>,
    dropped: &'static AtomicU64,
    /// The last batch was taken, or there was none yet.
    well: bool,
}

/// A queue; `dropped` counts what is lost.
pub(super) fn queue(dropped: &'static AtomicU64) -> (Queue, Sender) {
    let (sender, spans) = mpsc::channel(QUEUE);
    (Queue { spans: sender, dropped }, Sender { spans, dropped, well: true })
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Sender {
    /// Sends spans until `ending` says that there will be no more and the queue is empty. A batch
    /// that is not taken within `limit` is dropped and counted.
    pub(super) async fn run(mut self, exporter: impl SpanExporter, limit: Duration, ending: CancellationToken) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                _ = self.spans.recv_many(&mut batch, BATCH) => {}
                () = ending.cancelled() => {}
            }
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = ending.cancelled() => {}
            }
            loop {
                while batch.len() < BATCH
                    && let Ok(span) = self.spans.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    break;
                }
                self.send(std::mem::take(&mut batch), &exporter, limit).await;
            }
            if ending.is_cancelled() {
                return;
            }
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>, exporter: &impl SpanExporter, limit: Duration) {
        let count = batch.len() as u64;
        let sent = match tokio::time::timeout(limit, exporter.export(batch)).await {
            Ok(sent) => sent.map_err(|e| e.to_string()),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        };
        // One line when it begins and one when it ends, however long it takes.
        match sent {
            Ok(()) if self.well => {}
            Ok(()) => tracing::info!("the collector takes spans again"),
            Err(error) => {
                self.dropped.fetch_add(count, Ordering::Relaxed);
                if self.well {
                    let plain = |c: char| if c.is_control() { ' ' } else { c };
                    let error: String = error.chars().take(MAX_TEXT).map(plain).collect();
                    tracing::warn!(error, "the collector of tracing.endpoint does not take spans: they are lost");
                }
                self.well = false;
                return;
            }
        }
        self.well = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::error::OTelSdkError;
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Takes batches as it is told, and remembers how large they were.
    #[derive(Debug, Default, Clone)]
    struct Collector {
        hangs: bool,
        refuses: bool,
        got: Arc<Mutex<Vec<usize>>>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.got.lock().unwrap().push(batch.len());
            if self.hangs {
                std::future::pending::<()>().await;
            }
            if self.refuses { Err(OTelSdkError::InternalFailure("no".into())) } else { Ok(()) }
        }
    }

    fn counter() -> &'static AtomicU64 {
        Box::leak(Box::default())
    }

    fn make(provider: &SdkTracerProvider, spans: usize) {
        let tracer = provider.tracer("test");
        (0..spans).for_each(|_| drop(tracer.start("span")));
    }

    fn provider(queue: Queue) -> SdkTracerProvider {
        SdkTracerProvider::builder().with_span_processor(queue).build()
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_hangs_costs_spans_and_nothing_else() {
        let dropped = counter();
        let (queue, sender) = queue(dropped);
        let (provider, collector, ending) =
            (provider(queue), Collector { hangs: true, ..Collector::default() }, CancellationToken::new());
        let task = tokio::spawn(sender.run(collector.clone(), Duration::from_secs(5), ending.clone()));
        make(&provider, BATCH);
        tokio::time::sleep(2 * GATHER).await;
        assert_eq!(*collector.got.lock().unwrap(), [BATCH], "it has the first ones, and hangs");
        make(&provider, QUEUE + 100);
        assert_eq!(dropped.load(Ordering::Relaxed), 100, "the queue takes no more than it holds");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(dropped.load(Ordering::Relaxed), 100 + BATCH as u64, "those it did not take are lost");
        ending.cancel();
        // Whoever ends the daemon does not wait as long: the flush has a limit of its own.
        task.await.unwrap();
        assert_eq!(dropped.load(Ordering::Relaxed), (100 + BATCH + QUEUE) as u64);
        assert_eq!(collector.got.lock().unwrap().len(), 1 + QUEUE / BATCH);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_counted_and_the_end_sends_the_rest() {
        let dropped = counter();
        for (refuses, lost) in [(true, 7), (false, 7)] {
            let (queue, sender) = queue(dropped);
            let (provider, collector, ending) =
                (provider(queue), Collector { refuses, ..Collector::default() }, CancellationToken::new());
            let task = tokio::spawn(sender.run(collector.clone(), Duration::from_secs(5), ending.clone()));
            make(&provider, 7);
            let began = tokio::time::Instant::now();
            ending.cancel();
            task.await.unwrap();
            assert!(began.elapsed() < GATHER, "the end does not wait for more spans");
            assert_eq!(*collector.got.lock().unwrap(), [7]);
            assert_eq!(dropped.load(Ordering::Relaxed), lost);
        }
    }
}

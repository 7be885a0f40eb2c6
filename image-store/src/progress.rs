//! How far running pulls are: counters that the work adds to and anybody may read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A running pull, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The reference, normalised.
    pub reference: String,
    /// Bytes of layers received or already there.
    pub bytes_done: u64,
    /// Bytes of all layers; 0 until the manifest is known.
    pub bytes_total: u64,
    /// Layers that are in the store.
    pub layers_done: u64,
    /// Layers of the image; 0 until the manifest is known.
    pub layers_total: u64,
    /// Time since the pull began.
    pub elapsed: Duration,
}

/// The counters of one pull.
#[derive(Debug)]
pub(crate) struct Meter {
    reference: String,
    started: Instant,
    pub(crate) bytes_done: AtomicU64,
    pub(crate) bytes_total: AtomicU64,
    pub(crate) layers_done: AtomicU64,
    pub(crate) layers_total: AtomicU64,
}

impl Meter {
    pub(crate) fn new(reference: String) -> Arc<Self> {
        Arc::new(Self {
            reference,
            started: Instant::now(),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            layers_done: AtomicU64::new(0),
            layers_total: AtomicU64::new(0),
        })
    }

    pub(crate) fn snapshot(&self) -> PullProgress {
        PullProgress {
            reference: self.reference.clone(),
            bytes_done: self.bytes_done.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
            layers_done: self.layers_done.load(Relaxed),
            layers_total: self.layers_total.load(Relaxed),
            elapsed: self.started.elapsed(),
        }
    }

    /// The event that people follow a pull by.
    pub(crate) fn log(&self) {
        let PullProgress { reference, bytes_done, bytes_total, layers_done, layers_total, elapsed } = self.snapshot();
        let elapsed_ms = elapsed.as_millis() as u64;
        tracing::info!(
            image = reference,
            bytes_done,
            bytes_total,
            layers_done,
            layers_total,
            elapsed_ms,
            "pull progress"
        );
    }
}

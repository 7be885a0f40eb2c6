//! How far running pulls are: counters that the work adds to and anybody may read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::digest::Digest;

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
    /// Each layer, lowest first; empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
    /// Time since the pull began.
    pub elapsed: Duration,
}

/// One layer of a running pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// The compressed blob's digest.
    pub digest: Digest,
    /// Bytes received or already there.
    pub bytes_done: u64,
    /// Bytes of the blob.
    pub bytes_total: u64,
    /// It is in the store.
    pub done: bool,
}

/// The counters of one pull.
#[derive(Debug)]
pub(crate) struct Meter {
    reference: String,
    started: Instant,
    layers: OnceLock<Vec<LayerMeter>>,
}

/// The counters of one layer.
#[derive(Debug)]
pub(crate) struct LayerMeter {
    digest: Digest,
    total: u64,
    pub(crate) received: AtomicU64,
    done: AtomicBool,
}

impl LayerMeter {
    /// It is in the store.
    pub(crate) fn finish(&self) {
        self.received.store(self.total, Relaxed);
        self.done.store(true, Relaxed);
    }

    fn snapshot(&self) -> LayerProgress {
        LayerProgress {
            digest: self.digest,
            bytes_done: self.received.load(Relaxed),
            bytes_total: self.total,
            done: self.done.load(Relaxed),
        }
    }
}

impl Meter {
    pub(crate) fn new(reference: String) -> Arc<Self> {
        Arc::new(Self { reference, started: Instant::now(), layers: OnceLock::new() })
    }

    /// The image's layers, lowest first, by digest and size. Only the first call counts.
    pub(crate) fn begin(&self, layers: impl Iterator<Item = (Digest, u64)>) {
        let layer =
            |(digest, total)| LayerMeter { digest, total, received: AtomicU64::new(0), done: AtomicBool::new(false) };
        self.layers.get_or_init(|| layers.map(layer).collect());
    }

    pub(crate) fn layers(&self) -> &[LayerMeter] {
        self.layers.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn snapshot(&self) -> PullProgress {
        let layers: Vec<_> = self.layers().iter().map(LayerMeter::snapshot).collect();
        PullProgress {
            reference: self.reference.clone(),
            bytes_done: layers.iter().map(|layer| layer.bytes_done).sum(),
            bytes_total: layers.iter().map(|layer| layer.bytes_total).sum(),
            layers_done: layers.iter().filter(|layer| layer.done).count() as u64,
            layers_total: layers.len() as u64,
            layers,
            elapsed: self.started.elapsed(),
        }
    }

    /// The event that people follow a pull by.
    pub(crate) fn log(&self) {
        let PullProgress { reference, bytes_done, bytes_total, layers_done, layers_total, elapsed, .. } =
            self.snapshot();
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

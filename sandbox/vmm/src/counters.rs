//! Numbers for `Request::Status`: counted wherever they happen, read by the control socket.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exits of all vCPUs to the monitor.
pub(crate) static VCPU_EXITS: Counter = Counter::new();
/// Notifications of the guest (queue kicks) handled.
pub(crate) static QUEUE_KICKS: Counter = Counter::new();
/// Interrupts that devices injected.
pub(crate) static INTERRUPTS: Counter = Counter::new();

/// Requests of the guest that the file server has carried out.
pub(crate) static FILE_REQUESTS: Counter = Counter::new();

/// A number that only grows.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one more.
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

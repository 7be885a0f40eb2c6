//! Numbers for `Request::Status`: counted wherever they happen, read by the control socket.

use std::sync::atomic::{AtomicU64, Ordering};

/// Exits of all vCPUs to the monitor.
pub(crate) static VCPU_EXITS: Counter = Counter::new();
/// Notifications of the guest (queue kicks) handled.
pub(crate) static QUEUE_KICKS: Counter = Counter::new();
/// Interrupts that devices injected.
pub(crate) static INTERRUPTS: Counter = Counter::new();

/// Requests of the guest that the file server has carried out, by `enum fuse_opcode`.
pub(crate) static FILE_REQUESTS: Kinds = Kinds::new();

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

/// Kinds that are told apart; those beyond count as the last one.
const KINDS: usize = 64;

/// Numbers that only grow, one for each kind of a thing.
pub(crate) struct Kinds([Counter; KINDS]);

impl Kinds {
    const fn new() -> Self {
        Self([const { Counter::new() }; KINDS])
    }

    /// Counts one more of a kind.
    pub(crate) fn add(&self, kind: u32) {
        self.0[(kind as usize).min(KINDS - 1)].add();
    }

    /// The count so far of all kinds.
    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }

    /// The kinds of which there were some, and their counts.
    pub(crate) fn each(&self) -> Vec<(u32, u64)> {
        (0..).zip(self.0.iter().map(Counter::get)).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart() {
        let kinds = Kinds::new();
        [3, 3, 1, 1000, u32::MAX].into_iter().for_each(|kind| kinds.add(kind));
        assert_eq!(kinds.each(), [(1, 1), (3, 2), (63, 2)]);
        assert_eq!(kinds.sum(), 5);
    }
}

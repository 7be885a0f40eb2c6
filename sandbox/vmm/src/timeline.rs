//! When things happened, in microseconds since the program started.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cofferdam_proto::monitor::Milestones;

/// The clock and what it stamped.
pub(crate) struct Timeline {
    start: Instant,
    /// Guest memory is mapped, the kernel is loaded.
    pub(crate) kernel_loaded: Stamp,
    /// The first vCPU is about to run.
    pub(crate) vcpu_started: Stamp,
    /// The guest said that its agent runs.
    pub(crate) agent_started: Stamp,
    /// The guest said that its agent listens.
    pub(crate) agent_listening: Stamp,
}

/// A moment; 0 until it comes, and never changed after.
#[derive(Default)]
pub(crate) struct Stamp(AtomicU64);

impl Timeline {
    /// Starts the clock; call it first in `main`.
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            kernel_loaded: Stamp::default(),
            vcpu_started: Stamp::default(),
            agent_started: Stamp::default(),
            agent_listening: Stamp::default(),
        }
    }

    /// Stamps `stamp` with now, if that is the first time.
    pub(crate) fn mark(&self, stamp: &Stamp) {
        let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        let _ = stamp.0.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The guest was restored, and its agent listens already.
    pub(crate) fn restored(&self) {
        self.mark(&self.agent_started);
        self.mark(&self.agent_listening);
    }

    /// How far the guest came, for people.
    pub(crate) fn summary(&self) -> String {
        let at = |stamp: &Stamp| match stamp.0.load(Ordering::Relaxed) {
            0 => "never".to_owned(),
            micros => format!("at {} ms", micros / 1000),
        };
        format!(
            "the vCPUs started {}, the agent {}, it listened {}, now it is {} ms",
            at(&self.vcpu_started),
            at(&self.agent_started),
            at(&self.agent_listening),
            self.start.elapsed().as_millis()
        )
    }

    /// All stamps.
    pub(crate) fn milestones(&self) -> Milestones {
        let read = |stamp: &Stamp| stamp.0.load(Ordering::Relaxed);
        Milestones {
            kernel_loaded_us: read(&self.kernel_loaded),
            vcpu_started_us: read(&self.vcpu_started),
            agent_started_us: read(&self.agent_started),
            agent_listening_us: read(&self.agent_listening),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_time_counts() {
        let timeline = Timeline::new();
        assert_eq!(timeline.milestones(), Milestones::default());
        timeline.mark(&timeline.agent_started);
        let first = timeline.milestones();
        assert!(first.agent_started_us > 0 && first.agent_listening_us == 0);
        assert!(timeline.summary().starts_with("the vCPUs started never, the agent at 0 ms, it listened never, now"));
        std::thread::sleep(std::time::Duration::from_millis(1));
        timeline.mark(&timeline.agent_started);
        assert_eq!(timeline.milestones(), first);
    }
}

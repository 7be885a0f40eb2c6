//! From CPU time to a rate.

use std::sync::Mutex;

use crate::node::lock;

/// Shortest time that a rate is computed over; who asks sooner gets the last one again.
const SHORTEST: i64 = 1_000_000_000;

/// Remembers what was told last of one pod or container.
#[derive(Debug, Default)]
pub(crate) struct Sampler(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the rate began to be measured, and the CPU time then.
    base: Option<(i64, u64)>,
    rate: Option<u64>,
    /// Highest CPU time that was told.
    highest: u64,
}

impl Sampler {
    /// Takes CPU nanoseconds at a time in nanoseconds; answers what to tell, which never falls, and the nanoseconds per second since the
    /// last sample, if there was one.
    pub(crate) fn take(&self, at: i64, cpu_nanos: u64) -> (u64, Option<u64>) {
        let mut state = lock(&self.0);
        let total = cpu_nanos.max(state.highest);
        state.highest = total;
        match state.base {
            None => state.base = Some((at, total)),
            Some((then, before)) if at.saturating_sub(then) >= SHORTEST => {
                let elapsed = u128::from(at.abs_diff(then));
                let rate = u128::from(total - before) * 1_000_000_000 / elapsed;
                state.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
                state.base = Some((at, total));
            }
            // The clock was set back: begin anew.
            Some((then, _)) if at < then => state.base = Some((at, total)),
            Some(_) => {}
        }
        (total, state.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn rates_are_of_the_time_between_samples() {
        let sampler = Sampler::default();
        assert_eq!(sampler.take(SECOND, 100), (100, None));
        assert_eq!(sampler.take(SECOND + 5, 200), (200, None), "too soon");
        assert_eq!(sampler.take(3 * SECOND, 1_000_000_100), (1_000_000_100, Some(500_000_000)));
        assert_eq!(sampler.take(3 * SECOND + 1, 1_500_000_100), (1_500_000_100, Some(500_000_000)));
        assert_eq!(sampler.take(4 * SECOND, 2_000_000_100), (2_000_000_100, Some(1_000_000_000)));
    }

    #[test]
    fn cpu_time_never_falls_whatever_is_said() {
        let sampler = Sampler::default();
        sampler.take(SECOND, 500);
        assert_eq!(sampler.take(3 * SECOND, 7), (500, Some(0)));
        assert_eq!(sampler.take(2 * SECOND, 600), (600, Some(0)), "a clock that was set back");
        assert_eq!(sampler.take(i64::MAX, u64::MAX).0, u64::MAX);
    }
}

//! Pulls that run, as gauges.

use std::time::Duration;

use cofferdam_image_store::PullProgress;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Sums over the pulls that run: a series for each would be a series that a pod's author makes.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    running: Gauge,
    done: Gauge,
    wanted: Gauge,
    longest: Gauge,
}

impl Pulls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let pulls = Self::default();
        registry.register("image_pulls", "Pulls that run", pulls.running.clone());
        let bytes = |registry: &mut Registry, name, help, gauge: &Gauge| {
            registry.register_with_unit(name, help, Unit::Bytes, gauge.clone());
        };
        bytes(registry, "image_pulls_wanted", "Bytes of the layers that running pulls want", &pulls.wanted);
        bytes(registry, "image_pulls_done", "Bytes of those layers that came or were there", &pulls.done);
        let help = "Time since the oldest of the running pulls began";
        registry.register_with_unit("image_pulls_longest", help, Unit::Seconds, pulls.longest.clone());
        pulls
    }

    pub(super) fn set(&self, running: &[PullProgress]) {
        let gauge = |gauge: &Gauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        gauge(&self.running, running.len() as u64);
        gauge(&self.wanted, running.iter().map(|pull| pull.bytes_total).sum());
        gauge(&self.done, running.iter().map(|pull| pull.bytes_done).sum());
        gauge(&self.longest, running.iter().map(|pull| pull.elapsed).max().unwrap_or(Duration::ZERO).as_secs());
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn running_pulls_are_added_up() {
        let mut registry = Registry::default();
        let pulls = Pulls::register(&mut registry);
        let pull = |done, wanted, seconds| PullProgress {
            reference: "registry.example/a:1".into(),
            bytes_done: done,
            bytes_total: wanted,
            layers_done: 0,
            layers_total: 1,
            layers: Vec::new(),
            elapsed: Duration::from_secs(seconds),
        };
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        pulls.set(&[pull(10, 100, 5), pull(20, 20, 7)]);
        for line in [
            "image_pulls 2",
            "image_pulls_wanted_bytes 120",
            "image_pulls_done_bytes 30",
            "image_pulls_longest_seconds 7",
        ] {
            assert!(shown().lines().any(|l| l == line), "{line} is not in\n{}", shown());
        }
        pulls.set(&[]);
        assert!(shown().lines().any(|line| line == "image_pulls_wanted_bytes 0"));
    }
}

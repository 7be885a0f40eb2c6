//! The daemon's own metrics, for Prometheus: what it does, not what pods use (that is `stats`).
//!
//! ```text
//!  every RPC ── layer.rs ──► Telemetry ◄── boots, failures
//!                               │  ◄── pods and bytes, looked up when asked
//!                  server.rs  /metrics
//! ```
//!
//! Its calls can be traced, too: [`traces`].
//!
//! Every label value comes from a list of ours, so no client, image or guest can make series.

mod layer;
mod methods;
mod pulls;
mod server;
mod traces;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cofferdam_sandbox::{Kind, SandboxError, TemplateUsage, Timeline};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use self::layer::MeasureCalls;
use self::pulls::Pulls;
pub(crate) use self::server::start;
pub(crate) use self::traces::{TraceCalls, Traces, of_container, of_image, of_pod};
use crate::config::HANDLERS;
use crate::node::Node;
use crate::records::PodPhase;

/// Names and values of a series' labels.
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Seconds: from a status call to a pull.
const CALL_BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];
/// Seconds: from a boot on metal to one in an emulated node.
const BOOT_BUCKETS: [f64; 10] = [0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 60.0];
const STATES: [(PodPhase, &str); 4] = [
    (PodPhase::Creating, "creating"),
    (PodPhase::Ready, "ready"),
    (PodPhase::NotReady, "not_ready"),
    (PodPhase::Removing, "removing"),
];

/// All that is counted.
#[derive(Debug)]
pub(crate) struct Telemetry {
    registry: Registry,
    calls: Family<Labels<2>, Histogram, fn() -> Histogram>,
    boots: Histogram,
    failed_boots: Counter,
    failures: Family<Labels<1>, Counter>,
    pods: Family<Labels<2>, Gauge>,
    other_versions: Family<Labels<1>, Gauge>,
    received: Counter,
    pulls: Pulls,
    behind: Gauge,
    trouble: Gauge,
    panics: Counter,
    dropped_spans: Counter,
    templates: Templates,
}

/// Templates of microVMs, as the sandboxes count them.
#[derive(Debug, Default)]
struct Templates {
    starts: Family<Labels<1>, Counter>,
    failures: Counter,
    ready: Gauge,
    pending: Gauge,
    bytes: Gauge,
    waiting: Gauge,
    waiting_bytes: Gauge,
}

impl Templates {
    fn register(registry: &mut Registry) -> Self {
        let templates = Self::default();
        registry.register(
            "vm_starts",
            "MicroVMs of pods, by what they came from: the pool, a template, or a boot",
            templates.starts.clone(),
        );
        registry.register(
            "vm_template_failures",
            "MicroVMs that could not be restored from their template, and booted then",
            templates.failures.clone(),
        );
        registry.register("vm_templates", "Templates that are ready", templates.ready.clone());
        registry.register(
            "vm_templates_pending",
            "Templates that are asked for and not made yet",
            templates.pending.clone(),
        );
        registry.register_with_unit(
            "vm_template",
            "Memory of the node that templates take",
            Unit::Bytes,
            templates.bytes.clone(),
        );
        registry.register("vm_pool", "MicroVMs that are restored and wait for a pod", templates.waiting.clone());
        registry.register_with_unit(
            "vm_pool",
            "Memory of the node that waiting microVMs take",
            Unit::Bytes,
            templates.waiting_bytes.clone(),
        );
        templates
    }

    fn set(&self, usage: &TemplateUsage) {
        for (from, count) in [("pool", usage.taken), ("template", usage.restored), ("boot", usage.booted)] {
            self.starts.get_or_create(&[("from", from)]).inner().store(count, Relaxed);
        }
        self.failures.inner().store(usage.failed, Relaxed);
        self.ready.set(i64::try_from(usage.ready).unwrap_or(i64::MAX));
        self.pending.set(i64::try_from(usage.pending).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(usage.bytes).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(usage.waiting).unwrap_or(i64::MAX));
        self.waiting_bytes.set(i64::try_from(usage.waiting_bytes).unwrap_or(i64::MAX));
    }
}

fn name_of(kind: Kind) -> &'static str {
    HANDLERS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| name)
}

impl Default for Telemetry {
    fn default() -> Self {
        let calls = Family::new_with_constructor((|| Histogram::new(CALL_BUCKETS)) as fn() -> Histogram);
        let (boots, failures) = (Histogram::new(BOOT_BUCKETS), Family::<Labels<1>, Counter>::default());
        let (pods, received, failed_boots) = (Family::default(), Counter::default(), Counter::default());
        for (name, _) in HANDLERS {
            // There from the beginning: a rate of what appears with its first event misses that one.
            drop(failures.get_or_create(&[("handler", name)]));
        }
        let mut registry = Registry::with_prefix("cofferdam");
        registry.register_with_unit(
            "rpc_duration",
            "Time from a CRI call's arrival to its end, by method and gRPC code; a call whose client left has the code Cancelled",
            Unit::Seconds,
            calls.clone(),
        );
        registry.register_with_unit(
            "vm_boot_duration",
            "Time from a monitor's start to the first answer of the agent in its microVM",
            Unit::Seconds,
            boots.clone(),
        );
        registry.register(
            "vm_boot_failures",
            "MicroVMs whose monitor, kernel or agent did not come up; each is a pod that did not start, too",
            failed_boots.clone(),
        );
        registry.register(
            "pod_start_failures",
            "Pods that did not come up: process, network or agent",
            failures.clone(),
        );
        registry.register("pods", "Pods that are known, by handler and state", pods.clone());
        let other_versions = Family::default();
        registry.register(
            "pods_of_another_version",
            "Running pods whose monitor or agent is not of the daemon's version, by handler",
            other_versions.clone(),
        );
        registry.register_with_unit(
            "image_received",
            "Bytes of layers that registries have sent",
            Unit::Bytes,
            received.clone(),
        );
        let pulls = Pulls::register(&mut registry);
        let (behind, trouble) = (Gauge::default(), Gauge::default());
        registry.register(
            "records_behind",
            "Records of pods and containers that could not be written yet",
            behind.clone(),
        );
        registry.register(
            "state_dir_trouble",
            "1 while the file system of state_dir is full or fails, which Status tells in words",
            trouble.clone(),
        );
        let panics = Counter::default();
        registry.register("panics", "Panics: each is a bug of the daemon, and cost one call or task", panics.clone());
        let dropped_spans = Counter::default();
        registry.register(
            "trace_spans_dropped",
            "Spans that did not reach the collector of tracing.endpoint",
            dropped_spans.clone(),
        );
        let templates = Templates::register(&mut registry);
        Self {
            registry,
            calls,
            boots,
            failed_boots,
            failures,
            pods,
            other_versions,
            received,
            pulls,
            behind,
            trouble,
            panics,
            dropped_spans,
            templates,
        }
    }
}

impl Telemetry {
    /// A call has ended.
    fn call(&self, method: &'static str, code: tonic::Code, took: Duration) {
        let labels = [("method", method), ("code", methods::code(code))];
        self.calls.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A pod came up.
    pub(crate) fn came_up(&self, kind: Kind, timeline: &Timeline) {
        let at = |step| timeline.get(step).copied();
        if kind == Kind::Vm
            && let (Some(spawned), Some(answered)) = (at("monitor_spawned"), at("agent_answered"))
        {
            self.boots.observe(Duration::from_micros(answered.saturating_sub(spawned)).as_secs_f64());
        }
    }

    /// A pod did not come up.
    pub(crate) fn failed(&self, kind: Kind, error: &SandboxError) {
        if matches!(error, SandboxError::Boot(_)) {
            self.failed_boots.inc();
        }
        self.failures.get_or_create(&[("handler", name_of(kind))]).inc();
    }

    /// All as OpenMetrics' text.
    fn show(&self, node: &Node) -> Result<String, std::fmt::Error> {
        let pods: Vec<_> = node.pods().iter().map(|pod| pod.with(|r| (r.kind, r.phase))).collect();
        self.count_pods(&pods);
        let running: Vec<_> = node.pods().iter().filter_map(|pod| pod.sandbox().ok()).collect();
        let running: Vec<_> = running.iter().map(|pod| (pod.kind(), pod.programs().differ())).collect();
        self.count_versions(&running);
        self.behind.set(i64::try_from(node.records.behind()).unwrap_or(i64::MAX));
        self.trouble.set(node.health.trouble().is_some().into());
        self.panics.inner().store(crate::panics::count(), Relaxed);
        self.dropped_spans.inner().store(traces::dropped(), Relaxed);
        self.templates.set(&node.runtime.templates());
        self.received.inner().store(node.store.received_bytes(), Relaxed);
        self.pulls.set(&node.store.progress());
        self.encoded()
    }

    fn count_pods(&self, pods: &[(Kind, PodPhase)]) {
        for (handler, kind) in HANDLERS {
            for (phase, state) in STATES {
                let count = pods.iter().filter(|pod| **pod == (kind, phase)).count();
                let gauge = self.pods.get_or_create(&[("handler", handler), ("state", state)]);
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Kinds of the pods that run, and whether their programs are of another version.
    fn count_versions(&self, running: &[(Kind, bool)]) {
        for (handler, kind) in HANDLERS {
            let count = running.iter().filter(|pod| **pod == (kind, true)).count();
            let gauge = self.other_versions.get_or_create(&[("handler", handler)]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn encoded(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_shown() {
        let telemetry = Telemetry::default();
        telemetry.call("Version", tonic::Code::Ok, Duration::from_millis(4));
        telemetry.call("Version", tonic::Code::Internal, Duration::from_secs(90));
        let timeline = Timeline::from([("monitor_spawned".into(), 1_000_000), ("agent_answered".into(), 1_250_000)]);
        telemetry.came_up(Kind::Vm, &timeline);
        telemetry.came_up(Kind::Host, &timeline);
        telemetry.came_up(Kind::Vm, &Timeline::new());
        let ended = || SandboxError::Ended { id: "p".into() };
        telemetry.failed(Kind::Vm, &ended());
        telemetry.failed(Kind::Vm, &SandboxError::Boot(ended().into()));
        telemetry.count_pods(&[
            (Kind::Vm, PodPhase::Ready),
            (Kind::Vm, PodPhase::Ready),
            (Kind::Host, PodPhase::NotReady),
        ]);
        telemetry.count_versions(&[(Kind::Vm, true), (Kind::Vm, false), (Kind::Host, false)]);
        telemetry.templates.set(&TemplateUsage {
            ready: 1,
            pending: 2,
            bytes: 4096,
            restored: 3,
            booted: 2,
            failed: 1,
            waiting: 4,
            waiting_bytes: 8192,
            taken: 5,
        });
        let text = telemetry.encoded().unwrap();
        for line in [
            "cofferdam_vm_starts_total{from=\"pool\"} 5",
            "cofferdam_vm_starts_total{from=\"template\"} 3",
            "cofferdam_vm_starts_total{from=\"boot\"} 2",
            "cofferdam_vm_template_failures_total 1",
            "cofferdam_vm_templates 1",
            "cofferdam_vm_templates_pending 2",
            "cofferdam_vm_template_bytes 4096",
            "cofferdam_vm_pool 4",
            "cofferdam_vm_pool_bytes 8192",
            "cofferdam_rpc_duration_seconds_bucket{le=\"0.0025\",method=\"Version\",code=\"Ok\"} 0",
            "cofferdam_rpc_duration_seconds_bucket{le=\"0.005\",method=\"Version\",code=\"Ok\"} 1",
            "cofferdam_rpc_duration_seconds_count{method=\"Version\",code=\"Internal\"} 1",
            "cofferdam_vm_boot_duration_seconds_sum 0.25",
            "cofferdam_vm_boot_duration_seconds_count 1",
            "cofferdam_vm_boot_failures_total 1",
            "cofferdam_pod_start_failures_total{handler=\"vm\"} 2",
            "cofferdam_pod_start_failures_total{handler=\"host\"} 0",
            "cofferdam_pods{handler=\"vm\",state=\"ready\"} 2",
            "cofferdam_pods{handler=\"host\",state=\"not_ready\"} 1",
            "cofferdam_pods{handler=\"host\",state=\"ready\"} 0",
            "cofferdam_pods_of_another_version{handler=\"vm\"} 1",
            "cofferdam_pods_of_another_version{handler=\"host\"} 0",
            "cofferdam_image_received_bytes_total 0",
            "cofferdam_trace_spans_dropped_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        telemetry.count_pods(&[]);
        assert!(telemetry.encoded().unwrap().contains("cofferdam_pods{handler=\"vm\",state=\"ready\"} 0"));
    }
}

//! What the kubelet shows at `/metrics/cadvisor` when it takes statistics from CRI.
//!
//! A pod's series have the labels `container` and `image` empty, as those of cAdvisor's pod cgroups, so that sums over containers do
//! not count a pod twice. Seconds are told twice, whole and with their fraction: kubelets before 1.38 know whole numbers only.

mod descriptors;

use std::time::Duration;

use cofferdam_proto::agent::{CgroupUsage, ContainerStatsReply, DeviceIo, Pressure};
use cofferdam_proto::cri;
use cofferdam_sandbox::InterfaceUsage;

pub(crate) use self::descriptors::announced;
use self::descriptors::{BASE, named};
use super::Measured;
use super::show::working_set;
use crate::node::Container;
use crate::records::{ContainerPhase, ContainerRecord};

const SECOND: u64 = 1_000_000_000;
/// CPU period of the kernel's, microseconds, for a container that asked for none.
const PERIOD: i64 = 100_000;
/// CPU shares of the kernel's, likewise.
const SHARES: i64 = 1024;

/// Whether this node's kernel measures pressure.
#[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
pub(crate) fn has_pressure() -> bool {
    std::path::Path::new("/proc/pressure/cpu").exists()
}

/// Series of one pod or one container.
struct Series {
    base: [String; BASE.len()],
    at: i64,
    all: Vec<cri::Metric>,
}

impl Series {
    fn add(&mut self, name: &str, extra: &[&str], value: u64) {
        self.push(name, extra, value, None);
    }

    fn seconds(&mut self, name: &str, extra: &[&str], nanos: u64) {
        let exact = Duration::from_nanos(nanos).as_secs_f64();
        self.push(name, extra, nanos / SECOND, Some(cri::DoubleValue { value: exact }));
    }

    fn push(&mut self, name: &str, extra: &[&str], value: u64, double_value: Option<cri::DoubleValue>) {
        let descriptor = named(name);
        debug_assert!(descriptor.is_some_and(|d| d.labels.len() == extra.len()), "{name} {extra:?}");
        let Some(descriptor) = descriptor else { return };
        self.all.push(cri::Metric {
            name: descriptor.name.into(),
            timestamp: self.at,
            metric_type: descriptor.kind.into(),
            label_values: self.base.iter().cloned().chain(extra.iter().map(|l| (*l).to_owned())).collect(),
            value: Some(cri::UInt64Value { value }),
            double_value,
        });
    }

    fn plain(&mut self, pairs: &[(&str, u64)]) {
        for (name, value) in pairs {
            self.add(name, &[], *value);
        }
    }

    fn cgroup(&mut self, u: &CgroupUsage) {
        self.seconds("container_cpu_usage_seconds_total", &["total"], u.cpu_nanos);
        self.seconds("container_cpu_user_seconds_total", &[], u.cpu_user_nanos);
        self.seconds("container_cpu_system_seconds_total", &[], u.cpu_system_nanos);
        self.seconds("container_cpu_cfs_throttled_seconds_total", &[], u.cpu_throttled_nanos);
        self.plain(&[
            ("container_cpu_cfs_periods_total", u.cpu_periods),
            ("container_cpu_cfs_throttled_periods_total", u.cpu_throttled_periods),
            ("container_memory_cache", u.memory_file_bytes),
            ("container_memory_rss", u.memory_anon_bytes),
            ("container_memory_kernel_usage", u.memory_kernel_bytes),
            ("container_memory_mapped_file", u.memory_mapped_bytes),
            ("container_memory_swap", u.swap_bytes),
            ("container_memory_failcnt", u.memory_limit_hits),
            ("container_memory_usage_bytes", u.memory_bytes),
            ("container_memory_max_usage_bytes", u.memory_peak_bytes.max(u.memory_bytes)),
            ("container_memory_working_set_bytes", working_set(u)),
            ("container_threads", u.tasks),
            ("container_threads_max", u.tasks_limit),
        ]);
        for (kind, count) in [("pgfault", u.page_faults), ("pgmajfault", u.major_page_faults)] {
            // Version 2 counts what is below with what is in it.
            for scope in ["container", "hierarchy"] {
                self.add("container_memory_failures_total", &[kind, scope], count);
            }
        }
        for device in &u.io {
            self.device(device);
        }
        for (name, pressure) in [("cpu", &u.cpu_pressure), ("memory", &u.memory_pressure), ("io", &u.io_pressure)] {
            if let Some(pressure) = pressure {
                self.pressure(name, pressure);
            }
        }
    }

    fn device(&mut self, io: &DeviceIo) {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        let device = format!("/dev/block/{major}:{minor}");
        for (name, value) in [
            ("container_fs_reads_bytes_total", io.read_bytes),
            ("container_fs_reads_total", io.reads),
            ("container_fs_writes_bytes_total", io.written_bytes),
            ("container_fs_writes_total", io.writes),
        ] {
            self.add(name, &[&device], value);
        }
        for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
            self.add("container_blkio_device_usage_total", &[&device, &major, &minor, operation], bytes);
        }
    }

    fn pressure(&mut self, of: &str, pressure: &Pressure) {
        for (kind, stall) in [("waiting", &pressure.some), ("stalled", &pressure.full)] {
            if let Some(stall) = stall {
                let nanos = stall.total_micros.saturating_mul(1000);
                self.seconds(&format!("container_pressure_{of}_{kind}_seconds_total"), &[], nanos);
            }
        }
    }

    fn interface(&mut self, interface: &InterfaceUsage) {
        for (direction, traffic) in [("receive", interface.received), ("transmit", interface.sent)] {
            for (what, value) in [
                ("bytes", traffic.bytes),
                ("packets", traffic.packets),
                ("packets_dropped", traffic.dropped),
                ("errors", traffic.errors),
            ] {
                self.add(&format!("container_network_{direction}_{what}_total"), &[&interface.name], value);
            }
        }
    }

    fn times(&mut self, started: i64) {
        for (name, nanos) in [("container_start_time_seconds", started), ("container_last_seen", self.at)] {
            self.seconds(name, &[], u64::try_from(nanos).unwrap_or(0));
        }
    }

    fn spec(&mut self, r: &ContainerRecord) {
        let asked = r.resources.clone().unwrap_or_default();
        let or = |value: i64, otherwise: i64| u64::try_from(if value > 0 { value } else { otherwise }).unwrap_or(0);
        self.plain(&[
            ("container_spec_cpu_period", or(asked.cpu_period, PERIOD)),
            ("container_spec_cpu_shares", or(asked.cpu_shares, SHARES)),
            ("container_spec_memory_limit_bytes", or(asked.memory_limit, 0)),
            ("container_spec_memory_swap_limit_bytes", or(asked.memory_swap_limit, 0)),
        ]);
    }

    fn files(&mut self, m: &Measured, reply: &ContainerStatsReply) {
        for (name, value) in [
            ("container_fs_usage_bytes", reply.writable_bytes),
            ("container_fs_limit_bytes", reply.disk_bytes),
            ("container_fs_inodes_total", reply.disk_inodes),
            ("container_fs_inodes_free", reply.disk_free_inodes),
        ] {
            self.add(name, &[&m.backing], value);
        }
        let processes = reply.processes.unwrap_or_default();
        self.plain(&[
            ("container_processes", processes.processes),
            ("container_file_descriptors", processes.open_files),
            ("container_sockets", processes.sockets),
        ]);
        self.add("container_ulimits_soft", &["max_open_files"], processes.open_files_limit);
    }
}

/// Processes that the kernel killed for want of memory. An end that was one is counted even if its cgroup is gone.
fn ooms(r: &ContainerRecord, usage: &CgroupUsage) -> u64 {
    usage.oom_kills.max(u64::from(r.reason == "OOMKilled"))
}

/// A container's series. An ended one keeps what an alert may still ask for: that it was killed for want of memory.
fn container(m: &Measured, container: &Container, reply: &ContainerStatsReply) -> cri::ContainerMetrics {
    let r = container.record();
    let image = r.image_name().to_owned();
    let base = [
        format!("{}/{}", m.cgroup, r.id),
        r.id.clone(),
        image,
        r.name.clone(),
        m.record.name.clone(),
        m.record.namespace.clone(),
    ];
    let mut series = Series { base, at: m.at, all: Vec::new() };
    let absent = CgroupUsage::default();
    let usage = reply.usage.as_ref().unwrap_or(&absent);
    if r.phase == ContainerPhase::Running {
        series.cgroup(usage);
        series.times(r.started_at);
        series.spec(&r);
        series.files(m, reply);
    }
    series.add("container_oom_events_total", &[], ooms(&r, usage));
    cri::ContainerMetrics { container_id: r.id, metrics: series.all }
}

/// All series of a measured pod.
pub(crate) fn pod(m: &Measured) -> cri::PodSandboxMetrics {
    let (r, none) = (&m.record, String::new);
    let base = [m.cgroup.clone(), r.id.clone(), none(), none(), r.name.clone(), r.namespace.clone()];
    let mut series = Series { base, at: m.at, all: Vec::new() };
    series.cgroup(&m.usage.cgroup);
    series.times(r.created_at);
    series.add("container_oom_events_total", &[], m.usage.cgroup.oom_kills);
    for interface in &m.usage.interfaces {
        series.interface(interface);
    }
    let seen = |c: &Container| c.with(|r| matches!(r.phase, ContainerPhase::Running | ContainerPhase::Exited));
    let containers = m.containers.iter().filter(|(c, _)| seen(c));
    cri::PodSandboxMetrics {
        pod_sandbox_id: r.id.clone(),
        metrics: series.all,
        container_metrics: containers.map(|(c, reply)| container(m, c, reply)).collect(),
    }
}

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use cofferdam_proto::agent::{ProcessStats, Stall};
use cofferdam_sandbox::{PodUsage, Traffic};

use super::*;
use crate::node::Pod;
use crate::records::tests::{container as record, pod as pod_record};

/// The 45 that critest demands (Appendix B of cri-tools' list), by what follows `container_`.
const MANDATORY: &str = "cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total \
    cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total \
    fs_limit_bytes fs_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total memory_kernel_usage \
    memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes \
    network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total \
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total processes sockets \
    spec_cpu_period spec_cpu_shares spec_memory_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads threads_max \
    blkio_device_usage_total fs_reads_bytes_total fs_reads_total fs_writes_bytes_total fs_writes_total";

fn measured(phases: &[(&str, ContainerPhase)]) -> Measured {
    let stall = Some(Stall { total_micros: 3_000_000, ..Default::default() });
    let pressure = Some(Pressure { some: stall, full: stall });
    let cgroup = CgroupUsage {
        cpu_nanos: 5_500_000_000,
        memory_bytes: 100,
        memory_inactive_file_bytes: 40,
        io: vec![DeviceIo { major: 8, minor: 1, read_bytes: 6, ..Default::default() }],
        cpu_pressure: pressure,
        memory_pressure: pressure,
        io_pressure: pressure,
        ..Default::default()
    };
    let eth0 = InterfaceUsage {
        name: "eth0".into(),
        received: Traffic { bytes: 11, ..Default::default() },
        sent: Traffic { bytes: 12, dropped: 2, ..Default::default() },
    };
    let pod = Pod::new(pod_record("p"), None);
    let containers = phases.iter().map(|(id, phase)| {
        let reply = ContainerStatsReply {
            usage: Some(cgroup.clone()),
            processes: Some(ProcessStats { sockets: 4, ..Default::default() }),
            ..Default::default()
        };
        (Container::new(record(id, *phase), pod.clone()), reply)
    });
    let containers = containers.collect();
    Measured {
        pod: pod.clone(),
        record: pod.record(),
        at: 9_000_000_000,
        usage: PodUsage { cgroup, interfaces: vec![eth0] },
        containers,
        cgroup: "/kubepods/p".into(),
        backing: "/var/lib/cofferdam/pods".into(),
    }
}

fn all(pod: &cri::PodSandboxMetrics) -> Vec<&cri::Metric> {
    pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|c| &c.metrics)).collect()
}

#[test]
fn every_announced_metric_has_a_value_and_every_value_is_announced() {
    let shown = pod(&measured(&[("a", ContainerPhase::Running), ("b", ContainerPhase::Running)]));
    let descriptors: HashMap<_, _> = announced(true).into_iter().map(|d| (d.name.clone(), d)).collect();
    let with_value: HashSet<&str> = all(&shown).iter().map(|m| m.name.as_str()).collect();
    assert_eq!(descriptors.keys().map(String::as_str).collect::<HashSet<_>>(), with_value);
    for metric in all(&shown) {
        let descriptor = &descriptors[&metric.name];
        assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
        assert!(!descriptor.help.is_empty() && metric.value.is_some() && metric.timestamp == 9_000_000_000);
    }
}

#[test]
fn what_critest_demands_is_announced() {
    let names: Vec<String> = announced(false).into_iter().map(|d| d.name).collect();
    let mandatory: Vec<String> = MANDATORY.split_whitespace().map(|name| format!("container_{name}")).collect();
    assert_eq!(mandatory.len(), 45);
    for name in mandatory {
        assert!(names.contains(&name), "{name}");
    }
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "one name twice");
    assert_eq!(announced(true).len(), names.len() + 6);
}

#[test]
fn no_series_is_there_twice() {
    let shown = pod(&measured(&[("a", ContainerPhase::Running), ("b", ContainerPhase::Exited)]));
    let mut seen = HashSet::new();
    for metric in all(&shown) {
        assert!(seen.insert((&metric.name, &metric.label_values)), "{metric:?} twice: the kubelet's page would fail");
    }
}

#[test]
fn labels_are_cadvisor_s() {
    let shown = pod(&measured(&[("a", ContainerPhase::Running)]));
    let find = |metrics: &[cri::Metric], name: &str| metrics.iter().find(|m| m.name == name).unwrap().clone();
    let cpu = find(&shown.container_metrics[0].metrics, "container_cpu_usage_seconds_total");
    let labels = ["/kubepods/p/a", "a", "docker.io/library/busybox:1", "app", "web", "default", "total"];
    assert_eq!((cpu.label_values, cpu.value.unwrap().value), (labels.map(str::to_owned).to_vec(), 5));
    assert_eq!(cpu.double_value.unwrap().value, 5.5, "kubelets of 1.38 read the fraction");
    let sent = find(&shown.metrics, "container_network_transmit_packets_dropped_total");
    let labels = ["/kubepods/p", "p", "", "", "web", "default", "eth0"];
    assert_eq!((sent.label_values, sent.value.unwrap().value), (labels.map(str::to_owned).to_vec(), 2));
    let set = find(&shown.metrics, "container_memory_working_set_bytes");
    assert_eq!((set.value.unwrap().value, set.metric_type()), (60, cri::MetricType::Gauge));
}

#[test]
fn an_oom_is_seen_after_the_end_and_a_container_that_is_made_is_not() {
    let m = measured(&[("a", ContainerPhase::Running), ("b", ContainerPhase::Created)]);
    m.containers[0].0.change(|r| {
        r.end(137, "OOMKilled", "", 500);
        true
    });
    let shown = pod(&m);
    assert_eq!(shown.container_metrics.len(), 1);
    let [only] = &shown.container_metrics[0].metrics[..] else { panic!("an ended container uses nothing") };
    assert_eq!((only.name.as_str(), only.value.unwrap().value), ("container_oom_events_total", 1));
}

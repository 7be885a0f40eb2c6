//! The metrics that are announced: names, help and labels as cAdvisor has them, since dashboards and alerts are written for those.
//!
//! Of the optional ones these are left out, as an ordinary pod has no value for them: `container_spec_cpu_quota`,
//! `container_spec_memory_reservation_limit_bytes`, and the two of hugetlb.

use cofferdam_proto::cri;

/// Labels of every metric.
pub(super) const BASE: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];

/// One metric.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    help: &'static str,
    /// After those of [`BASE`].
    pub(super) labels: &'static [&'static str],
    pub(super) kind: cri::MetricType,
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Descriptor {
    Descriptor { name, help, labels, kind: cri::MetricType::Counter }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Descriptor {
    Descriptor { name, help, labels, kind: cri::MetricType::Gauge }
}

const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];

/// Those that every node has.
pub(super) const ALWAYS: [Descriptor; 46] = [
    counter("container_cpu_usage_seconds_total", &["cpu"], "Cumulative cpu time consumed in seconds."),
    counter("container_cpu_user_seconds_total", &[], "Cumulative user cpu time consumed in seconds."),
    counter("container_cpu_system_seconds_total", &[], "Cumulative system cpu time consumed in seconds."),
    counter("container_cpu_cfs_periods_total", &[], "Number of elapsed enforcement period intervals."),
    counter("container_cpu_cfs_throttled_periods_total", &[], "Number of throttled period intervals."),
    counter("container_cpu_cfs_throttled_seconds_total", &[], "Total time duration the container has been throttled."),
    gauge("container_memory_cache", &[], "Number of bytes of page cache memory."),
    gauge("container_memory_rss", &[], "Size of RSS in bytes."),
    gauge("container_memory_kernel_usage", &[], "Size of kernel memory allocated in bytes."),
    gauge("container_memory_mapped_file", &[], "Size of memory mapped files in bytes."),
    gauge("container_memory_swap", &[], "Container swap usage in bytes."),
    counter("container_memory_failcnt", &[], "Number of memory usage hits limits"),
    gauge("container_memory_usage_bytes", &[], "Current memory usage in bytes, whenever it was accessed"),
    gauge("container_memory_max_usage_bytes", &[], "Maximum memory usage recorded in bytes"),
    gauge("container_memory_working_set_bytes", &[], "Current working set in bytes."),
    counter(
        "container_memory_failures_total",
        &["failure_type", "scope"],
        "Cumulative count of memory allocation failures.",
    ),
    counter("container_oom_events_total", &[], "Count of out of memory events observed for the container"),
    gauge("container_fs_inodes_free", DEVICE, "Number of available Inodes"),
    gauge("container_fs_inodes_total", DEVICE, "Number of Inodes"),
    gauge("container_fs_limit_bytes", DEVICE, "Number of bytes that the container can use of this filesystem."),
    gauge("container_fs_usage_bytes", DEVICE, "Number of bytes that the container uses of this filesystem."),
    counter("container_fs_reads_bytes_total", DEVICE, "Cumulative count of bytes read"),
    counter("container_fs_reads_total", DEVICE, "Cumulative count of reads completed"),
    counter("container_fs_writes_bytes_total", DEVICE, "Cumulative count of bytes written"),
    counter("container_fs_writes_total", DEVICE, "Cumulative count of writes completed"),
    counter(
        "container_blkio_device_usage_total",
        &["device", "major", "minor", "operation"],
        "Blkio Device bytes usage",
    ),
    counter("container_network_receive_bytes_total", INTERFACE, "Cumulative count of bytes received"),
    counter("container_network_receive_packets_total", INTERFACE, "Cumulative count of packets received"),
    counter(
        "container_network_receive_packets_dropped_total",
        INTERFACE,
        "Cumulative count of packets dropped while receiving",
    ),
    counter(
        "container_network_receive_errors_total",
        INTERFACE,
        "Cumulative count of errors encountered while receiving",
    ),
    counter("container_network_transmit_bytes_total", INTERFACE, "Cumulative count of bytes transmitted"),
    counter("container_network_transmit_packets_total", INTERFACE, "Cumulative count of packets transmitted"),
    counter(
        "container_network_transmit_packets_dropped_total",
        INTERFACE,
        "Cumulative count of packets dropped while transmitting",
    ),
    counter(
        "container_network_transmit_errors_total",
        INTERFACE,
        "Cumulative count of errors encountered while transmitting",
    ),
    gauge("container_processes", &[], "Number of processes running inside the container."),
    gauge("container_file_descriptors", &[], "Number of open file descriptors for the container."),
    gauge("container_sockets", &[], "Number of open sockets for the container."),
    gauge("container_threads", &[], "Number of threads running inside the container"),
    gauge("container_threads_max", &[], "Maximum number of threads allowed inside the container, 0 for no limit"),
    gauge("container_ulimits_soft", &["ulimit"], "Soft ulimit values for the container root process."),
    gauge("container_last_seen", &[], "Last time a container was seen by the exporter"),
    gauge("container_start_time_seconds", &[], "Start time of the container since unix epoch in seconds."),
    gauge("container_spec_cpu_period", &[], "CPU period of the container."),
    gauge("container_spec_cpu_shares", &[], "CPU share of the container."),
    gauge("container_spec_memory_limit_bytes", &[], "Memory limit for the container, 0 for none."),
    gauge("container_spec_memory_swap_limit_bytes", &[], "Memory swap limit for the container, 0 for none."),
];

/// Those of a node whose kernel measures pressure.
pub(super) const PRESSURE: [Descriptor; 6] = [
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        &[],
        "Total time duration no tasks in the container could make progress due to CPU congestion.",
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        &[],
        "Total time duration tasks in the container have waited due to CPU congestion.",
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        &[],
        "Total time duration no tasks in the container could make progress due to IO congestion.",
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        &[],
        "Total time duration tasks in the container have waited due to IO congestion.",
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        &[],
        "Total time duration no tasks in the container could make progress due to memory congestion.",
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        &[],
        "Total time duration tasks in the container have waited due to memory congestion.",
    ),
];

/// One by its name.
pub(super) fn named(name: &str) -> Option<&'static Descriptor> {
    ALWAYS.iter().chain(&PRESSURE).find(|d| d.name == name)
}

/// All that this node has, for the kubelet, which asks once.
pub(crate) fn announced(pressure: bool) -> Vec<cri::MetricDescriptor> {
    let show = |d: &Descriptor| cri::MetricDescriptor {
        name: d.name.into(),
        help: d.help.into(),
        label_keys: BASE.iter().chain(d.labels).map(|label| (*label).to_owned()).collect(),
    };
    ALWAYS.iter().chain(PRESSURE.iter().filter(|_| pressure)).map(show).collect()
}

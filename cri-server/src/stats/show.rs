//! From what was measured to CRI's messages.

use cofferdam_proto::agent::{CgroupUsage, ContainerStatsReply, Pressure, Stall};
use cofferdam_proto::cri;
use cofferdam_sandbox::InterfaceUsage;

use super::{Measured, Sampler};
use crate::node::Container;
use crate::records::{ContainerPhase, ContainerRecord, PodRecord};

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

/// What of memory is not given back under pressure: the kubelet ranks pods by it.
pub(super) fn working_set(usage: &CgroupUsage) -> u64 {
    usage.memory_bytes.saturating_sub(usage.memory_inactive_file_bytes)
}

fn stall(s: Option<&Stall>) -> Option<cri::PsiData> {
    let s = s?;
    let total = s.total_micros.saturating_mul(1000);
    Some(cri::PsiData { total, avg10: s.avg10, avg60: s.avg60, avg300: s.avg300 })
}

fn psi(pressure: Option<&Pressure>) -> Option<cri::PsiStats> {
    let p = pressure?;
    Some(cri::PsiStats { full: stall(p.full.as_ref()), some: stall(p.some.as_ref()) })
}

fn cpu(usage: &CgroupUsage, at: i64, sampler: &Sampler) -> cri::CpuUsage {
    let (total, rate) = sampler.take(at, usage.cpu_nanos);
    cri::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: value(total),
        usage_nano_cores: rate.and_then(value),
        psi: psi(usage.cpu_pressure.as_ref()),
    }
}

fn memory(usage: &CgroupUsage, at: i64) -> cri::MemoryUsage {
    let working_set = working_set(usage);
    let limited = usage.memory_limit_bytes > 0;
    cri::MemoryUsage {
        timestamp: at,
        working_set_bytes: value(working_set),
        available_bytes: limited.then_some(usage.memory_limit_bytes.saturating_sub(working_set)).and_then(value),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.memory_anon_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
        psi: psi(usage.memory_pressure.as_ref()),
    }
}

fn swap(usage: &CgroupUsage, at: i64) -> cri::SwapUsage {
    cri::SwapUsage {
        timestamp: at,
        swap_available_bytes: value(usage.swap_limit_bytes.saturating_sub(usage.swap_bytes)),
        swap_usage_bytes: value(usage.swap_bytes),
    }
}

fn io(usage: &CgroupUsage, at: i64) -> cri::IoUsage {
    cri::IoUsage { timestamp: at, psi: psi(usage.io_pressure.as_ref()) }
}

/// A container's identity, with nothing measured: it runs no more, nor does its pod.
pub(crate) fn unmeasured(r: &ContainerRecord) -> cri::ContainerStats {
    let attributes = cri::ContainerAttributes {
        id: r.id.clone(),
        metadata: Some(cri::ContainerMetadata { name: r.name.clone(), attempt: r.attempt }),
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
    };
    cri::ContainerStats { attributes: Some(attributes), ..Default::default() }
}

/// A container of a measured pod.
pub(crate) fn container(m: &Measured, container: &Container, reply: &ContainerStatsReply) -> cri::ContainerStats {
    let absent = CgroupUsage::default();
    let usage = reply.usage.as_ref().unwrap_or(&absent);
    cri::ContainerStats {
        cpu: Some(cpu(usage, m.at, &container.cpu)),
        memory: Some(memory(usage, m.at)),
        writable_layer: Some(cri::FilesystemUsage {
            timestamp: m.at,
            // On the node: the kubelet looks for it, and a path that is not there fails its statistics of all pods.
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: m.backing.clone() }),
            used_bytes: value(reply.writable_bytes),
            inodes_used: value(reply.writable_inodes),
        }),
        swap: Some(swap(usage, m.at)),
        io: Some(io(usage, m.at)),
        ..container.with(unmeasured)
    }
}

fn interface(i: &InterfaceUsage) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: i.name.clone(),
        rx_bytes: value(i.received.bytes),
        rx_errors: value(i.received.errors),
        tx_bytes: value(i.sent.bytes),
        tx_errors: value(i.sent.errors),
    }
}

/// CRI: the first is not among the others.
fn network(interfaces: &[InterfaceUsage], at: i64) -> Option<cri::NetworkUsage> {
    let (first, others) = interfaces.split_first()?;
    let interfaces = others.iter().map(interface).collect();
    Some(cri::NetworkUsage { timestamp: at, default_interface: Some(interface(first)), interfaces })
}

fn pod_attributes(r: &PodRecord) -> cri::PodSandboxAttributes {
    cri::PodSandboxAttributes {
        id: r.id.clone(),
        metadata: crate::translate::filters::pod_metadata(r),
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
    }
}

/// A measured pod with its running containers.
pub(crate) fn pod(m: &Measured) -> cri::PodSandboxStats {
    let usage = &m.usage.cgroup;
    let running = m.containers.iter().filter(|(c, _)| c.with(|r| r.phase == ContainerPhase::Running));
    cri::PodSandboxStats {
        attributes: Some(pod_attributes(&m.record)),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: Some(cpu(usage, m.at, &m.pod.cpu)),
            memory: Some(memory(usage, m.at)),
            network: network(&m.usage.interfaces, m.at),
            process: Some(cri::ProcessUsage { timestamp: m.at, process_count: value(usage.tasks) }),
            containers: running.map(|(c, reply)| container(m, c, reply)).collect(),
            io: Some(io(usage, m.at)),
        }),
        windows: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_kubelet_expects() {
        let usage = CgroupUsage {
            memory_bytes: 100,
            memory_inactive_file_bytes: 30,
            memory_limit_bytes: 200,
            memory_anon_bytes: 50,
            ..Default::default()
        };
        let shown = memory(&usage, 5);
        let got = [shown.working_set_bytes, shown.available_bytes, shown.usage_bytes, shown.rss_bytes];
        assert_eq!(got.map(|v| v.unwrap().value), [70, 130, 100, 50]);
        assert_eq!(memory(&CgroupUsage { memory_limit_bytes: 0, ..usage.clone() }, 5).available_bytes, None);
        let odd = CgroupUsage { memory_inactive_file_bytes: 500, ..usage };
        assert_eq!(working_set(&odd), 0, "the two files were read at different moments");
    }

    #[test]
    fn the_first_interface_is_the_default_one() {
        let named = |name: &str| InterfaceUsage { name: name.into(), ..Default::default() };
        let shown = network(&[named("eth0"), named("net1")], 5).unwrap();
        assert_eq!(shown.default_interface.unwrap().name, "eth0");
        assert_eq!(shown.interfaces.len(), 1);
        assert!(network(&[], 5).is_none());
    }
}

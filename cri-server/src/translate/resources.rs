//! Limits of containers, and the size of a microVM from the limits of its pod.

use std::path::Path;

use cofferdam_proto::agent::Resources;
use cofferdam_proto::cri::LinuxContainerResources;
use cofferdam_proto::monitor::MAX_VCPUS;
use cofferdam_sandbox::{Kind, VmSize, guest_mib};

use crate::error::CriError;
use crate::records::ResourcesRecord;

const MIB: i64 = 1 << 20;
/// No pod gets more, whatever it asks: 1 TiB.
const MAX_MEMORY_MIB: i64 = 1 << 20;

/// What a pod may use on the node, MiB: the sum of its containers' limits and its overhead, where each container has a limit.
pub(crate) fn pod_memory_mib(
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
) -> Option<u32> {
    let limit = resources?.memory_limit_in_bytes;
    let overhead = overhead.map_or(0, |o| o.memory_limit_in_bytes.max(0));
    let mib = limit.saturating_add(overhead).div_euclid(MIB).min(MAX_MEMORY_MIB);
    (limit > 0).then_some(u32::try_from(mib).unwrap_or(0))
}

/// Thousandths of a processor that a limit is; nothing where there is none.
pub(crate) fn cpu_millis(r: &LinuxContainerResources) -> Option<i64> {
    (r.cpu_quota > 0 && r.cpu_period > 0).then(|| r.cpu_quota.saturating_mul(1000) / r.cpu_period)
}

/// The size of a pod's microVM: the configured one, or more where the sums of its containers (`resources`) with the pod's `overhead`
/// ask for it, less what the node needs beside the guest; never more vCPUs than the node has, or a VM can have.
pub(crate) fn vm_size(
    least: VmSize,
    resources: Option<&LinuxContainerResources>,
    overhead: Option<&LinuxContainerResources>,
    node_cpus: u8,
) -> VmSize {
    let memory = pod_memory_mib(resources, overhead).map_or(0, guest_mib);
    let millis = resources.and_then(cpu_millis);
    let millis = millis.map_or(0, |millis| millis.saturating_add(overhead.and_then(cpu_millis).unwrap_or(0)));
    let cpus = millis.div_euclid(1000) + i64::from(millis % 1000 != 0);
    let vcpus = cpus.min(node_cpus.min(MAX_VCPUS).into()).max(least.vcpus.into());
    VmSize { vcpus: u8::try_from(vcpus).unwrap_or(least.vcpus), memory_mib: memory.max(least.memory_mib) }
}

/// What is echoed in a container's status.
pub(crate) fn record(r: &LinuxContainerResources) -> ResourcesRecord {
    ResourcesRecord {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit: r.memory_limit_in_bytes,
        memory_swap_limit: r.memory_swap_limit_in_bytes,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        unified: r.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
    }
}

/// And back.
pub(crate) fn status(r: &ResourcesRecord) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: r.cpu_period,
        cpu_quota: r.cpu_quota,
        cpu_shares: r.cpu_shares,
        memory_limit_in_bytes: r.memory_limit,
        memory_swap_limit_in_bytes: r.memory_swap_limit,
        oom_score_adj: r.oom_score_adj,
        cpuset_cpus: r.cpuset_cpus.clone(),
        cpuset_mems: r.cpuset_mems.clone(),
        unified: r.unified.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        ..Default::default()
    }
}

/// What a container has after an update: what the update names, and what it had. Its oom_score_adj is set once, at its creation.
pub(crate) fn merge(before: &ResourcesRecord, asked: &LinuxContainerResources) -> ResourcesRecord {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut unified = before.unified.clone();
    unified.extend(asked.unified.iter().map(|(k, v)| (k.clone(), v.clone())));
    ResourcesRecord {
        cpu_period: number(asked.cpu_period, before.cpu_period),
        cpu_quota: number(asked.cpu_quota, before.cpu_quota),
        cpu_shares: number(asked.cpu_shares, before.cpu_shares),
        memory_limit: number(asked.memory_limit_in_bytes, before.memory_limit),
        // Memory and swap together: an old sum says nothing beside a new memory limit.
        memory_swap_limit: if asked.memory_limit_in_bytes == 0 {
            number(asked.memory_swap_limit_in_bytes, before.memory_swap_limit)
        } else {
            asked.memory_swap_limit_in_bytes
        },
        oom_score_adj: before.oom_score_adj,
        cpuset_cpus: text(&asked.cpuset_cpus, &before.cpuset_cpus),
        cpuset_mems: text(&asked.cpuset_mems, &before.cpuset_mems),
        unified,
    }
}

/// Limits of huge pages as cgroup files. The kubelet sends a zero for each page size of the *node*: where a size is missing it changes
/// nothing. More than zero is refused where it could not be kept.
#[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
fn hugepages(r: &LinuxContainerResources, kind: Kind) -> Result<Vec<(String, String)>, CriError> {
    let mut knobs = Vec::new();
    for limit in &r.hugepage_limits {
        let (size, bytes) = (&limit.page_size, limit.limit);
        let kib = page_kib(size).ok_or_else(|| {
            CriError::invalid(format!("hugepage limit: {:?} is no page size such as 2MB", crate::node::shorten(size)))
        })?;
        if kind == Kind::Vm {
            if bytes > 0 {
                return Err(CriError::invalid(format!(
                    "hugepages of {size} cannot be given: a vm pod's guest has none; ask for none, or use the host handler"
                )));
            }
            continue;
        }
        if bytes > 0 && !Path::new(&format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB")).exists() {
            return Err(CriError::invalid(format!("this node has no hugepages of {size}")));
        }
        knobs.extend(
            [format!("hugetlb.{size}.max"), format!("hugetlb.{size}.rsvd.max")].map(|k| (k, bytes.to_string())),
        );
    }
    Ok(knobs)
}

/// "2MB" in KiB.
fn page_kib(size: &str) -> Option<u64> {
    let (digits, unit) = size.split_at_checked(size.len().checked_sub(2)?)?;
    let unit = match unit {
        "KB" => 1,
        "MB" => 1 << 10,
        "GB" => 1 << 20,
        _ => return None,
    };
    let number = if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse::<u64>().ok()? } else { return None };
    number.checked_mul(unit)
}

/// What the agent is asked.
pub(crate) fn agent(r: &LinuxContainerResources, kind: Kind) -> Result<Resources, CriError> {
    let unsigned = |what: &str, value: i64| {
        u64::try_from(value).map_err(|_| CriError::invalid(format!("{what} {value} is negative")))
    };
    for (what, set) in [("cpuset_cpus", &r.cpuset_cpus), ("cpuset_mems", &r.cpuset_mems)] {
        if set.len() > 1024 || !set.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
            return Err(CriError::invalid(format!("{what} {set:?} is not a list such as 0-3,7")));
        }
    }
    for (key, value) in &r.unified {
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'.';
        if !key.contains('.') || key.len() > 64 || !key.bytes().all(word) || key.starts_with("cgroup.") {
            return Err(CriError::invalid(format!("unified key {key:?} is not a controller's file")));
        }
        if value.len() > 256 || value.bytes().any(|b| !(0x20..0x7f).contains(&b)) {
            return Err(CriError::invalid(format!("unified value of {key} has a character that no cgroup file takes")));
        }
    }
    let mut unified = r.unified.clone();
    unified.extend(hugepages(r, kind)?);
    // Processors are numbered anew in a guest: the node's sets mean nothing there.
    let set = |text: &String| if kind == Kind::Vm { String::new() } else { text.clone() };
    Ok(Resources {
        cpu_shares: unsigned("cpu_shares", r.cpu_shares)?,
        cpu_quota_us: r.cpu_quota,
        cpu_period_us: unsigned("cpu_period", r.cpu_period)?,
        cpuset_cpus: set(&r.cpuset_cpus),
        cpuset_mems: set(&r.cpuset_mems),
        memory_limit_bytes: r.memory_limit_in_bytes,
        memory_swap_bytes: r.memory_swap_limit_in_bytes,
        pids_limit: 0,
        unified,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cofferdam_proto::cri::HugepageLimit;

    use super::*;

    const LEAST: VmSize = VmSize { vcpus: 1, memory_mib: 256 };

    fn limits(memory_mib: i64, quota: i64) -> LinuxContainerResources {
        LinuxContainerResources {
            memory_limit_in_bytes: memory_mib * MIB,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        }
    }

    #[test]
    fn a_vm_grows_with_its_pod() {
        let size = |r: Option<LinuxContainerResources>, o: Option<LinuxContainerResources>| {
            let VmSize { vcpus, memory_mib } = vm_size(LEAST, r.as_ref(), o.as_ref(), 4);
            (vcpus, memory_mib)
        };
        assert_eq!(size(None, None), (1, 256));
        assert_eq!(size(Some(limits(0, 0)), None), (1, 256));
        assert_eq!(size(Some(limits(128, 50_000)), None), (1, 256));
        assert_eq!(size(Some(limits(1024, 150_000)), None), (2, 1004), "less what the monitor needs");
        assert_eq!(size(Some(limits(1024, 200_000)), Some(limits(64, 10_000))), (3, 1067));
        assert_eq!(size(None, Some(limits(512, 300_000))), (1, 256), "overhead alone limits nothing");
        assert_eq!(size(Some(limits(0, 9_000_000)), None), (4, 256), "no more than the node has");
        let huge = vm_size(LEAST, Some(&limits(0, 9_000_000)), None, 200);
        assert_eq!(huge.vcpus, MAX_VCPUS, "no more than a VM can have");
        assert_eq!(size(Some(limits(i64::MAX / MIB, i64::MAX)), Some(limits(1 << 40, 1))).1, 1_040_435);
        assert_eq!(size(Some(limits(-5, -1)), None), (1, 256));
    }

    #[test]
    fn limits_reach_the_agent() {
        let mut asked = limits(32, 20_000);
        asked.cpu_shares = 512;
        asked.memory_swap_limit_in_bytes = 64 * MIB;
        asked.cpuset_cpus = "0-1".into();
        asked.unified = HashMap::from([("memory.min".into(), "0".into()), ("memory.high".into(), "max".into())]);
        asked.hugepage_limits = vec![pages("2MB", 0), pages("16GB", 0)];
        let host = agent(&asked, Kind::Host).unwrap();
        assert_eq!((host.cpu_shares, host.cpu_quota_us, host.cpu_period_us), (512, 20_000, 100_000));
        assert_eq!((host.memory_limit_bytes, host.memory_swap_bytes), (32 * MIB, 64 * MIB));
        assert_eq!((host.cpuset_cpus.as_str(), host.unified["memory.high"].as_str()), ("0-1", "max"));
        assert_eq!(agent(&asked, Kind::Vm).unwrap().cpuset_cpus, "");
        assert_eq!(host.unified["hugetlb.2MB.max"], "0");
        assert_eq!(agent(&asked, Kind::Vm).unwrap().unified, asked.unified);
        assert_eq!(status(&record(&asked)).unified, asked.unified);
    }

    fn pages(size: &str, limit: u64) -> HugepageLimit {
        HugepageLimit { page_size: size.into(), limit }
    }

    #[test]
    fn hugepages_that_are_not_there_are_refused() {
        for (size, limit, kind, message) in [
            ("2MB", 1 << 21, Kind::Vm, "a vm pod's guest has none"),
            ("3MB", 3 << 20, Kind::Host, "this node has no hugepages of 3MB"),
            ("../x", 0, Kind::Host, "no page size"),
            ("+2MB", 0, Kind::Vm, "no page size"),
            ("", 0, Kind::Host, "no page size"),
            ("MB\u{e9}", 0, Kind::Host, "no page size"),
            ("18446744073709551615GB", 0, Kind::Host, "no page size"),
        ] {
            let asked = LinuxContainerResources { hugepage_limits: vec![pages(size, limit)], ..Default::default() };
            let error = agent(&asked, kind).unwrap_err().to_string();
            assert!(error.contains(message), "{size}: {error}");
        }
    }

    #[test]
    fn an_update_keeps_what_it_does_not_name() {
        let mut had = limits(64, 20_000);
        had.cpu_shares = 512;
        had.memory_swap_limit_in_bytes = 64 * MIB;
        had.cpuset_cpus = "0".into();
        had.oom_score_adj = 900;
        had.unified = HashMap::from([("memory.low".into(), "0".into())]);
        let before = record(&had);
        assert_eq!(merge(&before, &LinuxContainerResources::default()), before);
        let mut asked = limits(128, -1);
        asked.oom_score_adj = -5;
        asked.unified = HashMap::from([("memory.high".into(), "max".into())]);
        let after = merge(&before, &asked);
        assert_eq!((after.cpu_quota, after.cpu_period, after.cpu_shares), (-1, 100_000, 512));
        assert_eq!(
            (after.memory_limit, after.memory_swap_limit),
            (128 * MIB, 0),
            "64 MiB of memory and swap is no more"
        );
        assert_eq!((after.oom_score_adj, after.cpuset_cpus.as_str(), after.unified.len()), (900, "0", 2));
        let swap = LinuxContainerResources { memory_swap_limit_in_bytes: 99, ..Default::default() };
        assert_eq!(merge(&before, &swap).memory_swap_limit, 99);
    }

    #[test]
    fn crooked_limits_are_refused() {
        type Spoil = fn(&mut LinuxContainerResources);
        let rows: [Spoil; 7] = [
            |r| r.cpu_shares = -1,
            |r| r.cpuset_cpus = "0\n1".into(),
            |r| drop(r.unified.insert("../memory.max".into(), "1".into())),
            |r| drop(r.unified.insert("cgroup.procs".into(), "1".into())),
            |r| drop(r.unified.insert("memory".into(), "1".into())),
            |r| drop(r.unified.insert("memory.max".into(), "1\n2".into())),
            |r| r.cpu_period = -1,
        ];
        for (number, spoil) in rows.into_iter().enumerate() {
            let mut asked = limits(1, 1);
            spoil(&mut asked);
            assert!(agent(&asked, Kind::Host).is_err(), "row {number}");
        }
    }
}

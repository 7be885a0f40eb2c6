//! Resident memory, CPU time and wake-ups of processes.

use std::fs;
use std::time::Duration;

use crate::failure::{Doing, Outcome};

/// Resident MiB of a process, leaving out mappings of `ignore_from_mib` MiB and more (a guest's memory).
pub(crate) fn rss_mib(pid: u32, ignore_from_mib: u64) -> Outcome<f64> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/smaps")).doing(&format!("read the memory map of process {pid}"))?;
    let mut kib = 0;
    let mut ignored = false;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let value = |w: &mut std::str::SplitWhitespace<'_>| w.next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        match words.next() {
            Some("Size:") => ignored = value(&mut words) >= ignore_from_mib * 1024,
            Some("Rss:") if !ignored => kib += value(&mut words),
            _ => {}
        }
    }
    Ok(kib as f64 / 1024.0)
}

/// CPU time so far of the cgroup that a process is in: a monitor's holds what KVM does for it in kernel threads, too.
pub(super) fn cpu_time(pid: u32) -> Outcome<Duration> {
    let path = fs::read_to_string(format!("/proc/{pid}/cgroup")).doing(&format!("read the cgroup of process {pid}"))?;
    let path = path.trim().trim_start_matches("0::").to_owned();
    let stat = fs::read_to_string(format!("/sys/fs/cgroup{path}/cpu.stat")).doing("read a cgroup's CPU time")?;
    let used = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|us| us.trim().parse().ok());
    used.map(Duration::from_micros).ok_or_else(|| format!("cpu.stat of {path} has no usage: {stat}").into())
}

/// How often the threads of a process have slept so far: each is a wake-up.
pub(super) fn sleeps(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    let count = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = text.lines().find(|l| l.starts_with("voluntary_ctxt_switches")).unwrap_or("");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.flatten().map(count).sum()
}

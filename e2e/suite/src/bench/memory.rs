//! Resident memory, CPU time and wake-ups of processes, from /proc.

use std::fs;
use std::time::Duration;

use crate::failure::{Doing, Outcome};

/// Process ids whose name (as the kernel cuts it, 15 bytes) is `name`.
pub(super) fn named(name: &str) -> Vec<u32> {
    let cut = &name[..name.len().min(15)];
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
    let is_it = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == cut);
    pids.filter(is_it).collect()
}

/// Resident MiB of a process, leaving out mappings of `ignore_from_mib` MiB and more (a guest's memory).
pub(super) fn rss_mib(pid: u32, ignore_from_mib: u64) -> Outcome<f64> {
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

/// CPU time of a process so far, guest time included.
pub(super) fn cpu_time(pid: u32) -> Outcome<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).doing(&format!("read the CPU time of process {pid}"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    // Fields 14 and 15 of proc_pid_stat(5), in clock ticks of 10 ms.
    let ticks = |n: usize| fields.get(n).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
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

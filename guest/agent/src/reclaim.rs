//! A guest that idles gives its page cache back.
//!
//! What a guest keeps of files is, for the node, memory that the pod uses. The node may have it better, and has most of it in its own page cache
//! anyway. So a guest that did next to nothing for a while lets go of what it keeps beyond a little; its free memory goes back to the node by the
//! balloon device's free page reporting. That goes by blocks of 2 MiB, so free memory that lies scattered is brought together.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::agent::Agent;
use crate::sys::{self, write_knob};

/// Between two looks. Each wakes an idle guest.
const INTERVAL: Duration = Duration::from_secs(10);
/// A guest idles that used less than a tenth of its processors since the last look.
const BUSY_PART: u64 = 10;
/// Page cache, in KiB, that an idle guest keeps beside the programs that are mapped.
const KEPT_KIB: u64 = 16 << 10;
/// Least to let go of at a time, KiB.
const WORTH_KIB: u64 = 4 << 10;

/// Free memory in pieces smaller than a block that is reported, KiB, from which on it is worth
/// bringing together.
const SCATTERED_KIB: u64 = 16 << 10;
/// Pages of 4 KiB in such a block: two to the power of this.
const BLOCK_ORDER: usize = 9;

/// Lets go of page cache for ever; returns when the kernel does not tell what is needed.
pub async fn run(agent: Arc<Agent>, containers: PathBuf) {
    // Names and attributes of files cost the node more than the guest: each that the guest knows is kept open there.
    let _ = write_knob(Path::new("/proc/sys/vm/vfs_cache_pressure"), "400");
    // By itself the kernel keeps up to an eighth of the memory that a program freed in a processor's
    // own list, from where it does not go back to the node; so it is 1/64 for all processors together.
    let _ = write_knob(Path::new("/proc/sys/vm/percpu_pagelist_high_fraction"), "64");
    let Some(mut before) = Cpu::now() else { return };
    // What stayed scattered when it was brought together last.
    let mut stayed = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(now) = Cpu::now() else { return };
        if now.idled_since(&before) {
            let excess = fs::read_to_string("/proc/meminfo").map_or(0, |text| excess_kib(&text));
            if excess >= WORTH_KIB {
                let amount = format!("{excess}K");
                // It fails when the kernel finds less than that: what it found is gone all the same.
                write_apart(&agent, &containers.join("memory.reclaim"), &amount).await;
            }
            let now = scattered();
            stayed = stayed.min(now);
            if now >= stayed + SCATTERED_KIB {
                write_apart(&agent, Path::new("/proc/sys/vm/compact_memory"), "1").await;
                stayed = scattered();
            }
        }
        // What it took to let go counts for nothing.
        before = Cpu::now().unwrap_or(now);
    }
}

/// Writes to a file of the kernel's in a process of its own, since it takes its time and the agent
/// has but one thread.
async fn write_apart(agent: &Agent, knob: &Path, text: &str) {
    match sys::fork(0, None, || u8::from(write_knob(knob, text).is_err())) {
        Ok(child) => drop(agent.reaper.watch(child.pid).await),
        Err(error) => tracing::warn!(%error, "memory is kept: no process can be started"),
    }
}

fn scattered() -> u64 {
    fs::read_to_string("/proc/buddyinfo").map_or(0, |text| scattered_kib(&text))
}

/// Free memory in pieces smaller than a block: a line for each zone has the numbers of free pieces
/// of 1, 2, 4, ... pages.
fn scattered_kib(buddyinfo: &str) -> u64 {
    let zone = |line: &str| -> u64 {
        let counts = line.split_once(", zone").map_or("", |(_, rest)| rest).split_whitespace().skip(1);
        counts.take(BLOCK_ORDER).enumerate().map(|(order, n)| n.parse::<u64>().unwrap_or(0) * (4 << order)).sum()
    };
    buddyinfo.lines().map(zone).sum()
}

/// Page cache beyond what an idle guest keeps.
fn excess_kib(meminfo: &str) -> u64 {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
    };
    let files = field("Active(file):") + field("Inactive(file):");
    files.saturating_sub(field("Mapped:")).saturating_sub(KEPT_KIB)
}

/// Ticks of all processors since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cpu {
    idle: u64,
    all: u64,
}

impl Cpu {
    fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    fn parse(stat: &str) -> Option<Self> {
        let ticks: Vec<u64> =
            stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).flat_map(str::parse).collect();
        // A processor that waits for a disk is not idle: what is being read would be read again.
        let [_, _, _, idle, _, ..] = ticks[..] else { return None };
        Some(Self { idle, all: ticks.iter().sum() })
    }

    fn idled_since(&self, before: &Self) -> bool {
        let all = self.all.saturating_sub(before.all);
        let idle = self.idle.saturating_sub(before.idle);
        // An idle guest counts its ticks late: with none at all there is nothing to tell.
        all > 0 && all.saturating_sub(idle) * BUSY_PART < all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read() {
        let stat = "cpu  10 1 20 300 40 5 6 7 100 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(Cpu::parse(stat), Some(Cpu { idle: 300, all: 389 }));
        assert_eq!(Cpu::parse("intr 1"), None);
        assert!(Cpu::now().is_some());
    }

    #[test]
    fn a_guest_idles_that_used_less_than_a_tenth() {
        let before = Cpu { idle: 100, all: 200 };
        assert!(Cpu { idle: 1091, all: 1200 }.idled_since(&Cpu { idle: 100, all: 200 }));
        assert!(!Cpu { idle: 1000, all: 1200 }.idled_since(&before), "exactly a tenth");
        assert!(!before.idled_since(&before));
        assert!(!Cpu { idle: 0, all: 0 }.idled_since(&before), "a clock that went back");
    }

    #[test]
    fn pieces_smaller_than_a_block_are_scattered() {
        let text = "Node 0, zone      DMA      1      0      0      0      0      0      0      0      1      1      3 \n\
                    Node 0, zone    DMA32      2      3      0      0      0      0      0      0      0      9      9\n";
        assert_eq!(scattered_kib(text), 4 + 1024 + 8 + 24);
        assert_eq!(scattered_kib("no such thing"), 0);
    }

    #[test]
    fn what_is_mapped_and_a_little_more_is_kept() {
        let meminfo =
            "MemTotal: 250000 kB\nActive(file):      30000 kB\nInactive(file):    20000 kB\nMapped:   10000 kB\n";
        assert_eq!(excess_kib(meminfo), 50_000 - 10_000 - KEPT_KIB);
        assert_eq!(excess_kib(""), 0);
        assert_eq!(excess_kib("Inactive(file): 1 kB\n"), 0);
    }
}

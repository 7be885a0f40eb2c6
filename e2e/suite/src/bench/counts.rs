//! What a vm pod's start and one exec in it cost, in numbers that no emulator changes: exits of the
//! vCPUs, interrupts, requests to the file server, page faults and system calls of the monitor.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Samples;
use super::histogram::Histogram;
use super::report::Row;
use crate::crictl::BUSYBOX;
use crate::failure::{Doing, Failure, Outcome};
use crate::monitor;
use crate::rpc::{Client, Net};

const PODS: &str = "/run/cofferdam/pods";
/// Pods that are counted.
const STARTS: usize = 5;

type Number = fn(&Counts) -> u64;

/// A row for a start and one for an exec, and what is counted.
const COUNTED: [(&str, &str, Number); 5] = [
    ("vm_start_exits", "vm_exec_exits", |counts| counts.exits),
    ("vm_start_interrupts", "vm_exec_interrupts", |counts| counts.interrupts),
    ("vm_start_file_requests", "vm_exec_file_requests", |counts| counts.file_requests),
    ("vm_start_page_faults", "vm_exec_page_faults", |counts| counts.page_faults),
    ("vm_start_system_calls", "vm_exec_system_calls", |counts| counts.system_calls),
];

pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    COUNTED.iter().flat_map(|(start, exec, _)| [*start, *exec]).map(|row| samples.row(row, Some("vm"), "")).collect()
}

/// What one monitor has done so far.
pub(super) struct Counts {
    pub(super) exits: u64,
    pub(super) interrupts: u64,
    pub(super) file_requests: u64,
    /// By the opcode of FUSE.
    pub(super) file_requests_by_kind: BTreeMap<u32, u64>,
    pub(super) page_faults: u64,
    pub(super) system_calls: u64,
}

/// Counts, which takes time: no start that is counted is timed.
pub(super) async fn measure(ours: &mut Client, samples: &mut Samples) -> Outcome {
    println!("bench: counts of starts and execs");
    for _ in 0..STARTS {
        let calls = SystemCalls::count()?;
        let started = ours.start("vm", Net::Cni, BUSYBOX).await?;
        let at_start = Counts::of(&started.pod, &calls)?;
        ours.exec_true(&started.container).await?;
        let of_exec = Counts::of(&started.pod, &calls)?.since(&at_start);
        for (start, exec, number) in COUNTED {
            samples.add(start, "vm", number(&at_start) as f64);
            samples.add(exec, "vm", number(&of_exec) as f64);
        }
        ours.remove(&started.pod).await?;
    }
    Ok(())
}

impl Counts {
    /// Of the monitor of `pod`.
    pub(super) fn of(pod: &str, calls: &SystemCalls) -> Outcome<Self> {
        let folder = Path::new(PODS).join(pod);
        let status = monitor::status(&folder.join("control.sock"))?;
        let record = folder.join("process.json");
        let text = fs::read_to_string(&record).doing(&format!("read {}", record.display()))?;
        let record: Value = serde_json::from_str(&text).doing("read a process's record")?;
        let pid = record["pid"].as_u64().ok_or_else(|| Failure(format!("there is no pid in {text}")))?;
        Ok(Self {
            exits: status.vcpu_exits,
            interrupts: status.interrupts,
            file_requests: status.file_requests,
            file_requests_by_kind: status.file_requests_by_kind.into_iter().collect(),
            page_faults: page_faults(pid)?,
            system_calls: calls.of(pid)?,
        })
    }

    /// What was added to `earlier`. A thread that has ended since takes its system calls with it.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(earlier.exits),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            file_requests: self.file_requests.saturating_sub(earlier.file_requests),
            file_requests_by_kind: added(&self.file_requests_by_kind, &earlier.file_requests_by_kind),
            page_faults: self.page_faults.saturating_sub(earlier.page_faults),
            system_calls: self.system_calls.saturating_sub(earlier.system_calls),
        }
    }
}

/// What was added to the counts of `earlier`, without what stayed.
pub(super) fn added<K: Ord + Copy>(now: &BTreeMap<K, u64>, earlier: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    now.iter()
        .map(|(key, count)| (*key, count.saturating_sub(earlier.get(key).copied().unwrap_or(0))))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Page faults of a process, minor and major ones (proc(5), `/proc/pid/stat`, fields 10 and 12).
fn page_faults(pid: u64) -> Outcome<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).doing(&format!("read {path}"))?;
    let after_name = text.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    number(10).zip(number(12)).map(|(minor, major)| minor + major).ok_or_else(|| Failure(format!("{path} is {text}")))
}

/// Counts the system calls of each thread of the node, until it is dropped.
pub(super) struct SystemCalls(Histogram);

impl SystemCalls {
    pub(super) fn count() -> Outcome<Self> {
        Ok(Self(Histogram::start("raw_syscalls/sys_enter", "common_pid")?))
    }

    /// Of all threads of the process `pid` that are there now.
    fn of(&self, pid: u64) -> Outcome<u64> {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).doing("list a monitor's threads")?;
        let threads: Vec<u64> = threads
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
            .collect();
        Ok(self.0.read()?.into_iter().filter(|(thread, _)| threads.contains(thread)).map(|(_, hits)| hits).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stayed_is_not_counted() {
        let earlier = BTreeMap::from([(1, 5), (3, 7)]);
        assert_eq!(added(&BTreeMap::from([(1, 5), (3, 9), (15, 4)]), &earlier), BTreeMap::from([(3, 2), (15, 4)]));
    }

    #[test]
    fn faults_of_this_process_are_read() {
        assert!(page_faults(std::process::id().into()).unwrap() > 0);
    }
}

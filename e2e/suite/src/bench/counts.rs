//! What a vm pod's start and one exec in it cost, in numbers that no emulator changes: exits of the
//! vCPUs, interrupts, requests to the file server, page faults and system calls of the monitor.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Samples;
use super::report::Row;
use crate::crictl::BUSYBOX;
use crate::failure::{Doing, Failure, Outcome};
use crate::monitor;
use crate::rpc::{Client, Net};

const PODS: &str = "/run/cofferdam/pods";
const TRACING: &str = "/sys/kernel/tracing";
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
struct Counts {
    exits: u64,
    interrupts: u64,
    file_requests: u64,
    page_faults: u64,
    system_calls: u64,
}

/// Counts, which takes time: no start that is counted is timed.
pub(super) async fn measure(ours: &mut Client, samples: &mut Samples) -> Outcome {
    println!("bench: counts of starts and execs");
    for _ in 0..STARTS {
        let calls = SystemCalls::count()?;
        let started = ours.start("vm", Net::Cni, BUSYBOX).await?;
        let at_start = Counts::of(&started.pod, &calls)?;
        ours.exec_true(&started.container).await?;
        let after = Counts::of(&started.pod, &calls)?;
        for (start, exec, number) in COUNTED {
            samples.add(start, "vm", number(&at_start) as f64);
            samples.add(exec, "vm", (number(&after) - number(&at_start)) as f64);
        }
        ours.remove(&started.pod).await?;
    }
    Ok(())
}

impl Counts {
    fn of(pod: &str, calls: &SystemCalls) -> Outcome<Self> {
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
            page_faults: page_faults(pid)?,
            system_calls: calls.of(pid)?,
        })
    }
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

/// Counts the system calls of each thread of the node, by a histogram of the kernel, until it is
/// dropped.
struct SystemCalls(PathBuf);

impl SystemCalls {
    fn count() -> Outcome<Self> {
        let event = Path::new(TRACING).join("events/raw_syscalls/sys_enter");
        if !event.exists() {
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("none", TRACING, "tracefs", flags, None).doing("mount tracefs")?;
        }
        fs::write(event.join("trigger"), "hist:keys=common_pid:size=65536").doing("count system calls")?;
        Ok(Self(event))
    }

    /// Of all threads of the process `pid` that are there now.
    fn of(&self, pid: u64) -> Outcome<u64> {
        let path = self.0.join("hist");
        let text = fs::read_to_string(&path).doing(&format!("read {}", path.display()))?;
        let threads = fs::read_dir(format!("/proc/{pid}/task")).doing("list a monitor's threads")?;
        let threads: Vec<u64> = threads
            .flatten()
            .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
            .collect();
        Ok(text.lines().filter_map(line).filter(|(thread, _)| threads.contains(thread)).map(|(_, hits)| hits).sum())
    }
}

impl Drop for SystemCalls {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.0.join("trigger"), "!hist:keys=common_pid:size=65536") {
            println!("bench: system calls are still counted: {error}");
        }
    }
}

/// A thread and its hits: `{ common_pid: 123 } hitcount: 45`.
fn line(text: &str) -> Option<(u64, u64)> {
    let (thread, hits) = text.trim().strip_prefix("{ common_pid:")?.split_once("} hitcount:")?;
    Some((thread.trim().parse().ok()?, hits.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_histogram_is_read() {
        assert_eq!(line("{ common_pid:       1234 } hitcount:         56"), Some((1234, 56)));
        assert_eq!(line("Totals:"), None);
    }

    #[test]
    fn faults_of_this_process_are_read() {
        assert!(page_faults(std::process::id().into()).unwrap() > 0);
    }
}

//! Numbers of processes: an agent counts in its own PID namespace, the node in the outermost one.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::path::Path;

/// Cgroups below a container's that are looked into.
const MAX_CGROUPS: usize = 4096;

/// The node's number of the process that the supervisor `supervisor` calls `agent_pid`, of those in the cgroup `cgroup` (as in
/// /proc/PID/cgroup) and below. Blocks.
pub(crate) fn on_node(cgroup: &str, supervisor: u32, agent_pid: u32) -> Option<u32> {
    let own = fs::read_to_string(format!("/proc/{supervisor}/status")).ok()?;
    let depth = numbers(&own).len().checked_sub(1)?;
    let root = Path::new("/sys/fs/cgroup").join(cgroup.trim_start_matches('/'));
    let mut folders = vec![root];
    for _ in 0..MAX_CGROUPS {
        let folder = folders.pop()?;
        let list = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let is_it = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            numbers(&status).get(depth) == Some(&agent_pid)
        };
        if let Some(pid) = list.lines().filter_map(|line| line.parse().ok()).find(is_it) {
            return Some(pid);
        }
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    None
}

/// A process' numbers from the outermost PID namespace to its own, by its /proc/PID/status.
fn numbers(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_namespace() {
        assert_eq!(numbers("Name:\tsh\nNSpid:\t4711\t7\t1\nNSpgid:\t1\n"), [4711, 7, 1]);
        assert!(numbers("Name:\tsh\n").is_empty());
    }

    #[test]
    fn a_process_is_found_in_its_cgroup_only() {
        let me = std::process::id();
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::")) else { return };
        if Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/')).join("cgroup.procs").exists() {
            assert_eq!(on_node(own, me, me), Some(me));
        }
        assert_eq!(on_node("/there/is/none", me, me), None);
    }
}

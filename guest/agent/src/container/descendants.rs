//! Ends an exec with what it started, in a cgroup that it shares with the rest of the container.
//!
//! An exec begins a session of its own. What belongs to it: processes of that session, and children of such processes,
//! also in sessions of their own. A daemon that left both (it forked twice and began a session) lives on, as it does
//! with other runtimes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::stats::proc;
use crate::sys;

/// Most rounds: each finds what was forked during the one before.
const ROUNDS: usize = 16;

/// Why an exec is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its time is over: all of it ends.
    TimedOut,
    /// Its caller is gone: what ignores SIGHUP (nohup) lives on.
    HungUp,
}

/// What /proc tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: i32,
    session: i32,
}

/// Kills the process `leader`, a child that was not reaped yet, and what belongs to it in `cgroup`.
pub fn kill(cgroup: &Cgroup, leader: Pid, pidfd: &OwnedFd, why: Why) {
    let leader = leader.as_raw_nonzero().get();
    let mut done = HashSet::from([leader]);
    if let Some(proc) = proc() {
        for _ in 0..ROUNDS {
            let all: HashMap<i32, Stat> = cgroup
                .pids()
                .iter()
                .map(|pid| pid.as_raw_nonzero().get())
                .filter_map(|pid| Some((pid, stat(&proc, pid)?)))
                .collect();
            let mut found: Vec<i32> = belonging(&all, leader).into_iter().filter(|pid| !done.contains(pid)).collect();
            found.retain(|pid| why == Why::TimedOut || !ignores_hangup(&proc, *pid));
            if found.is_empty() {
                break;
            }
            for pid in found {
                done.insert(pid);
                kill_one(&proc, pid, all[&pid]);
            }
        }
    }
    let _ = sys::pidfd_kill(pidfd, libc::SIGKILL);
}

/// Kills `pid` if it is still the process that `was` told of: its number may have been given away since.
fn kill_one(proc: &str, pid: i32, was: Stat) {
    let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return };
    if stat(proc, pid).is_some_and(|now| now.session == was.session) {
        let _ = sys::pidfd_kill(&pidfd, libc::SIGKILL);
    }
}

fn belonging(all: &HashMap<i32, Stat>, leader: i32) -> HashSet<i32> {
    let mut ours = HashSet::from([leader]);
    loop {
        let belongs =
            |pid: &i32, stat: &Stat| stat.session == leader || (*pid != leader && ours.contains(&stat.parent));
        let more: Vec<i32> =
            all.iter().filter(|(pid, stat)| !ours.contains(pid) && belongs(pid, stat)).map(|(pid, _)| *pid).collect();
        if more.is_empty() {
            return ours;
        }
        ours.extend(more);
    }
}

fn stat(proc: &str, pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("{proc}/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid pgrp session ..`; the name may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { parent, session })
}

fn ignores_hangup(proc: &str, pid: i32) -> bool {
    let status = fs::read_to_string(format!("{proc}/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "12 (a) S 1 (b)) S 3 4 5 0 -1 4194304";
        assert_eq!(parse_stat(text), Some(Stat { parent: 3, session: 5 }));
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[test]
    fn a_session_and_its_children_belong_together() {
        let all = HashMap::from(
            [(10, 1, 10), (11, 10, 10), (12, 11, 12), (13, 12, 13), (14, 1, 10), (20, 1, 20), (21, 20, 20)]
                .map(|(pid, parent, session)| (pid, Stat { parent, session })),
        );
        let mut ours: Vec<i32> = belonging(&all, 10).into_iter().collect();
        ours.sort_unstable();
        assert_eq!(ours, [10, 11, 12, 13, 14]);
    }
}

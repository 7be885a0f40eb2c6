//! Ends an exec with what it started, in a cgroup that it shares with the rest of the container.
//!
//! An exec begins a session of its own. What belongs to it: processes of that session, and children of such processes,
//! also in sessions of their own. A daemon that left both (it forked twice and began a session) lives on, as it does
//! with other runtimes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::stats::proc;
use crate::sys;

/// How long processes may take to stop, and the pause between two looks at them. One that was told
/// to stop could start others until then, which on a loaded machine is a while.
const LIMIT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1);

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
    /// It is stopped or dead.
    is_still: bool,
}

/// Kills the process `leader`, a child that was not reaped yet, and what belongs to it in `cgroup`.
///
/// All of them are stopped first, and killed when no one of them can start another process any more.
/// A process that was started meanwhile would otherwise have lost its parent, and with it the only
/// sign that it belongs to the exec.
pub async fn kill(cgroup: &Cgroup, leader: Pid, pidfd: &OwnedFd, why: Why) {
    let number = leader.as_raw_nonzero().get();
    let mut found: HashMap<i32, OwnedFd> = HashMap::new();
    let (began, mut were_still) = (Instant::now(), false);
    let _ = sys::pidfd_kill(pidfd, libc::SIGSTOP);
    if let Some(proc) = proc() {
        while began.elapsed() < LIMIT {
            let pids = cgroup.pids();
            let pids = pids.iter().map(|pid| pid.as_raw_nonzero().get());
            let all: HashMap<i32, Stat> = pids.filter_map(|pid| Some((pid, stat(&proc, pid)?))).collect();
            let mut ours = belonging(&all, number);
            ours.retain(|pid| *pid == number || why == Why::TimedOut || !ignores_hangup(&proc, *pid));
            let are_still = ours.iter().all(|pid| all.get(pid).is_none_or(|stat| stat.is_still));
            let before = found.len();
            for pid in ours.into_iter().filter(|pid| *pid != number) {
                if !found.contains_key(&pid)
                    && let Some(stopped) = stop(&proc, pid, all[&pid])
                {
                    found.insert(pid, stopped);
                }
            }
            let is_new = found.len() > before;
            if were_still && !is_new {
                break;
            }
            // One more look: one that is still now may have started another after the list was read.
            were_still = are_still && !is_new;
            tokio::time::sleep(PAUSE).await;
        }
    }
    for pidfd in found.values().chain([pidfd]) {
        let _ = sys::pidfd_kill(pidfd, libc::SIGKILL);
    }
}

/// Stops `pid` if it is still the process that `was` told of: its number may have been given away
/// since.
fn stop(proc: &str, pid: i32, was: Stat) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    stat(proc, pid).filter(|now| now.session == was.session)?;
    sys::pidfd_kill(&pidfd, libc::SIGSTOP).ok()?;
    Some(pidfd)
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
    let mut fields = rest.split_whitespace();
    let is_still = matches!(fields.next()?, "T" | "t" | "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Stat { parent, session, is_still })
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
        assert_eq!(parse_stat(text), Some(Stat { parent: 3, session: 5, is_still: false }));
        assert!(parse_stat("12 (a) T 3 4 5 0 -1 4194304").is_some_and(|stat| stat.is_still));
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[test]
    fn a_session_and_its_children_belong_together() {
        let all = HashMap::from(
            [(10, 1, 10), (11, 10, 10), (12, 11, 12), (13, 12, 13), (14, 1, 10), (20, 1, 20), (21, 20, 20)]
                .map(|(pid, parent, session)| (pid, Stat { parent, session, is_still: false })),
        );
        let mut ours: Vec<i32> = belonging(&all, 10).into_iter().collect();
        ours.sort_unstable();
        assert_eq!(ours, [10, 11, 12, 13, 14]);
    }
}

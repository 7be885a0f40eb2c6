//! Plugins that outlived the daemon which started them.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a killed process may take to go.
const LIMIT: Duration = Duration::from_secs(10);

/// Kills every plugin that works for `container`, with what it started, and waits for their ends: one that goes on with an ADD would
/// undo the DEL that follows. They are known by their environment, which is not inherited from anything else. Blocks.
pub(crate) fn kill(container: &str) {
    let sign = format!("CNI_CONTAINERID={container}\0").into_bytes();
    let works_for_it = |pid: Pid| {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.windows(sign.len()).any(|window| window == sign)
    };
    // Once more until there are none: one may have started another meanwhile.
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(Pid::from_raw);
        let killed: Vec<OwnedFd> = pids
            .filter(|pid| works_for_it(*pid))
            .filter_map(|pid| {
                let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
                // Looked at again with the process held: the id cannot be another's any more.
                works_for_it(pid).then_some(pidfd)
            })
            .filter(|pidfd| pidfd_send_signal(pidfd, Signal::KILL).is_ok())
            .collect();
        if killed.is_empty() {
            return;
        }
        tracing::info!(pod = container, processes = killed.len(), "killed plugins of an interrupted launch");
        for pidfd in &killed {
            let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&limit));
        }
    }
}

//! A pod that has a share and no machine.

use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};

use super::super::*;
use crate::testing::{Node, new_id};

/// A process that only enters a mount namespace, and ends with its value.
pub(super) struct StandIn(pub(super) libc::pid_t);

impl StandIn {
    fn enter(mounts: &OwnedFd) -> Self {
        // SAFETY: the child makes system calls alone, and ends with the thread that made it.
        match unsafe { libc::fork() } {
            // SAFETY: system calls alone, on numbers.
            0 => unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::setns(mounts.as_raw_fd(), libc::CLONE_NEWNS) < 0 {
                    libc::_exit(1);
                }
                // Files of other tests, which would keep their mounts busy.
                libc::close_range(0, libc::c_uint::MAX, 0);
                loop {
                    libc::pause();
                }
            },
            pid => Self(pid),
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // SAFETY: neither call touches memory; the number is that of a child that nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A pod with a share and no machine.
pub(super) struct TestPod {
    pub(super) dirs: Dirs,
    /// The root of its share, as a path.
    pub(super) share: PathBuf,
    /// The same, as the monitor has it.
    pub(super) root: OwnedFd,
    pub(super) monitor: Option<StandIn>,
}

impl TestPod {
    pub(super) fn new(node: &Node) -> Self {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        let Share { root, mounts } = create(&dirs).unwrap();
        let monitor = StandIn::enter(&mounts);
        let pid = monitor.0.unsigned_abs();
        let share = PathBuf::from(format!("/proc/{pid}/root"));
        let there = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        while there(&share.join(".")) != there(&dirs.tree()) {
            assert!(crate::process::find(crate::process::identify(pid).unwrap().record).is_some(), "it has ended");
            std::thread::yield_now();
        }
        crate::dirs::write(&dirs.process(), &crate::process::identify(pid).unwrap().record).unwrap();
        Self { dirs, share, root, monitor: Some(monitor) }
    }

    /// One of a daemon before the mount namespaces.
    pub(super) fn old(node: &Node) -> Self {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.tree()).unwrap();
        let share = dirs.old_share();
        make_private(&share).unwrap();
        let read_only = Access { read_only: true, ..Access::default() };
        let root = copy(&path_fd(&dirs.tree()).unwrap(), read_only, None).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&root, "", rustix::fs::CWD, &share, flags).unwrap();
        mount_change(&share, MountPropagationFlags::UNBINDABLE).unwrap();
        Self { dirs, share, root, monitor: None }
    }

    /// Where a path of the agent's is on this machine.
    pub(super) fn seen(&self, guest: &str) -> PathBuf {
        PathBuf::from(guest.replacen(GUEST_SHARE, self.share.to_str().unwrap(), 1))
    }

    /// Takes it down as a pod is; nothing of it may be left on the node.
    pub(super) fn remove(self) {
        drop(self.monitor);
        unmount_below(&self.dirs.run).unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        assert!(!mounts.contains(self.dirs.run.to_str().unwrap()), "{mounts}");
        crate::dirs::delete(&self.dirs.run).unwrap();
    }
}

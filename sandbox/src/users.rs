#![allow(unsafe_code)] // clone3 of a child that only waits, and mount_setattr
//! A pod's user namespace, and the namespaces that belong to it.
//!
//! A namespace belongs for good to the user namespace in which it was made: only then the pod's root may bind to port 80, send pings or
//! set the pod's sysctls. The daemon has many threads, so it cannot enter another user namespace itself: a child is born
//! into all of them at once, its maps are written from outside, the namespaces are opened, and the child is killed.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::error::{Doing, SandboxError};
use crate::spec::UserRange;

/// Namespaces of a pod with users of its own.
#[derive(Debug)]
pub(crate) struct Spaces {
    /// Its users.
    pub(crate) user: OwnedFd,
    /// Its network; nothing is set up in it.
    pub(crate) net: OwnedFd,
    /// Its IPC.
    pub(crate) ipc: OwnedFd,
    /// Its host name.
    pub(crate) uts: OwnedFd,
}

/// Makes them. Blocks for a moment.
pub(crate) fn create(range: UserRange) -> Result<Spaces, SandboxError> {
    let step = || format!("make a user namespace for {} users from {} on", range.length, range.host_id);
    let child = Child::start(libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS, range).doing(step)?;
    let open = |name: &str| child.open(name).doing(step);
    Ok(Spaces { user: open("user")?, net: open("net")?, ipc: open("ipc")?, uts: open("uts")? })
}

/// Only the users, for mounts whose owners are mapped. Blocks for a moment.
pub(crate) fn mapping(range: UserRange) -> Result<OwnedFd, SandboxError> {
    let child = Child::start(0, range);
    child.and_then(|child| child.open("user")).doing(|| format!("map {} users from {} on", range.length, range.host_id))
}

/// Tries whether the kernel makes user namespaces and the file system of `folder` can map owners.
pub(crate) fn try_out(folder: &Path) -> Result<(), String> {
    let text = |e: SandboxError| match std::error::Error::source(&e) {
        Some(why) => format!("cannot make a user namespace: {why}"),
        None => e.to_string(),
    };
    let spaces = create(UserRange { host_id: 65_536, length: 65_536 }).map_err(text)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, folder, flags)
        .map_err(|e| format!("cannot copy the mount of {}: {e}", folder.display()))?;
    map_owners(&tree, &spaces.user, false)
        .map_err(|e| format!("the file system of {} cannot map owners: {e}", folder.display()))
}

/// Makes a mount that is not mounted anywhere yet, or all in its tree, show their files' owners as `users`.
pub(crate) fn map_owners(tree: &OwnedFd, users: &OwnedFd, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().unsigned_abs()),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated empty string and `attr` has the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A process that waits in its namespaces until this is dropped.
struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

impl Child {
    /// Starts it in users of its own, whose map is `range`, and in the namespaces `more`.
    fn start(more: libc::c_int, range: UserRange) -> io::Result<Self> {
        let child = Self::born(libc::CLONE_NEWUSER | more)?;
        let line = format!("0 {} {}\n", range.host_id, range.length);
        for name in ["uid_map", "gid_map"] {
            // One write: the kernel takes the first for the whole.
            fs::write(child.file(name), &line)?;
        }
        Ok(child)
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(name)
    }

    fn open(&self, namespace: &str) -> io::Result<OwnedFd> {
        File::open(self.file("ns").join(namespace)).map(OwnedFd::from)
    }

    fn born(spaces: libc::c_int) -> io::Result<Self> {
        let mut pidfd: RawFd = -1;
        // SAFETY: all-zero bytes are valid arguments: without a stack the child has a copy of this one.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = u64::from((spaces | libc::CLONE_PIDFD).cast_unsigned());
        args.pidfd = (&raw mut pidfd) as u64;
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        // SAFETY: `args` and `pidfd` live until the call returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            // SAFETY: the child shares no memory and makes system calls alone, none of which takes a lock that another thread
            // may have held. It keeps nothing that it inherited, and does not outlive the daemon.
            unsafe {
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Self { pid: i32::try_from(pid).unwrap_or(i32::MAX), pidfd })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_belong_to_the_new_users() {
        const NS_GET_USERNS: libc::Ioctl = 0xb701;
        let spaces = match create(UserRange { host_id: 70_000, length: 1000 }) {
            Ok(spaces) => spaces,
            Err(error) => return eprintln!("skipped: no user namespaces for this user on this machine: {error}"),
        };
        let same = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| (s.st_dev, s.st_ino)).unwrap();
        for namespace in [&spaces.net, &spaces.ipc, &spaces.uts] {
            // SAFETY: the request takes no argument and returns a descriptor.
            let owner = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
            assert!(owner >= 0, "{}", io::Error::last_os_error());
            // SAFETY: just returned, and owned by nobody.
            let owner = unsafe { OwnedFd::from_raw_fd(owner) };
            assert_eq!(same(&owner), same(&spaces.user));
        }
    }
}

#![allow(unsafe_code)] // unshare
//! Where the exports of a pod are mounted: in a mount namespace that only the pod's monitor is in.
//!
//! ```text
//! the node's namespace          the pod's namespace
//!   /run/.../tree/   ── cloned ──►  /              read-only; the monitor's root
//!   /srv/volume      ── cloned ──►  /volumes/KEY   mounted by a thread of the daemon that enters the namespace
//! ```
//!
//! Nothing of this is mounted in the node's own namespace. So a monitor can name no file of the
//! node but those that its pod was given, no other process of the node gets copies of a pod's
//! mounts, and all of them are gone with the monitor.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsmount, fsopen, mount_change, move_mount, unmount,
};
use rustix::process::{fchdir, pivot_root};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
    unshare_unsafe,
};

use crate::dirs::{self, Dirs, ProcessRecord};
use crate::error::{Doing, SandboxError};
use crate::netns::on_a_thread;
use crate::process;

/// A mount namespace with nothing in it, of which those of pods are copies: what a pod's costs does
/// not grow with the node's mounts.
static EMPTY: OnceLock<OwnedFd> = OnceLock::new();

/// Makes a namespace in which nothing is but `root`, a mount that has no place yet. Blocks for a
/// moment.
pub(super) fn create(root: &OwnedFd) -> Result<OwnedFd, SandboxError> {
    let step = || "make the pod's mount namespace".to_owned();
    let empty = match EMPTY.get() {
        Some(empty) => empty,
        None => {
            let made = make_empty()?;
            EMPTY.get_or_init(|| made)
        }
    };
    on_a_thread("mounts", || {
        let own = own_namespaces().doing(step)?;
        detach_thread().doing(step)?;
        move_into_link_name_space(empty.as_fd(), Some(LinkNameSpaceType::Mount)).doing(step)?;
        // SAFETY: only the mount namespace of this thread changes, which ends soon.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(step)?;
        move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(step)?;
        mount_namespace(&own).doing(step)
    })
}

/// A namespace with an empty root that takes no writes.
fn make_empty() -> Result<OwnedFd, SandboxError> {
    let step = || "make an empty mount namespace".to_owned();
    on_a_thread("mounts", || {
        let own = own_namespaces().doing(step)?;
        // SAFETY: only the mount namespace, and with it the working directory, of this thread changes, which ends soon.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.doing(step)?;
        // What is unmounted here stays mounted on the node.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).doing(step)?;
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).doing(step)?;
        fsconfig_create(&context).doing(step)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(step)?;
        move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(step)?;
        fchdir(&root).doing(step)?;
        // Stacks the node's root upon the new one (pivot_root(2)), so that it can go with all that
        // is on it.
        pivot_root(".", ".").doing(|| "leave the node's root; is it the initramfs itself?".into())?;
        unmount(".", UnmountFlags::DETACH).doing(step)?;
        mount_namespace(&own).doing(step)
    })
}

/// The folder of the calling thread's namespaces. It shows them however the thread's root changes.
fn own_namespaces() -> rustix::io::Result<OwnedFd> {
    openat(CWD, "/proc/thread-self/ns", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn mount_namespace(own: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    openat(own, "mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Gives the calling thread a root and working directory of its own, without which it cannot enter
/// a mount namespace.
fn detach_thread() -> rustix::io::Result<()> {
    // SAFETY: nothing that other threads have changes.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}

/// Where a pod's exports are.
pub(super) enum Place {
    /// In the mount namespace of its monitor.
    Pod {
        /// The monitor.
        pidfd: OwnedFd,
        /// Device and inode of the share's root.
        root: (u64, u64),
    },
    /// Below a folder of the node, which daemons before the namespaces took.
    Node(PathBuf),
    /// Nowhere: the pod's monitor has ended, and they have gone with it.
    Gone,
}

impl Place {
    /// Of a running or ended pod.
    pub(super) fn of(dirs: &Dirs) -> Result<Self, SandboxError> {
        if dirs.old_share().exists() {
            return Ok(Self::Node(dirs.old_share()));
        }
        let record: Option<ProcessRecord> = dirs::read(&dirs.process())?;
        let Some(pidfd) = record.and_then(process::find) else { return Ok(Self::Gone) };
        Ok(Self::Pod { pidfd, root: identity(&dirs.tree())? })
    }

    /// Runs `work` where the exports can be mounted, with the path of the share's root there;
    /// nothing if they are gone. In `work`, every other path is one of the pod's namespace too.
    fn inside<T: Send>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, SandboxError> + Send,
    ) -> Result<Option<T>, SandboxError> {
        let (pidfd, root) = match self {
            Self::Pod { pidfd, root } => (pidfd, root),
            Self::Node(share) => return work(share).map(Some),
            Self::Gone => return Ok(None),
        };
        let step = || "enter the pod's mount namespace".to_owned();
        on_a_thread("mounts", || {
            detach_thread().doing(step)?;
            match move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::MOUNT) {
                Err(rustix::io::Errno::SRCH) => return Ok(None), // it has just ended
                other => other.doing(step)?,
            }
            // A monitor that is still in the node's namespace: nothing must be mounted there.
            if identity(Path::new("/"))? != *root {
                return Err("the pod's monitor has another root than the pod's share").doing(step);
            }
            work(Path::new("/")).map(Some)
        })
    }

    /// Whether the file that `stat` says is mounted at `name`, a path below the share's root.
    pub(super) fn has(&self, name: &Path, stat: &rustix::fs::Stat) -> Result<bool, SandboxError> {
        let there = self.inside(|share| identity(&share.join(name)))?;
        Ok(there == Some((stat.st_dev, stat.st_ino)))
    }

    /// Mounts `tree`, which has no place yet, at `name`.
    pub(super) fn attach(&self, tree: &OwnedFd, name: &Path) -> Result<(), SandboxError> {
        let attached = self.inside(|share| {
            let target = share.join(name);
            move_mount(tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .doing(|| format!("mount {} in the pod's share", name.display()))
        })?;
        attached.ok_or_else(|| SandboxError::step("mount a volume in the pod's share", "the pod's monitor has ended"))
    }

    /// Unmounts what is at `name`. Idempotent.
    pub(super) fn detach(&self, name: &Path) -> Result<(), SandboxError> {
        self.inside(|share| super::unmount_all(&share.join(name))).map(|_| ())
    }
}

/// Device and inode of a file.
fn identity(path: &Path) -> Result<(u64, u64), SandboxError> {
    let stat = rustix::fs::stat(path).doing(|| format!("look at {}", path.display()))?;
    Ok((stat.st_dev, stat.st_ino))
}

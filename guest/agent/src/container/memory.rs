//! emptyDir volumes of medium Memory: one tmpfs of the pod for each, which its containers share.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Gid, OFlags, Uid};
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use super::mounts::again;
use super::paths;
use super::rootfs::new_mount;
use super::spec::MountSpec;
use crate::agent::Dirs;
use crate::error::{Doing, Result};

/// Who owns a folder that is made in such a volume, and its mode.
#[derive(Debug, Clone, Copy, Default)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
}

/// Takes the volume, or the folder of it that is asked for, for a container. What is missing of it is made.
///
/// # Errors
/// When the kernel refuses, or a file is in the way.
pub fn take(dirs: &Dirs, m: &MountSpec) -> Result<OwnedFd> {
    let step = || format!("use the memory volume at {}", m.destination.display());
    let place = dirs.memory().join(&m.memory);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&place, flags, rustix::fs::Mode::empty()).doing(step())?;
    let folder = match paths::open(&root, &m.sub_path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => made(&root, &m.sub_path, m.owner)?,
        other => other.asked(step())?,
    };
    again(&folder, false).doing(step())
}

fn made(root: &OwnedFd, path: &Path, owner: Owner) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let step = || format!("make {} in a memory volume", path.display());
    let folder = paths::make_dir(root, path)?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(&folder, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).doing(step())?;
    let name = format!("/proc/self/fd/{}", folder.as_raw_fd());
    fs::set_permissions(name, fs::Permissions::from_mode(owner.mode & 0o7777)).doing(step())?;
    Ok(folder)
}

/// Makes the tmpfs of a volume that no container has used yet.
///
/// # Errors
/// When the kernel refuses.
pub fn prepare(dirs: &Dirs, m: &MountSpec) -> Result<()> {
    let place = dirs.memory().join(&m.memory);
    if place.exists() {
        return Ok(());
    }
    let tree = new_mount("tmpfs", &m.data, libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
    fs::create_dir_all(&place).doing(format!("make {}", place.display()))?;
    let mounted = move_mount(&tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    if mounted.is_err() {
        let _ = fs::remove_dir(&place);
    }
    mounted.doing(format!("mount a tmpfs on {}", place.display()))
}

/// Lets go of all of them, at the pod's end.
pub fn clear(dirs: &Dirs) {
    let Ok(entries) = fs::read_dir(dirs.memory()) else { return };
    let places: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for place in places {
        let _ = unmount(&place, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&place);
    }
    let _ = fs::remove_dir(dirs.memory());
}

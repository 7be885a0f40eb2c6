//! The same layer on top of other layers: a tree of directories of its own, whose files are hard links
//! to those of the layer that is there. Nobody writes to a layer's files, so they can be shared.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, Dir, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::extract::{Extracted, copy_up};

/// Attributes of one file or directory, at most (the kernel's own bound is 64 KiB each way).
const ATTRIBUTES: usize = 64 << 10;

impl Extracted {
    /// Whether a layer that was completed on top of others is, but for the directories that it did not list, the same
    /// on top of any.
    pub(super) fn stands_alone(&self) -> bool {
        self.missing_targets.is_empty() && !self.marks && !self.relocated
    }
}

/// Copies the tree in `from` into the empty directory `to`. The directories of `implied` are made as if they were new:
/// their attributes come from the layers below.
///
/// # Errors
/// What the kernel says.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd, implied: &[Vec<u8>]) -> Result<(), Errno> {
    let implied = implied.iter().map(Vec::as_slice).collect();
    copy_dir(from, to, &mut Vec::new(), &implied)
}

/// As deep as names in layers may be, with two descriptors each.
fn copy_dir(from: &OwnedFd, to: &OwnedFd, path: &mut Vec<u8>, implied: &HashSet<&[u8]>) -> Result<(), Errno> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rfs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            match rfs::linkat(from, name, to, name, AtFlags::empty()) {
                // Too many links, or a kernel that lets nobody link what others own.
                Err(Errno::MLINK | Errno::PERM | Errno::XDEV) => {
                    copy_up(from.as_fd(), &stat, to.as_fd(), name.to_bytes())
                        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?
                }
                linked => linked?,
            }
            continue;
        }
        rfs::mkdirat(to, name, Mode::from_raw_mode(0o755))?;
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        copy_dir(&open(from.as_fd(), name)?, &open(to.as_fd(), name)?, path, implied)?;
        path.truncate(length);
    }
    if implied.contains(path.as_slice()) {
        return rfs::fchmod(to, Mode::from_raw_mode(0o755));
    }
    attributes(from, to)
}

fn open(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    rfs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn attributes(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = rfs::fstat(from)?;
    rfs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rfs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; ATTRIBUTES];
    let length = match rfs::flistxattr(from, &mut names) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = std::ffi::CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let mut value = vec![0; ATTRIBUTES];
        let length = rfs::fgetxattr(from, name, &mut value)?;
        rfs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
    rfs::futimens(to, &Timestamps { last_access: time, last_modification: time })
}

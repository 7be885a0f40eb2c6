//! The same layer on top of other layers: a tree of directories of its own, whose files are hard
//! links to those of the layer that is there. Nobody writes to a layer's files, so they can be
//! shared.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::extract::{Extracted, attributes_but, copy_up};

impl Extracted {
    /// Whether a layer that was completed on top of others is, but for the directories that it did
    /// not list, the same on top of any.
    pub(super) fn stands_alone(&self) -> bool {
        self.missing_targets.is_empty() && !self.marks && !self.relocated
    }
}

/// Copies the tree in `from` into the empty directory `to`. The directories of `implied` are made
/// as if they were new: their attributes come from the layers below.
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
    // With overlayfs' marks: this is a copy of the layer, and not of what an image has.
    attributes_but(from.as_fd(), to.as_fd(), &rfs::fstat(from)?, |_| true)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

fn open(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    rfs::openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

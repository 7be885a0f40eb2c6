//! Owner, mode, times and extended attributes of what is extracted.

use std::os::fd::BorrowedFd;

use rustix::fs::{self as rfs, AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::ExtractError;
use super::maker::Has;
use super::reader::{Entry, lossy};
use super::root::{failed, path};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// What a directory gives to the files that are made in it.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Owner, mode and extended attributes.
pub(crate) struct Attributes<'a> {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Attributes<'a> {
    pub(crate) fn of(entry: &'a Entry) -> Self {
        Self { uid: entry.uid, gid: entry.gid, mode: entry.mode, xattrs: &entry.xattrs }
    }
}

/// The attributes of images that we keep: users' own, file capabilities, POSIX access control
/// lists.
pub(crate) fn keeps_xattr(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | ACCESS_ACL | DEFAULT_ACL)
        || name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") && name.len() <= 255
}

/// Sets everything but times and the default ACL, which would be inherited by what is made later.
///
/// Owner first, since chown clears capabilities; mode last, since an access ACL changes it.
pub(crate) fn set_attributes(
    entry: &[u8],
    fd: BorrowedFd<'_>,
    to: &Attributes<'_>,
    has: Has,
) -> Result<(), ExtractError> {
    if !has.owner {
        rfs::fchown(fd, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)))
            .map_err(failed(entry, "setting the owner"))?;
    }
    let mut mode = !has.mode;
    for (name, value) in to.xattrs.iter().filter(|(name, _)| keeps_xattr(name) && name != DEFAULT_ACL) {
        set_xattr(entry, fd, name, value)?;
        mode |= name == ACCESS_ACL;
    }
    if mode {
        rfs::fchmod(fd, Mode::from_raw_mode(to.mode)).map_err(failed(entry, "setting the mode"))?;
    }
    Ok(())
}

/// Sets one attribute. File systems without such attributes go without, and so do access control
/// lists that the kernel finds no sense in.
pub(crate) fn set_xattr(entry: &[u8], fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<(), ExtractError> {
    let is_acl = name == ACCESS_ACL || name == DEFAULT_ACL;
    match rfs::fsetxattr(fd, path(name), value, XattrFlags::empty()) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(errno @ (Errno::INVAL | Errno::ACCESS)) if is_acl => {
            let (entry, name) = (lossy(entry), lossy(name));
            tracing::debug!(entry, name, %errno, "left out: an access control list that is not valid");
            Ok(())
        }
        Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
            Err(ExtractError::malformed(&lossy(entry), "has an extended attribute that is not valid"))
        }
        Err(errno) => Err(failed(entry, "setting an extended attribute")(errno)),
    }
}

/// What of an entry's owner, mode and time a file has.
pub(crate) fn has_already(stat: &Stat, entry: &Entry) -> Has {
    let is = |seconds: i64, nanos: u64| (seconds, nanos) == (entry.mtime.0, u64::from(entry.mtime.1));
    Has {
        owner: (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid),
        mode: stat.st_mode & 0o7777 == entry.mode,
        time: is(stat.st_mtime, stat.st_mtime_nsec) && is(stat.st_atime, stat.st_atime_nsec),
    }
}

/// Sets owner, mode and time of `name`, without following it, as far as it does not have them.
pub(crate) fn set_by_name(
    at: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    symlink: bool,
    has: Has,
) -> Result<(), ExtractError> {
    if !has.owner {
        let owner = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
        rfs::chownat(at, path(name), owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(&entry.name, "setting the owner"))?;
    }
    // A new owner costs the set-user-id bit; a symbolic link has no mode.
    let keeps_mode = symlink || has.owner && has.mode;
    if !keeps_mode {
        // Follows, but nobody else can reach what was made a moment ago.
        rfs::chmodat(at, path(name), Mode::from_raw_mode(entry.mode), AtFlags::empty())
            .map_err(failed(&entry.name, "setting the mode"))?;
    }
    if has.time {
        return Ok(());
    }
    rfs::utimensat(at, path(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed(&entry.name, "setting the time"))
}

pub(crate) fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

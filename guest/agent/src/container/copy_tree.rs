//! Copies a directory with all that it holds: owners, modes, times, links (hard ones too), devices and extended
//! attributes. Every file is opened below the descriptor of its directory and no link is followed.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Most files, and most directories below each other, of one tree.
const MAX_ENTRIES: usize = 1 << 20;
const MAX_DEPTH: usize = 512;
/// Longest list of names, and longest value, of extended attributes: the kernel's own limits.
const MAX_ATTRIBUTES: usize = 64 << 10;

struct Copy<'a> {
    /// Top of the copy, for hard links.
    top: &'a OwnedFd,
    /// Where each file with several names was copied to.
    linked: HashMap<(u64, u64), PathBuf>,
    entries: usize,
}

/// Copies what `source` holds, and what it is, to the empty directory `target`. Both are open for reading.
///
/// # Errors
/// With the kernel's reason; `FileTooLarge` for a tree with too many files or levels.
pub fn copy(source: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    Copy { top: target, linked: HashMap::new(), entries: 0 }.directory(source, target, Path::new(""), 0)
}

/// Gives an empty directory the owner and the mode of an ordinary one.
///
/// # Errors
/// With the kernel's reason.
pub fn give_away(dir: impl AsFd, owner: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    rustix::fs::chownat(&dir, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
    let dir = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::fchmod(dir, Mode::from_raw_mode(0o755))?)
}

impl Copy<'_> {
    fn directory(&mut self, source: &OwnedFd, target: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {MAX_DEPTH} levels")));
        }
        for entry in Dir::read_from(source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("it has more than {MAX_ENTRIES} files"),
                ));
            }
            self.entry(source, target, name, path, depth)?;
        }
        like(source, target, &rustix::fs::fstat(source)?)
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &CStr, path: &Path, depth: usize) -> io::Result<()> {
        let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let own = path.join(OsStr::from_bytes(name.to_bytes()));
        if kind == FileType::Directory {
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
            let open = |at: &OwnedFd| rustix::fs::openat(at, name, OFlags::DIRECTORY | READ, Mode::empty());
            return self.directory(&open(source)?, &open(target)?, &own, depth + 1);
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(rustix::fs::linkat(self.top, first, target, name, AtFlags::empty())?);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), own);
        }
        match kind {
            FileType::RegularFile => {
                let from = rustix::fs::openat(source, name, READ | OFlags::NONBLOCK, Mode::empty())?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
                let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
                let (mut from, mut to) = (File::from(from), File::from(to));
                io::copy(&mut from, &mut to)?;
                like(&from, &to, &stat)
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(&link, target, name)?;
                owner(target, name, &stat)?;
                times(target, name, &stat)
            }
            _ => {
                rustix::fs::mknodat(target, name, kind, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?;
                owner(target, name, &stat)?;
                times(target, name, &stat)
            }
        }
    }
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Owner before attributes, and both before the mode: a change of owner takes the set-user bit and capabilities away.
fn like(source: impl AsFd, target: impl AsFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(&target, Some(uid), Some(gid))?;
    attributes(source, &target)?;
    rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(rustix::fs::futimens(&target, &timestamps(stat))?)
}

fn owner(dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(dir: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, name, &timestamps(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn timestamps(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanos: u64| rustix::fs::Timespec { tv_sec, tv_nsec: nanos.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Attributes that the target's file system does not take are left out.
fn attributes(source: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let mut names = vec![0u8; MAX_ATTRIBUTES];
    let length = match rustix::fs::flistxattr(&source, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0u8; MAX_ATTRIBUTES];
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name)?;
        let length = match rustix::fs::fgetxattr(&source, &name, &mut value) {
            Ok(length) => length,
            Err(Errno::NODATA | Errno::OPNOTSUPP) => continue,
            Err(e) => return Err(e.into()),
        };
        match rustix::fs::fsetxattr(&target, &name, &value[..length], XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

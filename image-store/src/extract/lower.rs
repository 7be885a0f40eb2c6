//! What a layer takes from the layers below it: links in the paths of its entries, the targets of
//! hard links that only they have, and the attributes of directories that the layer's entries are
//! in without being listed.
//!
//! Lower layers are read the way overlayfs stacks them ([`super::stack`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::attributes::keeps_xattr;
use super::name::cut;
use super::reader::lossy;
use super::relocate::View;
use super::root::{failed, is_whiteout, open_beneath, path};
use super::stack::{Inside, find, find_dir, inside, is_opaque, kind, merged, stat_at};
use super::{ExtractError, Extracted};

/// Directories in a path that goes through links of lower layers: the extractor's own limit.
const MAX_DEPTH: usize = 256;

/// Finishes a layer that was extracted into `layer`; `lowers` are the layers below, topmost first.
///
/// # Errors
/// A hard link's target is in no layer, or a path through links of the layers below is beyond the
/// bounds.
pub fn complete(layer: BorrowedFd<'_>, lowers: &[OwnedFd], extracted: &mut Extracted) -> Result<(), ExtractError> {
    let mut view = View::new(layer, lowers, MAX_DEPTH);
    view.settle(extracted)?;
    for (name, target) in std::mem::take(&mut extracted.missing_targets) {
        let (dir, last) = cut(&target);
        let target = super::name::join(&view.real(&name, dir)?, last);
        late_link(layer, lowers, &name, &target, extracted)?;
    }
    // Children first: setting a child's attributes does not touch its parent's times, making it
    // did.
    for dir in extracted.implied.iter().rev() {
        adopt(layer, lowers, dir)?;
    }
    drop_ghosts(layer, lowers, extracted).map_err(failed(b"a whiteout", "looking for what it hides"))
}

/// Takes away the whiteouts that hide nothing: overlayfs shows a whiteout in the listing of a
/// directory that it does not merge with one below.
fn drop_ghosts(layer: BorrowedFd<'_>, lowers: &[OwnedFd], extracted: &mut Extracted) -> Result<(), Errno> {
    let mut whiteouts = std::mem::take(&mut extracted.whiteouts);
    whiteouts.sort();
    for of_one_dir in whiteouts.chunk_by(|a, b| cut(a).0 == cut(b).0) {
        let dir = cut(&of_one_dir[0]).0;
        let Inside::Dir { fd, opaque } = inside(layer, dir)? else {
            continue; // A later entry replaced the directory.
        };
        let below = if opaque { Vec::new() } else { merged(lowers, dir)? };
        let before = rfs::fstat(&fd)?;
        for name in of_one_dir.iter().map(|whiteout| cut(whiteout).1) {
            let mut found = None;
            for lower in &below {
                found = stat_at(lower.as_fd(), name)?.map(|_| !is_whiteout(lower.as_fd(), name));
                if found.is_some() {
                    break;
                }
            }
            if found != Some(true) && is_whiteout(fd.as_fd(), name) {
                rfs::unlinkat(&fd, path(name), AtFlags::empty())?;
                extracted.inodes = extracted.inodes.saturating_sub(1);
            }
        }
        rfs::futimens(&fd, &times(&before))?;
    }
    Ok(())
}

/// A hard link whose target was not in the layer when its entry came: copies the target up, as
/// overlayfs does when a file of a lower layer is linked, and links it.
fn late_link(
    layer: BorrowedFd<'_>,
    lowers: &[OwnedFd],
    name: &[u8],
    target: &[u8],
    extracted: &mut Extracted,
) -> Result<(), ExtractError> {
    let missing = || ExtractError::malformed(&lossy(name), "hard link's target does not exist");
    let (dir, last) = cut(name);
    let into = match open_beneath(layer, dir, OFlags::RDONLY) {
        // A later entry replaced the directory.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other.map_err(failed(name, "opening its directory"))?,
    };
    if stat_at(into.as_fd(), last).map_err(failed(name, "looking at it"))?.is_some() {
        return Ok(()); // A later entry of the same name wins.
    }
    if name == target {
        return Err(missing()); // A link to itself, by way of a link below.
    }
    let (target_dir, target_last) = cut(target);
    let from = target_parent(layer, lowers, target_dir, extracted).map_err(failed(name, "opening its target"))?;
    let (from, opaque) = from.ok_or_else(missing)?;
    match stat_at(from.as_fd(), target_last).map_err(failed(name, "looking at its target"))? {
        Some(_) if is_whiteout(from.as_fd(), target_last) => return Err(missing()),
        Some(stat) if kind(&stat) == FileType::Directory => {
            return Err(ExtractError::malformed(&lossy(name), "hard link to a directory"));
        }
        Some(_) => {}
        None if opaque => return Err(missing()),
        None => {
            let found = find(lowers, target).map_err(failed(name, "looking for its target"))?;
            let (lower, stat) = found.ok_or_else(missing)?;
            if kind(&stat) == FileType::Directory {
                return Err(ExtractError::malformed(&lossy(name), "hard link to a directory"));
            }
            keeping_times(from.as_fd(), || copy_up(lower.as_fd(), &stat, from.as_fd(), target_last))
                .map_err(|source| ExtractError::Io { entry: lossy(name), operation: "copying its target", source })?;
            extracted.inodes += 1;
            extracted.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
    }
    keeping_times(into.as_fd(), || Ok(rfs::linkat(&from, path(target_last), &into, path(last), AtFlags::empty())?))
        .map_err(|source| ExtractError::Io { entry: lossy(name), operation: "making a hard link", source })
}

/// The directory that a target is to be in, made as far as only lower layers have it, and whether
/// the layer itself hides what they have in it.
fn target_parent(
    layer: BorrowedFd<'_>,
    lowers: &[OwnedFd],
    dir: &[u8],
    extracted: &mut Extracted,
) -> Result<Option<(OwnedFd, bool)>, Errno> {
    let mut parent = open_beneath(layer, b"", OFlags::RDONLY)?;
    let mut opaque = false;
    if dir.is_empty() {
        return Ok(Some((parent, opaque)));
    }
    let mut end = 0;
    for component in dir.split(|b| *b == b'/') {
        end += component.len();
        match stat_at(parent.as_fd(), component)? {
            None => {
                if opaque || find_dir(lowers, &dir[..end])?.is_none() {
                    return Ok(None);
                }
                keeping_times(parent.as_fd(), || {
                    Ok(rfs::mkdirat(&parent, path(component), Mode::from_raw_mode(0o755))?)
                })
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
                extracted.implied.push(dir[..end].to_vec());
                extracted.inodes += 1;
                extracted.bytes += 4096;
            }
            Some(stat) if kind(&stat) == FileType::Directory => {}
            Some(_) => return Ok(None),
        }
        parent = open_beneath(parent.as_fd(), component, OFlags::RDONLY)?;
        opaque |= is_opaque(parent.as_fd());
        end += 1;
    }
    Ok(Some((parent, opaque)))
}

/// Does something in a directory whose times are already what they should be.
pub(crate) fn keeping_times(dir: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let before = rfs::fstat(dir)?;
    work()?;
    Ok(rfs::futimens(dir, &times(&before))?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as i64 },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 },
    }
}

/// Gives an implied directory what it has below, unless the same layer deleted that with its
/// parent.
fn adopt(layer: BorrowedFd<'_>, lowers: &[OwnedFd], dir: &[u8]) -> Result<(), ExtractError> {
    let work = || -> io::Result<()> {
        let (parent, name) = cut(dir);
        let to = match inside(layer, parent)? {
            Inside::Dir { fd, .. } if dir.is_empty() => fd,
            Inside::Dir { fd, opaque: false } => open_beneath(fd.as_fd(), name, OFlags::RDONLY)?,
            _ => return Ok(()),
        };
        let Some(lower) = find_dir(lowers, dir)? else {
            return Ok(());
        };
        attributes(lower.as_fd(), to.as_fd(), &rfs::fstat(&lower)?)
    };
    work().map_err(|source| ExtractError::Io {
        entry: lossy(dir),
        operation: "setting a directory's attributes",
        source,
    })
}

/// Owner, mode, extended attributes, times, from one descriptor to another, as an image has them.
pub(crate) fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    attributes_but(from, to, stat, keeps_xattr)
}

/// Owner, mode, times and the extended attributes that `keep` wants, from one descriptor to
/// another.
pub(crate) fn attributes_but(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    stat: &Stat,
    keep: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    rfs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    let mut names = vec![0; 64 << 10];
    let length = match rfs::flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty() && keep(name)) {
        let mut value = vec![0; 64 << 10];
        let length = rfs::fgetxattr(from, path(name), &mut value)?;
        rfs::fsetxattr(to, path(name), &value[..length], XattrFlags::empty())?;
    }
    rfs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(rfs::futimens(to, &times(stat))?)
}

/// Copies a file, symbolic link, fifo or device node into another directory under the name that it
/// has there.
pub(crate) fn copy_up(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = path(name);
    match kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut source = File::from(rfs::openat(from, name, OFlags::RDONLY | flags, Mode::empty())?);
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags;
            let mut copy = File::from(rfs::openat(to, name, create, Mode::from_raw_mode(0o600))?);
            copy_data(&mut source, &mut copy)?;
            return attributes(source.as_fd(), copy.as_fd(), stat);
        }
        FileType::Symlink => rfs::symlinkat(rfs::readlinkat(from, name, Vec::new())?, to, name)?,
        other => rfs::mknodat(to, name, other, Mode::from_raw_mode(stat.st_mode & 0o7777), stat.st_rdev)?,
    }
    let owner = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rfs::chownat(to, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if kind(stat) != FileType::Symlink {
        // Follows, but nobody else can reach the node that was made a moment ago.
        rfs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    Ok(rfs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Copies a file's data and keeps its holes: a hostile layer has many terabytes of them.
fn copy_data(source: &mut File, copy: &mut File) -> io::Result<()> {
    let size = source.metadata()?.len();
    copy.set_len(size)?;
    let mut at = 0;
    while at < size {
        let start = match rfs::seek(&*source, rfs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = rfs::seek(&*source, rfs::SeekFrom::Hole(start))?;
        let (mut read_at, mut write_at) = (start, start);
        while read_at < end {
            let want = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
            if rfs::copy_file_range(&*source, Some(&mut read_at), &*copy, Some(&mut write_at), want)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    Ok(())
}

//! Directories stacked as overlayfs stacks them: whiteouts and opaque directories hide what is
//! below, and a name that is no directory hides a directory below it. No symbolic link is followed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self as rfs, AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::name::cut;
use super::root::{is_whiteout, open_beneath, path};

/// A directory's path in one layer.
pub(crate) enum Inside {
    /// It is there. `opaque`: it hides the layers below, or one of its parents does.
    Dir { fd: OwnedFd, opaque: bool },
    /// The layer says nothing of it.
    Missing { opaque: bool },
    /// A whiteout or something else stands in its path.
    Hidden,
}

pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(crate) fn stat_at(at: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match rfs::statat(at, path(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0; 8];
    matches!(rfs::fgetxattr(dir, c"user.overlay.opaque", &mut value), Ok(1) if value[0] == b'y')
}

/// Looks for a directory in one layer.
pub(crate) fn inside(layer: BorrowedFd<'_>, dir: &[u8]) -> Result<Inside, Errno> {
    let mut fd = open_beneath(layer, b"", OFlags::RDONLY)?;
    let mut opaque = false;
    for component in dir.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
        match stat_at(fd.as_fd(), component)? {
            None => return Ok(Inside::Missing { opaque }),
            Some(stat) if kind(&stat) == FileType::Directory => {
                fd = open_beneath(fd.as_fd(), component, OFlags::RDONLY)?;
                opaque |= is_opaque(fd.as_fd());
            }
            Some(_) => return Ok(Inside::Hidden),
        }
    }
    Ok(Inside::Dir { fd, opaque })
}

/// The directories of which `dir` is merged, topmost first, until `take` gives an answer.
fn each<T>(
    layers: &[OwnedFd],
    dir: &[u8],
    mut take: impl FnMut(OwnedFd) -> Result<Option<T>, Errno>,
) -> Result<Option<T>, Errno> {
    for layer in layers {
        let opaque = match inside(layer.as_fd(), dir)? {
            Inside::Hidden => break,
            Inside::Missing { opaque } => opaque,
            Inside::Dir { fd, opaque } => {
                if let Some(answer) = take(fd)? {
                    return Ok(Some(answer));
                }
                opaque
            }
        };
        if opaque {
            break;
        }
    }
    Ok(None)
}

/// The directories of which `dir` is merged, topmost first.
pub(crate) fn merged(layers: &[OwnedFd], dir: &[u8]) -> Result<Vec<OwnedFd>, Errno> {
    let mut dirs = Vec::new();
    each(layers, dir, |fd| {
        dirs.push(fd);
        Ok(None::<()>)
    })?;
    Ok(dirs)
}

/// The directory that has `name` in the stack, and what it is there; the root itself is not a name.
pub(crate) fn find(layers: &[OwnedFd], name: &[u8]) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let (dir, last) = cut(name);
    let found = each(layers, dir, |fd| Ok(stat_at(fd.as_fd(), last)?.map(|stat| (fd, stat))))?;
    Ok(found.filter(|(fd, _)| !is_whiteout(fd.as_fd(), last)))
}

/// The topmost of the directories of which `dir` is merged.
pub(crate) fn find_dir(layers: &[OwnedFd], dir: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    if dir.is_empty() {
        return layers.first().map(|layer| open_beneath(layer.as_fd(), b"", OFlags::RDONLY)).transpose();
    }
    match find(layers, dir)? {
        Some((parent, stat)) if kind(&stat) == FileType::Directory => {
            open_beneath(parent.as_fd(), cut(dir).1, OFlags::RDONLY).map(Some)
        }
        _ => Ok(None),
    }
}

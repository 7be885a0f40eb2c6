//! Paths inside a container's root become descriptors here, and nowhere else.
//!
//! Links are followed as the container would see them: none leads out of the root, and none of /proc's magic links counts.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::error::{Doing, Error, Result};

mod missing;

/// Opens what `path` names inside `root`.
///
/// # Errors
/// As `openat2`.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    loop {
        let result = openat2(
            root.as_fd(),
            relative,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match result {
            // A rename somewhere below raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Refuses what is not an absolute path without `..`.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_absolute(path: &str) -> Result<PathBuf> {
    let parsed = Path::new(path);
    if !parsed.is_absolute() || path.contains('\0') || path.len() > 4095 {
        return Err(Error::invalid(format!("{path:?} is not an absolute path")));
    }
    if parsed.components().any(|c| c == Component::ParentDir) {
        return Err(Error::invalid(format!("{path:?} must not hold \"..\"")));
    }
    Ok(parsed.components().collect())
}

/// Refuses what is not a path below something: absolute, empty, or with `..`.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_relative(path: &str) -> Result<PathBuf> {
    let parsed: PathBuf = Path::new(path).components().collect();
    let plain = parsed.components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || !plain || path.contains('\0') || path.len() > 4095 {
        return Err(Error::invalid(format!("{path:?} is not a relative path without \"..\"")));
    }
    Ok(parsed)
}

/// Opens what `path` names below `dir`, following no link at all.
///
/// # Errors
/// As `openat2`.
pub fn open_below(dir: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    // Not NOFOLLOW: with it the last component may be a link.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(dir.as_fd(), path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// The directory `path` inside `root`; what is missing of it is made, mode 0755. A link that leads to a missing
/// directory counts as that directory's name.
///
/// # Errors
/// When a component is a file.
pub fn make_dir(root: impl AsFd, path: &Path) -> Result<OwnedFd> {
    match open(root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(dir) => return Ok(dir),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(e).asked(format!("open {} in the container's root", path.display())),
    }
    let place = missing::find(root.as_fd(), path).asked(format!("find {} in the container's root", path.display()))?;
    make_below(place.dir, &place.missing, path)
}

fn make_below(mut dir: OwnedFd, names: &[OsString], path: &Path) -> Result<OwnedFd> {
    for name in names {
        match rustix::fs::mkdirat(&dir, name.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).doing(format!("make {} in the container's root", path.display())),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        dir = openat2(&dir, name.as_os_str(), flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
            .asked(format!("open {} in the container's root", path.display()))?;
    }
    Ok(dir)
}

/// The file or directory `path` inside `root` as a place to mount on; made empty when it is missing. A link that
/// leads to something missing counts as the missing thing's name, as in runc: images made from whole systems have
/// such links (`/etc/resolv.conf` to a file that systemd-resolved would write).
///
/// # Errors
/// As `make_dir`.
pub fn mount_point(root: impl AsFd, path: &Path, directory: bool) -> Result<OwnedFd> {
    match open(root.as_fd(), path, OFlags::PATH) {
        Ok(target) => return right_kind(target, path, directory),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(e).asked(format!("open {} in the container's root", path.display())),
    }
    if directory {
        return make_dir(root, path);
    }
    let place = missing::find(root.as_fd(), path).asked(format!("find {} in the container's root", path.display()))?;
    let Some((name, parents)) = place.missing.split_last() else {
        // Somebody made it since.
        return right_kind(place.dir, path, directory);
    };
    let parent = make_below(place.dir, parents, path)?;
    let flags = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name.as_os_str(), flags, Mode::from_raw_mode(0o644))
        .asked(format!("make {} in the container's root", path.display()))?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&parent, name.as_os_str(), flags, Mode::empty())
        .doing(format!("open {} in the container's root", path.display()))
}

fn right_kind(target: OwnedFd, path: &Path, directory: bool) -> Result<OwnedFd> {
    let is_dir = file_type(&target).doing(format!("look at {}", path.display()))? == FileType::Directory;
    if is_dir == directory {
        return Ok(target);
    }
    let (have, want) = if is_dir { ("directory", "file") } else { ("file", "directory") };
    Err(Error::invalid(format!("cannot mount a {want} on {}, which is a {have} in the image", path.display())))
}

/// What kind of file an open descriptor is.
///
/// # Errors
/// As `fstat`.
pub fn file_type(fd: impl AsFd) -> io::Result<FileType> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// A regular file of an image, read up to `limit` bytes; `None` when it is not there.
///
/// # Errors
/// When it is longer or is no regular file.
pub fn read_image_file(root: impl AsFd, path: &str, limit: usize) -> Result<Option<Vec<u8>>> {
    // NONBLOCK: a fifo in the image must not stop us.
    let file = match open(root, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
        Ok(file) => file,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(None),
        Err(e) => return Err(e).asked(format!("open the image's {path}")),
    };
    if file_type(&file).doing(format!("look at the image's {path}"))? != FileType::RegularFile {
        return Err(Error::invalid(format!("the image's {path} is not a regular file")));
    }
    crate::sys::read_bounded(std::fs::File::from(file), limit).asked(format!("read the image's {path}")).map(Some)
}

#[cfg(test)]
mod tests;

//! The directory that a layer is extracted into: every operation is relative to its descriptor.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::ExtractError;
use super::attributes::{Attributes, DEFAULT_ACL, set_attributes, set_by_name, set_xattr, times};
use super::follow::{Bounds, follow, look_in};
use super::name::join;
use super::reader::{Entry, Kind, TarReader, lossy};

const BUFFER: usize = 128 << 10;

/// What became of a hard link.
pub(crate) enum Linked {
    Done,
    /// The target (its directory without links, and its name) does not exist in this layer. The
    /// link's own name is free, and taken later unless another entry takes it first.
    Missing(Vec<u8>, Vec<u8>),
}

pub(crate) struct Root {
    root: OwnedFd,
    bounds: Bounds,
    /// The directory of the last entry: entries of one directory follow each other.
    cached: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
}

pub(crate) fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

pub(crate) fn failed(entry: &[u8], operation: &'static str) -> impl FnOnce(Errno) -> ExtractError {
    let entry = lossy(entry);
    move |errno| match errno {
        // The hostile cases, told in words.
        Errno::LOOP | Errno::XDEV => ExtractError::malformed(&entry, "its path goes through a symbolic link"),
        Errno::NOTDIR => ExtractError::malformed(&entry, "its path goes through something that is not a directory"),
        Errno::NAMETOOLONG => ExtractError::malformed(&entry, "its path is too long"),
        other => ExtractError::Io { entry, operation, source: other.into() },
    }
}

/// Opens a directory below `root`, following nothing.
pub(crate) fn open_beneath(root: BorrowedFd<'_>, dir: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let dir = if dir.is_empty() { b"." } else { dir };
    rfs::openat2(
        root,
        path(dir),
        flags | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
}

impl Root {
    pub(crate) fn new(root: OwnedFd, bounds: Bounds) -> Self {
        Self { root, bounds, cached: None, buffer: vec![0; BUFFER] }
    }

    /// The path of a directory without the links that are in it, followed inside the root.
    pub(crate) fn locate(&mut self, entry: &[u8], dir: Vec<u8>) -> Result<Vec<u8>, ExtractError> {
        if self.cached.as_ref().is_some_and(|(known, _)| *known == dir) {
            return Ok(dir);
        }
        match open_beneath(self.root.as_fd(), &dir, OFlags::PATH) {
            Ok(opened) => self.cached = Some((dir.clone(), opened)),
            Err(Errno::LOOP) => {
                let root = self.root.as_fd();
                return follow(entry, &dir, &mut self.bounds, |at| look_in(root, at));
            }
            // No link comes before what does not exist. What else is wrong is told when it is
            // entered.
            Err(_) => {}
        }
        Ok(dir)
    }

    /// Makes `dir` the current directory; gives the directories that had to be made, and whether
    /// each took the place of a whiteout.
    pub(crate) fn enter(&mut self, entry: &[u8], dir: &[u8]) -> Result<Vec<(Vec<u8>, bool)>, ExtractError> {
        let mut made = Vec::new();
        if self.cached.as_ref().is_some_and(|(known, _)| known == dir) {
            return Ok(made);
        }
        self.cached = None;
        let opened = match open_beneath(self.root.as_fd(), dir, OFlags::PATH) {
            // Not a directory: it may be a whiteout of the same layer.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(entry, dir, &mut made)?,
            other => other.map_err(failed(entry, "opening its directory"))?,
        };
        self.cached = Some((dir.to_vec(), opened));
        Ok(made)
    }

    fn make_parents(&self, entry: &[u8], dir: &[u8], made: &mut Vec<(Vec<u8>, bool)>) -> Result<OwnedFd, ExtractError> {
        let mut parent =
            open_beneath(self.root.as_fd(), b"", OFlags::PATH).map_err(failed(entry, "opening the root"))?;
        let mut so_far = Vec::new();
        for component in dir.split(|b| *b == b'/') {
            so_far = join(&so_far, component);
            let mut whited_out = false;
            if is_whiteout(parent.as_fd(), component) {
                rfs::unlinkat(&parent, path(component), AtFlags::empty()).map_err(failed(entry, "removing"))?;
                whited_out = true;
            }
            match rfs::mkdirat(&parent, path(component), Mode::from_raw_mode(0o755)) {
                Ok(()) => made.push((so_far.clone(), whited_out)),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(entry, "making its directory")(errno)),
            }
            let opened = open_beneath(parent.as_fd(), component, OFlags::RDONLY)
                .map_err(failed(entry, "opening its directory"))?;
            if made.last().is_some_and(|(last, _)| *last == so_far) {
                rfs::fchmod(&opened, Mode::from_raw_mode(0o755)).map_err(failed(entry, "setting a mode"))?;
            }
            if whited_out {
                set_opaque(entry, opened.as_fd())?;
            }
            parent = opened;
        }
        Ok(parent)
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.cached.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// Removes what an earlier entry of the layer put there: the last one wins.
    fn clear(&mut self, entry: &[u8], name: &[u8]) -> Result<(), ExtractError> {
        match rfs::unlinkat(self.current(), path(name), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => remove_tree(self.current(), name).map_err(failed(entry, "replacing a directory")),
            Err(errno) => Err(failed(entry, "replacing")(errno)),
        }
    }

    /// A directory, kept when it is there already; true when it is new.
    pub(crate) fn make_dir(&mut self, entry: &[u8], _dir: &[u8], name: &[u8]) -> Result<bool, ExtractError> {
        let mode = Mode::from_raw_mode(0o700);
        match rfs::mkdirat(self.current(), path(name), mode) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(entry, "making a directory")(errno)),
        }
        let is_dir = rfs::statat(self.current(), path(name), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if is_dir {
            return Ok(false);
        }
        // A directory over a whiteout of the same layer hides what is below it.
        let hides = is_whiteout(self.current(), name);
        self.clear(entry, name)?;
        rfs::mkdirat(self.current(), path(name), mode).map_err(failed(entry, "making a directory"))?;
        if hides {
            let opened = open_beneath(self.current(), name, OFlags::RDONLY).map_err(failed(entry, "opening it"))?;
            set_opaque(entry, opened.as_fd())?;
        }
        Ok(true)
    }

    pub(crate) fn dir_attributes(&mut self, entry: &[u8], dir: &[u8], to: &Attributes<'_>) -> Result<(), ExtractError> {
        let opened =
            open_beneath(self.root.as_fd(), dir, OFlags::RDONLY).map_err(failed(entry, "opening the directory"))?;
        set_attributes(entry, opened.as_fd(), to)
    }

    /// Sets a directory's default access control list, unless a later entry replaced the directory.
    pub(crate) fn dir_acl(&self, dir: &[u8], acl: &[u8]) -> Result<(), ExtractError> {
        match open_beneath(self.root.as_fd(), dir, OFlags::RDONLY) {
            Ok(opened) => set_xattr(dir, opened.as_fd(), DEFAULT_ACL, acl),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(failed(dir, "opening the directory")(errno)),
        }
    }

    pub(crate) fn dir_time(&self, dir: &[u8], mtime: (i64, u32)) -> Result<(), ExtractError> {
        match open_beneath(self.root.as_fd(), dir, OFlags::RDONLY) {
            Ok(opened) => rfs::futimens(&opened, &times(mtime)).map_err(failed(dir, "setting the directory's time")),
            // A later entry replaced it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            Err(errno) => Err(failed(dir, "opening the directory")(errno)),
        }
    }

    pub(crate) fn is_dir(&self, dir: &[u8]) -> bool {
        open_beneath(self.root.as_fd(), dir, OFlags::PATH).is_ok()
    }

    pub(crate) fn make_opaque(&mut self, entry: &[u8], dir: &[u8]) -> Result<(), ExtractError> {
        let opened =
            open_beneath(self.root.as_fd(), dir, OFlags::RDONLY).map_err(failed(entry, "opening the directory"))?;
        set_opaque(entry, opened.as_fd())
    }

    /// A whiteout; true when it is new. Over an entry of the same layer only the lower layers are
    /// hidden.
    pub(crate) fn whiteout(&mut self, entry: &[u8], _dir: &[u8], hidden: &[u8]) -> Result<bool, ExtractError> {
        if hidden.len() > 255 {
            return Err(ExtractError::malformed(&lossy(entry), "name is too long"));
        }
        match rfs::mknodat(self.current(), path(hidden), FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                if let Ok(opened) = open_beneath(self.current(), hidden, OFlags::RDONLY) {
                    set_opaque(entry, opened.as_fd())?;
                }
                Ok(false)
            }
            Err(errno) => Err(failed(entry, "making a whiteout")(errno)),
        }
    }

    /// A regular file; gives its bytes on disk.
    pub(crate) fn file<R: Read>(
        &mut self,
        tar: &mut TarReader<'_, R>,
        entry: &Entry,
        _dir: &[u8],
        name: &[u8],
    ) -> Result<u64, ExtractError> {
        let create = |at: BorrowedFd<'_>| {
            rfs::openat(
                at,
                path(name),
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o600),
            )
        };
        let opened = match create(self.current()) {
            Err(Errno::EXIST) => {
                self.clear(&entry.name, name)?;
                create(self.current())
            }
            other => other,
        };
        let mut file = File::from(opened.map_err(failed(&entry.name, "making the file"))?);
        let stored = match &entry.extents {
            None => self.copy(tar, &mut file, entry, entry.size)?,
            Some(extents) => {
                let seek = |file: &mut File, at| {
                    file.seek(SeekFrom::Start(at)).map(drop).map_err(|e| io_failed(&entry.name, "seeking", e))
                };
                let mut stored = 0;
                for extent in extents {
                    seek(&mut file, extent.offset)?;
                    stored += self.copy(tar, &mut file, entry, extent.length)?;
                }
                file.set_len(entry.size).map_err(|e| io_failed(&entry.name, "setting the size", e))?;
                stored
            }
        };
        set_attributes(&entry.name, file.as_fd(), &Attributes::of(entry))?;
        rfs::futimens(&file, &times(entry.mtime)).map_err(failed(&entry.name, "setting the time"))?;
        Ok(stored)
    }

    fn copy<R: Read>(
        &mut self,
        tar: &mut TarReader<'_, R>,
        file: &mut File,
        entry: &Entry,
        length: u64,
    ) -> Result<u64, ExtractError> {
        let mut left = length;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(BUFFER);
            let got = tar.read_data(&mut self.buffer[..want])?;
            if got == 0 {
                return Err(ExtractError::malformed(&lossy(&entry.name), "has less data than its size"));
            }
            file.write_all(&self.buffer[..got]).map_err(|e| io_failed(&entry.name, "writing", e))?;
            left -= got as u64;
        }
        Ok(length.next_multiple_of(4096))
    }

    /// A hard link. As in other runtimes its header's owner, mode and time count for the file.
    pub(crate) fn hard_link(
        &mut self,
        entry: &Entry,
        dir: &[u8],
        name: &[u8],
        (target_dir, target): (Vec<u8>, Vec<u8>),
    ) -> Result<Linked, ExtractError> {
        let refuse = |reason: &str| Err(ExtractError::malformed(&lossy(&entry.name), reason));
        let root = self.root.as_fd();
        let (target_dir, from) = match open_beneath(root, &target_dir, OFlags::PATH) {
            Err(Errno::LOOP) => {
                let real = follow(&entry.name, &target_dir, &mut self.bounds, |at| look_in(root, at))?;
                let opened = open_beneath(root, &real, OFlags::PATH);
                (real, opened)
            }
            other => (target_dir, other),
        };
        let from = match from {
            Err(Errno::NOENT) => {
                self.clear(&entry.name, name)?;
                return Ok(Linked::Missing(target_dir, target));
            }
            other => other.map_err(failed(&entry.name, "opening the link's target"))?,
        };
        let stat = match rfs::statat(&from, path(&target), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                self.clear(&entry.name, name)?;
                return Ok(Linked::Missing(target_dir, target));
            }
            other => other.map_err(failed(&entry.name, "looking at the link's target"))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return refuse("hard link to a directory");
        }
        if is_whiteout(from.as_fd(), &target) {
            return refuse("hard link to a whiteout");
        }
        if (&target_dir[..], &target[..]) == (dir, name) {
            return Ok(Linked::Done);
        }
        self.clear(&entry.name, name)?;
        match rfs::linkat(&from, path(&target), self.current(), path(name), AtFlags::empty()) {
            Ok(()) => set_by_name(self.current(), name, entry, Some(&stat)).map(|()| Linked::Done),
            // The target was below the directory that the link replaced.
            Err(Errno::NOENT) => Ok(Linked::Missing(target_dir, target)),
            Err(Errno::MLINK) => refuse("too many hard links to one file"),
            Err(errno) => Err(failed(&entry.name, "making a hard link")(errno)),
        }
    }

    /// A symbolic link, fifo or device node.
    pub(crate) fn special(&mut self, entry: &Entry, _dir: &[u8], name: &[u8]) -> Result<(), ExtractError> {
        self.clear(&entry.name, name)?;
        let at = self.current();
        let node = |kind, device| rfs::mknodat(at, path(name), kind, Mode::from_raw_mode(0o600), device);
        let device = rfs::makedev(entry.device.0, entry.device.1);
        let made = match entry.kind {
            Kind::Symlink if entry.link.is_empty() => {
                return Err(ExtractError::malformed(&lossy(&entry.name), "symbolic link to nothing"));
            }
            Kind::Symlink => rfs::symlinkat(path(&entry.link), at, path(name)),
            Kind::Char => node(FileType::CharacterDevice, device),
            Kind::Block => node(FileType::BlockDevice, device),
            _ => node(FileType::Fifo, 0),
        };
        made.map_err(failed(&entry.name, "making it"))?;
        set_by_name(at, name, entry, None)
    }
}

fn io_failed(entry: &[u8], operation: &'static str, source: io::Error) -> ExtractError {
    ExtractError::Io { entry: lossy(entry), operation, source }
}

pub(crate) fn is_whiteout(at: BorrowedFd<'_>, name: &[u8]) -> bool {
    rfs::statat(at, path(name), AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::CharacterDevice && s.st_rdev == 0)
}

pub(crate) fn set_opaque(entry: &[u8], dir: BorrowedFd<'_>) -> Result<(), ExtractError> {
    rfs::fsetxattr(dir, c"user.overlay.opaque", b"y", XattrFlags::empty())
        .map_err(failed(entry, "marking its directory opaque (user.* attributes are needed)"))
}

/// Removes a directory and all in it, following nothing. Depth is bounded by the limit on names.
pub(crate) fn remove_tree(at: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", at.as_raw_fd())).join(path(name));
    // The first component is our descriptor; the last one is not followed, nor is anything below
    // it.
    std::fs::remove_dir_all(path).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

//! The directory that a layer is extracted into: every operation is relative to its descriptor.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::ExtractError;
use super::attributes::{Attributes, DEFAULT_ACL, set_attributes, set_xattr, times};
use super::follow::{Bounds, follow, look_in};
use super::maker::{Has, Maker};
use super::name::join;
use super::reader::{Entry, TarReader, lossy};

const BUFFER: usize = 128 << 10;

pub(crate) struct Root {
    pub(super) root: OwnedFd,
    pub(super) bounds: Bounds,
    /// The directory of the last entry: entries of one directory follow each other.
    pub(super) cached: Option<Dir>,
    maker: Maker,
    buffer: Vec<u8>,
}

/// An open directory.
pub(crate) struct Dir {
    pub(super) path: Vec<u8>,
    pub(super) fd: OwnedFd,
    /// Whether what is made in it has the mode that is asked for, and the process' ids; unknown
    /// until something was made.
    plain: Option<bool>,
}

impl Dir {
    fn new(path: &[u8], fd: OwnedFd) -> Self {
        Self { path: path.to_vec(), fd, plain: None }
    }
}

pub(crate) fn path(bytes: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(bytes))
}

pub(crate) fn failed(entry: &[u8], operation: &'static str) -> impl FnOnce(Errno) -> ExtractError {
    move |errno| {
        let entry = lossy(entry);
        match errno {
            // The hostile cases, told in words.
            Errno::LOOP | Errno::XDEV => ExtractError::malformed(&entry, "its path goes through a symbolic link"),
            Errno::NOTDIR => ExtractError::malformed(&entry, "its path goes through something that is not a directory"),
            Errno::NAMETOOLONG => ExtractError::malformed(&entry, "its path is too long"),
            other => ExtractError::Io { entry, operation, source: other.into() },
        }
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
        Self { root, bounds, cached: None, maker: Maker::this_process(), buffer: vec![0; BUFFER] }
    }

    /// The path of a directory without the links that are in it, followed inside the root.
    pub(crate) fn locate(&mut self, entry: &[u8], dir: Vec<u8>) -> Result<Vec<u8>, ExtractError> {
        if self.is_current(&dir) {
            return Ok(dir);
        }
        match open_beneath(self.root.as_fd(), &dir, OFlags::PATH) {
            Ok(opened) => self.cached = Some(Dir::new(&dir, opened)),
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
        if self.is_current(dir) {
            return Ok(made);
        }
        self.cached = None;
        let opened = match open_beneath(self.root.as_fd(), dir, OFlags::PATH) {
            // Not a directory: it may be a whiteout of the same layer.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(entry, dir, &mut made)?,
            other => other.map_err(failed(entry, "opening its directory"))?,
        };
        self.cached = Some(Dir::new(dir, opened));
        Ok(made)
    }

    fn is_current(&self, dir: &[u8]) -> bool {
        self.cached.as_ref().is_some_and(|cached| cached.path == dir)
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

    pub(super) fn current(&self) -> BorrowedFd<'_> {
        self.cached.as_ref().map_or(self.root.as_fd(), |cached| cached.fd.as_fd())
    }

    /// Makes a name in the current directory, also where an earlier entry of the layer put
    /// something: the last one wins.
    pub(super) fn put<T>(
        &self,
        entry: &[u8],
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<Result<T, Errno>, ExtractError> {
        match make(self.current()) {
            Err(Errno::EXIST) => {
                self.clear(entry, name)?;
                Ok(make(self.current()))
            }
            other => Ok(other),
        }
    }

    /// What an entry has that was just made in the current directory with the mode `asked`.
    fn has(
        &mut self,
        entry: &Entry,
        asked: u32,
        look: impl FnOnce(BorrowedFd<'_>) -> Result<Stat, Errno>,
    ) -> Result<Has, ExtractError> {
        if let Some(Dir { fd, plain: plain @ None, .. }) = &mut self.cached {
            let is_plain = rfs::fstat(&fd).and_then(|dir| Ok(self.maker.is_plain(&dir, &look(fd.as_fd())?, asked)));
            *plain = Some(is_plain.map_err(failed(&entry.name, "looking at what was made"))?);
        }
        let owner = self.has_owner(entry);
        Ok(Has { owner, mode: self.is_plain() && self.maker.gives(entry.mode), time: false })
    }

    fn is_plain(&self) -> bool {
        self.cached.as_ref().is_some_and(|dir| dir.plain == Some(true))
    }

    /// Whether what was just made in the current directory has the entry's owner, as far as that is
    /// known.
    pub(super) fn has_owner(&self, entry: &Entry) -> bool {
        self.is_plain() && self.maker.is(entry.uid, entry.gid)
    }

    /// Removes what an earlier entry of the layer put there.
    pub(super) fn clear(&self, entry: &[u8], name: &[u8]) -> Result<(), ExtractError> {
        match rfs::unlinkat(self.current(), path(name), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) => remove_tree(self.current(), name).map_err(failed(entry, "replacing a directory")),
            Err(errno) => Err(failed(entry, "replacing")(errno)),
        }
    }

    /// A directory with its attributes, kept when it is there already; true when it is new.
    pub(crate) fn dir(&mut self, entry: &Entry, dir: &[u8], name: &[u8]) -> Result<bool, ExtractError> {
        let asked = self.maker.asks(entry.mode, 0o700);
        let made = match rfs::mkdirat(self.current(), path(name), Mode::from_raw_mode(asked)) {
            Ok(()) => {
                let look = |at: BorrowedFd<'_>| rfs::statat(at, path(name), AtFlags::SYMLINK_NOFOLLOW);
                let has = self.has(entry, asked, look)?;
                if has.owner && has.mode && entry.xattrs.is_empty() {
                    return Ok(true);
                }
                true
            }
            Err(Errno::EXIST) => self.dir_over(&entry.name, name)?,
            Err(errno) => return Err(failed(&entry.name, "making a directory")(errno)),
        };
        self.dir_attributes(&entry.name, &join(dir, name), &Attributes::of(entry))?;
        Ok(made)
    }

    /// Makes a directory where something is, unless that is one.
    fn dir_over(&mut self, entry: &[u8], name: &[u8]) -> Result<bool, ExtractError> {
        let is_dir = rfs::statat(self.current(), path(name), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if is_dir {
            return Ok(false);
        }
        // A directory over a whiteout of the same layer hides what is below it.
        let hides = is_whiteout(self.current(), name);
        self.clear(entry, name)?;
        rfs::mkdirat(self.current(), path(name), Mode::from_raw_mode(0o700))
            .map_err(failed(entry, "making a directory"))?;
        if hides {
            let opened = open_beneath(self.current(), name, OFlags::RDONLY).map_err(failed(entry, "opening it"))?;
            set_opaque(entry, opened.as_fd())?;
        }
        Ok(true)
    }

    pub(crate) fn dir_attributes(&mut self, entry: &[u8], dir: &[u8], to: &Attributes<'_>) -> Result<(), ExtractError> {
        let opened =
            open_beneath(self.root.as_fd(), dir, OFlags::RDONLY).map_err(failed(entry, "opening the directory"))?;
        if let Some(current) = &mut self.cached {
            // It may be this one, and hand something down from now on.
            current.plain = None;
        }
        set_attributes(entry, opened.as_fd(), to, Has::default())
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
    pub(crate) fn whiteout(&mut self, entry: &[u8], hidden: &[u8]) -> Result<bool, ExtractError> {
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
        name: &[u8],
    ) -> Result<u64, ExtractError> {
        let asked = self.maker.asks(entry.mode, 0o600);
        let create = |at: BorrowedFd<'_>| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rfs::openat(at, path(name), flags, Mode::from_raw_mode(asked))
        };
        let opened = self.put(&entry.name, name, create)?.map_err(failed(&entry.name, "making the file"))?;
        let has = self.has(entry, asked, |_| rfs::fstat(&opened))?;
        let mut file = File::from(opened);
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
        set_attributes(&entry.name, file.as_fd(), &Attributes::of(entry), has)?;
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

//! Hard links, and what is made by its name alone: symbolic links, fifos, device nodes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::ExtractError;
use super::attributes::{has_already, set_by_name};
use super::follow::{follow, look_in};
use super::maker::Has;
use super::reader::{Entry, Kind, lossy};
use super::root::{Root, failed, is_whiteout, open_beneath, path};

/// What became of a hard link.
pub(crate) enum Linked {
    Done,
    /// The target (its directory without links, and its name) does not exist in this layer. The
    /// link's own name is free, and taken later unless another entry takes it first.
    Missing(Vec<u8>, Vec<u8>),
}

impl Root {
    /// A hard link. As in other runtimes its header's owner, mode and time count for the file.
    pub(crate) fn hard_link(
        &mut self,
        entry: &Entry,
        dir: &[u8],
        name: &[u8],
        (mut target_dir, target): (Vec<u8>, Vec<u8>),
    ) -> Result<Linked, ExtractError> {
        let refuse = |reason: &str| Err(ExtractError::malformed(&lossy(&entry.name), reason));
        let root = self.root.as_fd();
        let opened;
        let from = match self.cached.as_ref().filter(|cached| cached.path == target_dir) {
            Some(cached) => cached.fd.as_fd(),
            None => {
                let found = match open_beneath(root, &target_dir, OFlags::PATH) {
                    Err(Errno::LOOP) => {
                        target_dir = follow(&entry.name, &target_dir, &mut self.bounds, |at| look_in(root, at))?;
                        open_beneath(root, &target_dir, OFlags::PATH)
                    }
                    other => other,
                };
                if let Err(Errno::NOENT) = found {
                    self.clear(&entry.name, name)?;
                    return Ok(Linked::Missing(target_dir, target));
                }
                opened = found.map_err(failed(&entry.name, "opening the link's target"))?;
                opened.as_fd()
            }
        };
        let stat = match rfs::statat(from, path(&target), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                self.clear(&entry.name, name)?;
                return Ok(Linked::Missing(target_dir, target));
            }
            other => other.map_err(failed(&entry.name, "looking at the link's target"))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return refuse("hard link to a directory");
        }
        if is_whiteout(from, &target) {
            return refuse("hard link to a whiteout");
        }
        if (&target_dir[..], &target[..]) == (dir, name) {
            return Ok(Linked::Done);
        }
        let link = |at: BorrowedFd<'_>| rfs::linkat(from, path(&target), at, path(name), AtFlags::empty());
        match self.put(&entry.name, name, link)? {
            Ok(()) => {
                let symlink = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
                set_by_name(self.current(), name, entry, symlink, has_already(&stat, entry)).map(|()| Linked::Done)
            }
            // The target was below the directory that the link replaced.
            Err(Errno::NOENT) => Ok(Linked::Missing(target_dir, target)),
            Err(Errno::MLINK) => refuse("too many hard links to one file"),
            Err(errno) => Err(failed(&entry.name, "making a hard link")(errno)),
        }
    }

    /// A symbolic link, fifo or device node.
    pub(crate) fn special(&mut self, entry: &Entry, name: &[u8]) -> Result<(), ExtractError> {
        let symlink = entry.kind == Kind::Symlink;
        if symlink && entry.link.is_empty() {
            return Err(ExtractError::malformed(&lossy(&entry.name), "symbolic link to nothing"));
        }
        let device = rfs::makedev(entry.device.0, entry.device.1);
        let node =
            |at: BorrowedFd<'_>, kind, device| rfs::mknodat(at, path(name), kind, Mode::from_raw_mode(0o600), device);
        let make = |at: BorrowedFd<'_>| match entry.kind {
            Kind::Symlink => rfs::symlinkat(path(&entry.link), at, path(name)),
            Kind::Char => node(at, FileType::CharacterDevice, device),
            Kind::Block => node(at, FileType::BlockDevice, device),
            _ => node(at, FileType::Fifo, 0),
        };
        self.put(&entry.name, name, make)?.map_err(failed(&entry.name, "making it"))?;
        let has = Has { owner: self.has_owner(entry), ..Has::default() };
        set_by_name(self.current(), name, entry, symlink, has)
    }
}

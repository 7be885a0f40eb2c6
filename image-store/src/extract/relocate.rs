//! Directories of a layer that are symbolic links in the layers below.
//!
//! A layer with `lib/foo` and no entry for `lib`, on top of a layer where `lib` is a link to
//! `usr/lib`, means `usr/lib/foo`. The layer was unpacked without knowing the layers below, so that
//! it has a directory `lib` of its own, which would hide the link. Such directories are dissolved
//! here: what is in them moves to where the link leads, inside the root. Directories that the layer
//! lists replace the link, as its author said.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{self as rfs, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::follow::{Bounds, Seen, follow, read_link};
use super::lower::{attributes, keeping_times};
use super::name::{cut, join};
use super::reader::lossy;
use super::root::{failed, is_whiteout, open_beneath, path, remove_tree, set_opaque};
use super::stack::{Inside, find, inside, is_opaque, kind, stat_at};
use super::{ExtractError, Extracted};

/// A layer on top of others.
pub(crate) struct View<'a> {
    pub(crate) layer: BorrowedFd<'a>,
    /// Topmost first.
    pub(crate) lowers: &'a [OwnedFd],
    /// Directories of the layer that it does not list, and that were not looked at yet.
    implied: BTreeSet<Vec<u8>>,
    /// Those that were, and that stay.
    settled: BTreeSet<Vec<u8>>,
    /// Directories that were dissolved, and where to.
    moves: Vec<(Vec<u8>, Vec<u8>)>,
    bounds: Bounds,
}

impl<'a> View<'a> {
    pub(crate) fn new(layer: BorrowedFd<'a>, lowers: &'a [OwnedFd], depth: usize) -> Self {
        let (implied, settled) = (BTreeSet::new(), BTreeSet::new());
        Self { layer, lowers, implied, settled, moves: Vec::new(), bounds: Bounds::new(depth) }
    }

    /// Dissolves what is to be dissolved. Directories that are made for that are in
    /// `extracted.implied`.
    pub(crate) fn settle(&mut self, extracted: &mut Extracted) -> Result<(), ExtractError> {
        self.implied = std::mem::take(&mut extracted.implied).into_iter().collect();
        while let Some(dir) = self.implied.first().cloned() {
            let link = self.link_below(&dir).map_err(failed(&dir, "looking at the layers below"))?;
            let moved = match link {
                Some(target) => self.dissolve(&dir, &target, extracted)?,
                None => false,
            };
            self.implied.remove(&dir);
            if !moved {
                self.settled.insert(dir);
            }
        }
        extracted.implied = std::mem::take(&mut self.settled).into_iter().collect();
        extracted.relocated = !self.moves.is_empty();
        extracted.whiteouts.iter_mut().for_each(|whiteout| *whiteout = self.moved(whiteout));
        for (name, target) in &mut extracted.missing_targets {
            *name = self.moved(name);
            *target = self.moved(target);
        }
        Ok(())
    }

    /// The path of a directory without its links.
    pub(crate) fn real(&mut self, entry: &[u8], dir: &[u8]) -> Result<Vec<u8>, ExtractError> {
        let mut bounds = std::mem::replace(&mut self.bounds, Bounds::new(0));
        let real = follow(entry, dir, &mut bounds, |at| self.look(at));
        self.bounds = bounds;
        real
    }

    fn look(&self, at: &[u8]) -> Result<Seen, Errno> {
        if self.implied.contains(at) {
            return Ok(self.link_below(at)?.map_or(Seen::Other, Seen::Link));
        }
        let (dir, name) = cut(at);
        match inside(self.layer, dir)? {
            Inside::Hidden => Ok(Seen::Other),
            Inside::Missing { opaque: true } => Ok(Seen::Other),
            Inside::Missing { opaque: false } => self.look_below(at),
            Inside::Dir { fd, opaque } => match stat_at(fd.as_fd(), name)? {
                None if !opaque => self.look_below(at),
                None => Ok(Seen::Other),
                Some(_) => read_link(&fd, name),
            },
        }
    }

    fn look_below(&self, at: &[u8]) -> Result<Seen, Errno> {
        match find(self.lowers, at)? {
            Some((fd, _)) => read_link(&fd, cut(at).1),
            None => Ok(Seen::Other),
        }
    }

    /// Where the link leads that the layers below have at a directory of this layer, unless the
    /// layer hides it by other means as well.
    fn link_below(&self, dir: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        if dir.is_empty() || self.lowers.is_empty() {
            return Ok(None);
        }
        match inside(self.layer, dir)? {
            Inside::Dir { opaque: false, .. } => {}
            _ => return Ok(None),
        }
        match self.look_below(dir)? {
            Seen::Link(target) => Ok(Some(target)),
            Seen::Other => Ok(None),
        }
    }

    /// Moves what is in `dir` to where the link leads; false when there is no directory to move it
    /// to.
    fn dissolve(&mut self, dir: &[u8], target: &[u8], extracted: &mut Extracted) -> Result<bool, ExtractError> {
        let (parent, name) = cut(dir);
        let keep = |reason: &str| {
            tracing::debug!(dir = lossy(dir), reason, "a directory of the layer replaces a link of the layers below");
            Ok(false)
        };
        let text = if target.first() == Some(&b'/') { target.to_vec() } else { join(parent, target) };
        let to = match self.real(dir, &text) {
            Ok(to) => to,
            Err(ExtractError::Malformed { reason, .. }) => return keep(&reason),
            Err(error) => return Err(error),
        };
        let below = [dir, b"/"].concat();
        if to == dir || to.starts_with(&below) {
            return keep("the link leads into itself");
        }
        let Some(into) = self.make(&to, extracted).map_err(failed(dir, "making its directory"))? else {
            return keep("the link leads to no directory");
        };
        let from = open_beneath(self.layer, parent, OFlags::RDONLY).map_err(failed(dir, "opening its directory"))?;
        let source = open_beneath(from.as_fd(), name, OFlags::RDONLY).map_err(failed(dir, "opening it"))?;
        let moved = |source| ExtractError::Io { entry: lossy(dir), operation: "moving it through a link", source };
        keeping_times(into.as_fd(), || self.merge(dir, &source, &to, &into)).map_err(moved)?;
        keeping_times(from.as_fd(), || Ok(rfs::unlinkat(&from, path(name), AtFlags::REMOVEDIR)?)).map_err(moved)?;
        extracted.inodes = extracted.inodes.saturating_sub(1);
        extracted.bytes = extracted.bytes.saturating_sub(4096);
        self.moves.push((dir.to_vec(), to));
        Ok(true)
    }

    /// A directory of the layer, made as far as it has none; `None` when something else is in the
    /// way.
    fn make(&mut self, dir: &[u8], extracted: &mut Extracted) -> Result<Option<OwnedFd>, Errno> {
        let mut at = open_beneath(self.layer, b"", OFlags::RDONLY)?;
        let mut so_far = Vec::new();
        for component in dir.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            so_far = join(&so_far, component);
            let whited_out = is_whiteout(at.as_fd(), component);
            match stat_at(at.as_fd(), component)? {
                Some(stat) if kind(&stat) == FileType::Directory => {}
                Some(_) if !whited_out => return Ok(None),
                None if find(self.lowers, &so_far)?.is_some_and(|(_, stat)| kind(&stat) != FileType::Directory) => {
                    return Ok(None);
                }
                _ => {
                    keeping_times(at.as_fd(), || {
                        if whited_out {
                            rfs::unlinkat(&at, path(component), AtFlags::empty())?;
                        }
                        Ok(rfs::mkdirat(&at, path(component), Mode::from_raw_mode(0o755))?)
                    })
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
                    extracted.inodes += 1;
                    extracted.bytes += 4096;
                    self.settled.insert(so_far.clone());
                    let made = open_beneath(at.as_fd(), component, OFlags::RDONLY)?;
                    rfs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                    if whited_out {
                        set_opaque(&so_far, made.as_fd()).map_err(|_| Errno::NOTSUP)?;
                    }
                }
            }
            at = open_beneath(at.as_fd(), component, OFlags::RDONLY)?;
        }
        Ok(Some(at))
    }

    /// Moves the content of one directory of the layer into another. Where both have a name, the
    /// one that the layer calls by its own path stays.
    fn merge(&mut self, from: &[u8], source: &OwnedFd, to: &[u8], into: &OwnedFd) -> io::Result<()> {
        for entry in std::fs::read_dir(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(source)))? {
            let name = entry?.file_name();
            let (old, new) = (join(from, name.as_bytes()), join(to, name.as_bytes()));
            let is_dir = stat_at(source.as_fd(), name.as_bytes())?.is_some_and(|s| kind(&s) == FileType::Directory);
            match rfs::renameat_with(source, &name, into, &name, RenameFlags::NOREPLACE) {
                Ok(()) if is_dir => self.rename_implied(&old, &new),
                Ok(()) => {}
                Err(Errno::EXIST) => self.meet(&old, source, &new, into, &name, is_dir)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Both directories have the name.
    fn meet(
        &mut self,
        old: &[u8],
        source: &OwnedFd,
        new: &[u8],
        into: &OwnedFd,
        name: &OsStr,
        is_dir: bool,
    ) -> io::Result<()> {
        let bytes = name.as_bytes();
        let there = stat_at(into.as_fd(), bytes)?.is_some_and(|s| kind(&s) == FileType::Directory);
        let opaque = |at: &OwnedFd| -> io::Result<()> {
            let dir = open_beneath(at.as_fd(), bytes, OFlags::RDONLY)?;
            set_opaque(new, dir.as_fd()).map_err(|_| io::Error::from(Errno::NOTSUP))
        };
        if is_whiteout(into.as_fd(), bytes) {
            if is_dir {
                opaque(source)?;
            }
            rfs::unlinkat(into, name, AtFlags::empty())?;
            rfs::renameat(source, name, into, name)?;
            self.rename_implied(old, new);
        } else if is_whiteout(source.as_fd(), bytes) {
            if there {
                opaque(into)?;
            }
            rfs::unlinkat(source, name, AtFlags::empty())?;
        } else if is_dir && there {
            let from = open_beneath(source.as_fd(), bytes, OFlags::RDONLY)?;
            let onto = open_beneath(into.as_fd(), bytes, OFlags::RDONLY)?;
            let listed = !self.implied.remove(old);
            let unlisted = self.implied.contains(new) || self.settled.contains(new);
            if is_opaque(from.as_fd()) {
                opaque(into)?;
            }
            keeping_times(onto.as_fd(), || self.merge(old, &from, new, &onto))?;
            if listed && unlisted {
                attributes(from.as_fd(), onto.as_fd(), &rfs::fstat(&from)?)?;
                self.implied.remove(new);
                self.settled.remove(new);
            }
            rfs::unlinkat(source, name, AtFlags::REMOVEDIR)?;
        } else if is_dir {
            remove_tree(source.as_fd(), bytes)?;
            self.rename_implied(old, new);
        } else {
            rfs::unlinkat(source, name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// A directory went elsewhere with all that is in it.
    fn rename_implied(&mut self, old: &[u8], new: &[u8]) {
        let prefix = [old, b"/"].concat();
        let below = self.implied.range(prefix.clone()..).take_while(|dir| dir.starts_with(&prefix));
        let mut moving: Vec<_> = below.cloned().collect();
        moving.extend(self.implied.get(old).cloned());
        for dir in moving {
            self.implied.remove(&dir);
            let renamed = [new, &dir[old.len()..]].concat();
            if open_beneath(self.layer, &renamed, OFlags::PATH).is_ok() {
                self.implied.insert(renamed);
            }
        }
    }

    /// Where a path of the layer is now.
    fn moved(&self, path: &[u8]) -> Vec<u8> {
        let mut path = path.to_vec();
        for (from, to) in &self.moves {
            if let Some(rest) = path.strip_prefix(&from[..]).and_then(|rest| rest.strip_prefix(b"/")) {
                path = join(to, rest);
            }
        }
        path
    }
}

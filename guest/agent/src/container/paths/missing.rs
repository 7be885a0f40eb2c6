//! Where a path leads of which something is missing, with the links that lead to what is missing.
//!
//! The kernel follows no link to a missing file, so this walk does it: one component at a time, each opened below the
//! descriptor of its parent without following it. `..` goes back to a descriptor that the walk holds already and is
//! never asked of the kernel, and a link's text starts again at the root or goes on at the link's own directory. So
//! nothing outside the root is ever opened, whatever others rename or link meanwhile.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::file_type;

/// Most links on one way: the kernel's own limit.
const MAX_LINKS: usize = 40;
/// Most components of one way, those of links included: none makes the walk long.
const MAX_PARTS: usize = 4096;
/// Magic number of procfs, whose links say something else than where they lead.
const PROC_MAGIC: i64 = 0x9fa0;

/// The end of a walk.
#[derive(Debug)]
pub struct Place {
    /// The last thing on the way that is there.
    pub dir: OwnedFd,
    /// Names below it that are not; no name is `..` or a link.
    pub missing: Vec<OsString>,
}

/// What the walk has behind it, from the root on.
struct Way {
    root: OwnedFd,
    /// Name and, if it is there, descriptor of each component.
    done: Vec<(OsString, Option<OwnedFd>)>,
}

impl Way {
    /// The directory to look in; `None` when it is missing.
    fn here(&self) -> Option<&OwnedFd> {
        self.done.last().map_or(Some(&self.root), |(_, fd)| fd.as_ref())
    }
}

/// Finds where `path` leads inside `root`.
///
/// # Errors
/// ELOOP for too many links and for links of procfs, ENAMETOOLONG for too many components, ENOTDIR for a file on the
/// way, else as `openat`.
pub fn find(root: impl AsFd, path: &Path) -> io::Result<Place> {
    let mut way = Way { root: root.as_fd().try_clone_to_owned()?, done: Vec::new() };
    let mut todo: VecDeque<OsString> = parts(path).collect();
    let (mut links, mut steps) = (0, 0);
    while let Some(name) = todo.pop_front() {
        steps += 1;
        if steps > MAX_PARTS {
            return Err(Errno::NAMETOOLONG.into());
        }
        if name.as_bytes() == b".." {
            way.done.pop();
            continue;
        }
        let Some(here) = way.here() else {
            way.done.push((name, None));
            continue;
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match rustix::fs::openat(here, name.as_os_str(), flags, Mode::empty()) {
            Err(Errno::NOENT) => None,
            other => Some(other?),
        };
        match found {
            Some(link) if file_type(&link)? == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS || rustix::fs::fstatfs(&link)?.f_type == PROC_MAGIC {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&link, c"", Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
                if target.is_absolute() {
                    way.done.clear();
                }
                for part in parts(target).collect::<Vec<_>>().into_iter().rev() {
                    todo.push_front(part);
                }
                if todo.len() > MAX_PARTS {
                    return Err(Errno::NAMETOOLONG.into());
                }
            }
            found => way.done.push((name, found)),
        }
    }
    let there = way.done.iter().take_while(|(_, fd)| fd.is_some()).count();
    let missing = way.done.split_off(there).into_iter().map(|(name, _)| name).collect();
    let dir = way.done.pop().and_then(|(_, fd)| fd).unwrap_or(way.root);
    Ok(Place { dir, missing })
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

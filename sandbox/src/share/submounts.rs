//! The mounts below a volume's source. A guest sees one file system, so what differs between them is said here.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2};

use super::Access;
use crate::error::SandboxError;
use crate::mountinfo::{self, MountInfo};

/// Most mounts below one volume that are treated one by one.
const MAX_SUBMOUNTS: usize = 1024;

/// What is mounted below one source, as seen now.
pub(super) struct Submounts {
    mounts: Vec<MountInfo>,
    source: PathBuf,
}

impl Submounts {
    /// Of `source`, a path without symlinks.
    pub(super) fn below(source: &Path) -> Result<Self, SandboxError> {
        let mut mounts = mountinfo::read()?;
        let hidden = unbindable(&mounts);
        mounts.retain(|mount| mount.point.starts_with(source) && mount.point != source);
        mounts.retain(|mount| !hidden.contains(&mount.id) && open(mount).is_some());
        // The kernel's order is that of their making, and a mount can be moved onto a younger one.
        mounts.sort_by_key(|mount| mount.point.components().count());
        if mounts.len() > MAX_SUBMOUNTS {
            return Err(SandboxError::Invalid(format!(
                "more than {MAX_SUBMOUNTS} mounts lie below {}: mount a folder of it",
                source.display()
            )));
        }
        Ok(Self { mounts, source: source.to_owned() })
    }

    /// Those that can be written, as paths below the source; what lies below such a one is left out.
    pub(super) fn writable(&self) -> Vec<PathBuf> {
        let mut list: Vec<PathBuf> = Vec::new();
        for mount in self.mounts.iter().filter(|mount| !mount.read_only) {
            let Ok(path) = mount.point.strip_prefix(&self.source) else { continue };
            if !list.iter().any(|above| path.starts_with(above)) {
                list.push(path.to_owned());
            }
        }
        list
    }

    /// Each as its path below the source, its mount point and itself, after those that it lies in. One that goes away meanwhile is
    /// left out.
    pub(super) fn open(&self) -> impl Iterator<Item = (PathBuf, &Path, OwnedFd)> {
        self.mounts.iter().filter_map(|mount| {
            let below = mount.point.strip_prefix(&self.source).ok()?.to_owned();
            Some((below, mount.point.as_path(), open(mount)?))
        })
    }

    /// Part of the name of an export that follows the node's mounts, which says what is below it and whether owners are mapped: the
    /// file server keeps files of different ones apart, since a folder in the one may hold a mount that it does not hold in the other,
    /// and a file other owners.
    pub(super) fn view(&self, access: Access) -> String {
        let mut hash = DefaultHasher::new();
        if access.mapped {
            "mapped".hash(&mut hash);
        }
        for mount in &self.mounts {
            (mount.id, mount.device, &mount.root, &mount.point).hash(&mut hash);
        }
        format!("-s{:x}", hash.finish())
    }
}

/// The mounts that are unbindable, as the shares of pods are, and all that lies on them.
fn unbindable(mounts: &[MountInfo]) -> HashSet<u64> {
    let mut children: HashMap<u64, Vec<u64>> = HashMap::new();
    for mount in mounts {
        children.entry(mount.parent).or_default().push(mount.id);
    }
    let mut found = HashSet::new();
    let mut todo: Vec<u64> = mounts.iter().filter(|mount| mount.unbindable).map(|mount| mount.id).collect();
    while let Some(id) = todo.pop() {
        if found.insert(id) {
            todo.extend(children.get(&id).into_iter().flatten());
        }
    }
    found
}

/// The root of a mount, unless another one is mounted over it.
fn open(mount: &MountInfo) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(CWD, &mount.point, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).ok()?;
    let stat = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (stat.stx_mnt_id == mount.id).then_some(file)
}

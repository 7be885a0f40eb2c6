//! The mounts below a volume's source. A guest sees one file system, so what differs between them is said here.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};

use super::Access;
use crate::error::SandboxError;
use crate::mountinfo::{self, MountInfo};

/// Most mounts below one volume that are treated one by one.
const MAX_SUBMOUNTS: usize = 4096;

/// What is mounted below one source, as seen now.
pub(super) struct Submounts {
    mounts: Vec<MountInfo>,
    source: PathBuf,
}

impl Submounts {
    /// Of `source`, a path without symlinks.
    pub(super) fn below(source: &Path) -> Result<Self, SandboxError> {
        let mut mounts = mountinfo::read()?;
        mounts.retain(|mount| mount.point.starts_with(source) && mount.point != source && is_visible(mount));
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

    /// Part of an export's name that says what is below it, whether later mounts come in and whether owners are mapped: the file server
    /// keeps files of different ones apart, since a folder in the one may hold a mount that it does not hold in the other, and a
    /// file other owners. Empty: one plain mount.
    pub(super) fn view(&self, access: Access) -> String {
        if self.mounts.is_empty() && !access.follow && !access.mapped {
            return String::new();
        }
        let mut hash = DefaultHasher::new();
        if access.mapped {
            "mapped".hash(&mut hash);
        }
        for mount in &self.mounts {
            (mount.id, mount.device, &mount.root, &mount.point).hash(&mut hash);
        }
        format!("-{}{:x}", if access.follow { 's' } else { 'p' }, hash.finish())
    }
}

/// Whether nothing is mounted over it.
fn is_visible(mount: &MountInfo) -> bool {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::open(&mount.point, flags, Mode::empty()) else { return false };
    let stat = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    stat.is_ok_and(|stat| stat.stx_mnt_id == mount.id)
}

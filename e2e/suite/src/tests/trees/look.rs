//! A tree as it can be seen, and how two differ.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::failure::{Doing, Outcome};

/// Times of folders in the images are before this (2025), or far behind it. Between them is when the
/// images were unpacked: containerd's time for a folder that a layer changes and does not list.
const UNPACKED: std::ops::Range<i64> = 1_735_700_000..2_100_000_000;

/// Everything by its path.
#[derive(Default)]
pub(super) struct Tree(BTreeMap<PathBuf, Entry>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds; `None` where that is when it was unpacked.
    time: Option<(i64, i64)>,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first name of the same file.
    first_name: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Folder,
    /// Size and digest.
    File(u64, String),
    Link(PathBuf),
    Pipe,
    Socket,
    Device {
        block: bool,
        number: u64,
    },
}

impl Tree {
    /// Reads the tree below `root`, the root itself with it.
    pub(super) fn of(root: &Path) -> Outcome<Self> {
        let mut names: Vec<PathBuf> = vec![root.to_owned()];
        let mut todo = names.clone();
        while let Some(folder) = todo.pop() {
            for entry in fs::read_dir(&folder).doing(&format!("list {}", folder.display()))? {
                let entry = entry.doing("read a folder")?;
                if entry.file_type().doing("see what an entry is")?.is_dir() {
                    todo.push(entry.path());
                }
                names.push(entry.path());
            }
        }
        names.sort();
        let mut files: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
        let mut tree = Self::default();
        for path in names {
            let name = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let stat = fs::symlink_metadata(&path).doing(&format!("look at {}", path.display()))?;
            let first_name = files.entry((stat.dev(), stat.ino())).or_insert_with(|| name.clone()).clone();
            let told = !stat.is_dir() || !UNPACKED.contains(&stat.mtime());
            let time = told.then(|| (stat.mtime(), stat.mtime_nsec()));
            let entry = Entry {
                kind: Kind::of(&path, &stat)?,
                mode: stat.mode() & 0o7777,
                owner: (stat.uid(), stat.gid()),
                time,
                attributes: attributes(&path)?,
                first_name,
            };
            tree.0.insert(name, entry);
        }
        Ok(tree)
    }

    /// A line for each entry that is not the same in both.
    pub(super) fn differences(&self, theirs: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, entry) in &self.0 {
            match theirs.0.get(name) {
                None => lines.push(format!("{} is not there in containerd: {entry:?}", name.display())),
                Some(other) if !entry.is_as(other) => {
                    lines.push(format!("{} is {entry:?}; in containerd {other:?}", name.display()));
                }
                Some(_) => {}
            }
        }
        let missing = theirs.0.iter().filter(|(name, _)| !self.0.contains_key(*name));
        lines.extend(missing.map(|(name, other)| format!("{} is in containerd only: {other:?}", name.display())));
        lines
    }
}

impl Entry {
    /// Where containerd has no time that a layer told, ours may be that of the layer below.
    fn is_as(&self, theirs: &Self) -> bool {
        let time = if theirs.time.is_none() { None } else { self.time };
        Self { time, ..self.clone() } == *theirs
    }
}

impl Kind {
    fn of(path: &Path, stat: &fs::Metadata) -> Outcome<Self> {
        let kind = stat.file_type();
        Ok(if kind.is_dir() {
            Self::Folder
        } else if kind.is_symlink() {
            Self::Link(fs::read_link(path).doing(&format!("read the link {}", path.display()))?)
        } else if kind.is_fifo() {
            Self::Pipe
        } else if kind.is_socket() {
            Self::Socket
        } else if kind.is_file() {
            let content = fs::read(path).doing(&format!("read {}", path.display()))?;
            Self::File(stat.len(), Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
        } else {
            Self::Device { block: kind.is_block_device(), number: stat.rdev() }
        })
    }
}

fn attributes(path: &Path) -> Outcome<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 64 << 10];
    let length =
        rustix::fs::llistxattr(path, &mut names[..]).doing(&format!("list attributes of {}", path.display()))?;
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).doing(&format!("read {name:?}"))?;
        attributes.insert(name.to_string_lossy().into_owned(), value[..length].to_vec());
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn tree(change: impl FnOnce(&Path)) -> Tree {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(root.join("folder")).unwrap();
        for name in ["one", "two"] {
            fs::write(root.join(name), "same").unwrap();
        }
        symlink("one", root.join("link")).unwrap();
        change(root);
        for name in ["one", "two", "link"] {
            let time = rustix::fs::Timespec { tv_sec: 1_600_000_000, tv_nsec: 0 };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let at = root.join(name);
            rustix::fs::utimensat(rustix::fs::CWD, &at, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        Tree::of(root).unwrap()
    }

    #[test]
    fn each_difference_is_seen() {
        let plain = tree(|_| {});
        assert_eq!(plain.differences(&tree(|_| {})), [""; 0]);
        let changes: [fn(&Path); 6] = [
            |root| fs::write(root.join("one"), "other").unwrap(),
            |root| fs::set_permissions(root.join("one"), fs::Permissions::from_mode(0o600)).unwrap(),
            |root| {
                fs::remove_file(root.join("two")).unwrap();
                fs::hard_link(root.join("one"), root.join("two")).unwrap();
            },
            |root| {
                fs::remove_file(root.join("link")).unwrap();
                symlink("two", root.join("link")).unwrap();
            },
            |root| fs::write(root.join("more"), "").unwrap(),
            |root| fs::remove_dir(root.join("folder")).unwrap(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let changed = tree(change);
            assert_eq!(plain.differences(&changed).len(), 1, "change {number}");
            assert_eq!(changed.differences(&plain).len(), 1, "change {number}");
        }
    }
}

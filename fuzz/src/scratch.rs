//! Directories for targets that change files.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A directory that goes away with what it answers.
///
/// # Errors
/// When it cannot be made.
pub fn dir() -> io::Result<tempfile::TempDir> {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/fuzz-scratch"));
    fs::create_dir_all(base)?;
    tempfile::tempdir_in(base.canonicalize()?)
}

/// Everything below `dir` but what is below `but`: kinds, modes, owners, sizes, times, contents.
///
/// # Errors
/// When something cannot be read.
pub fn snapshot(dir: &Path, but: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(path) = open.pop() {
        let stat = path.symlink_metadata()?;
        let content = if stat.is_file() { fs::read(&path)? } else { Vec::new() };
        let link = fs::read_link(&path).ok();
        let facts = (stat.mode(), stat.uid(), stat.gid(), stat.nlink(), stat.rdev(), stat.mtime(), stat.mtime_nsec());
        if stat.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?.path();
                if entry != but {
                    open.push(entry);
                }
            }
        }
        found.insert(path, format!("{facts:?} {link:?} {content:?}"));
    }
    Ok(found)
}

/// Whether this process may make devices, mounts and files of other users.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

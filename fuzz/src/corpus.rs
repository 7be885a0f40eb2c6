//! Inputs that are in the repository.

use std::fs;
use std::path::PathBuf;

use crate::Target;

/// The folder of a target's inputs.
#[must_use]
pub fn folder(target: &Target) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus")).join(target.name)
}

/// The inputs of a target in the order of their names.
///
/// # Errors
/// When the folder cannot be read.
pub fn read(target: &Target) -> std::io::Result<Vec<Vec<u8>>> {
    let mut paths =
        fs::read_dir(folder(target))?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(fs::read).collect()
}

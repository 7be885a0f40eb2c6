//! A layer on its way into the store: a directory below `tmp/`, and the file beside the tree that
//! says what it is.
//!
//! ```text
//!  tmp/layer-N/  or  layers/<chain id>/
//!  ├── fs/       the tree
//!  └── record    JSON, written when the tree is whole: see Record
//! ```
//!
//! The record lets the next daemon keep whole layers of a pull that failed or was killed. It counts
//! within the boot in which it was written only: nothing of it was synced.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::background::Background;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::extract::Extracted;

/// Records of more bytes are not written and not read: the layer has very many directories that it
/// does not list.
const RECORD_BYTES: u64 = 4 << 20;

/// A directory below `tmp/`, removed unless it was moved away.
pub(crate) struct Staging {
    path: PathBuf,
    background: Arc<Background>,
    kept: bool,
}

/// What a whole layer is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The kernel's boot id when it was written.
    pub(crate) boot: String,
    /// Of the compressed blob.
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    /// It was unpacked as a layer with none below it.
    pub(crate) lowest: bool,
    /// As it was extracted, before it was completed on top of other layers.
    pub(crate) extracted: Extracted,
    /// As it is when it was completed, which changes the counts.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl Staging {
    pub(crate) fn new(path: PathBuf, background: Arc<Background>) -> StoreResult<Self> {
        let failed = |e| StoreError::io(format!("making {}", path.display()), e);
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        let staging = Self { path: path.clone(), background, kept: false };
        let root = path.join("fs");
        fs::create_dir(&root).map_err(failed)?;
        // Whatever the umask is.
        fs::set_permissions(&root, Permissions::from_mode(0o755)).map_err(failed)?;
        Ok(staging)
    }

    /// One that an earlier daemon left whole.
    pub(crate) fn found(path: PathBuf, background: Arc<Background>) -> Self {
        Self { path, background, kept: false }
    }

    pub(crate) fn root(&self) -> StoreResult<OwnedFd> {
        open_dir(&self.path.join("fs"))
    }

    /// Writes the record, if it is not too large.
    pub(crate) fn write(&self, record: &Record) -> StoreResult<()> {
        let path = self.path.join("record");
        let failed = |e| StoreError::io(format!("writing {}", path.display()), e);
        let json = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        if json.len() as u64 > RECORD_BYTES {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
                _ => Ok(()),
            };
        }
        let new = self.path.join("record.new");
        File::create(&new).and_then(|mut file| file.write_all(&json)).map_err(failed)?;
        fs::rename(&new, &path).map_err(failed)
    }

    pub(crate) fn move_to(mut self, path: &Path) -> StoreResult<()> {
        fs::rename(&self.path, path).map_err(|e| StoreError::io(format!("renaming to {}", path.display()), e))?;
        self.kept = true;
        Ok(())
    }

    /// Leaves the directory to the next daemon.
    pub(crate) fn leave(mut self) {
        self.kept = true;
    }

    /// Deletes it now. Blocks.
    pub(crate) fn delete(mut self) {
        self.kept = true;
        delete(&self.path);
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.kept {
            let path = std::mem::take(&mut self.path);
            self.background.spawn("image-gc", move || delete(&path));
        }
    }
}

impl Record {
    /// The record of the layer at `path`, if it has one that can be read.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let path = path.join("record");
        if fs::symlink_metadata(&path).ok()?.len() > RECORD_BYTES {
            return None;
        }
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    /// When it was written.
    pub(crate) fn time(path: &Path) -> Option<std::time::SystemTime> {
        fs::symlink_metadata(path.join("record")).ok()?.modified().ok()
    }
}

/// Deletes a layer's directory. The record goes first: what is left of the tree when the daemon is
/// killed meanwhile must not be taken for a whole layer.
pub(crate) fn delete(path: &Path) {
    let deleted = match fs::remove_file(path.join("record")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(path),
    };
    if let Err(error) = deleted {
        tracing::warn!(path = %path.display(), %error, "rubbish stays until the next start");
    }
}

pub(crate) fn open_dir(path: &Path) -> StoreResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| StoreError::io(format!("opening {}", path.display()), e.into()))
}

//! The store.

use std::path::PathBuf;

use crate::config::Config;
use crate::error::{StoreError, StoreResult};
use crate::image::Image;
use crate::progress::PullProgress;
use crate::registry::Auth;

/// `sha256:<config digest>`.
pub type ImageId = String;

/// What a lease gives: the directories to stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The image.
    pub image: ImageId,
    /// Topmost first; never empty (an image without layers has one empty directory).
    pub dirs: Vec<PathBuf>,
}

/// What the store uses of its file system. Counted as layers come and go, not walked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsUsage {
    /// The store's directory.
    pub path: PathBuf,
    /// Bytes of the layers' files and of the database.
    pub used_bytes: u64,
    /// Inodes of the layers.
    pub inodes_used: u64,
}

/// Images and their layers.
pub struct Store {
    config: Config,
}

#[allow(missing_docs)]
impl Store {
    pub fn open(config: Config) -> StoreResult<Self> {
        Ok(Self { config })
    }
    pub async fn pull(&self, reference: &str, _auth: Option<Auth>) -> StoreResult<ImageId> {
        Err(StoreError::NotFound { what: reference.into() })
    }
    pub fn progress(&self) -> Vec<PullProgress> {
        Vec::new()
    }
    pub fn status(&self, _reference_or_id: &str) -> StoreResult<Option<Image>> {
        Ok(None)
    }
    pub fn list(&self) -> StoreResult<Vec<Image>> {
        Ok(Vec::new())
    }
    pub async fn remove(&self, _reference_or_id: &str) -> StoreResult<()> {
        Ok(())
    }
    pub fn lease(&self, id: &str, _holder: &str) -> StoreResult<Layers> {
        Err(StoreError::NotFound { what: id.into() })
    }
    pub fn release(&self, _holder: &str) -> StoreResult<()> {
        Ok(())
    }
    pub fn leases(&self) -> Vec<String> {
        Vec::new()
    }
    pub fn usage(&self) -> FsUsage {
        FsUsage { path: self.config.root.clone(), used_bytes: 0, inodes_used: 0 }
    }
}

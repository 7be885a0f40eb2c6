//! Whether layers are still what came: the digest of each tree (`tree`) is kept beside its record,
//! in `seal`.
//!
//! It is taken when the layer is on the disk, by a thread of low priority, since pulls and pods
//! have more need of the processors. A layer without one is sealed as it is when it is looked at.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::inner::Inner;
use super::staging::open_dir;
use super::tree;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::lock::lock;

/// The version of the digest goes first: another one is none.
const VERSION: &str = "1 ";
/// Far more than a seal has.
const SEAL_BYTES: u64 = 256;
/// The lowest priority (setpriority(2)).
const NICE: i32 = 19;
/// Names of images in one answer.
const NAMES: usize = 100;

/// How a layer was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerState {
    /// As it came.
    Intact,
    /// Not as it came, or not to be read: why.
    Changed(String),
    /// It had not been looked at before: it counts as it is now.
    New,
}

/// A layer that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedLayer {
    /// Its chain ID.
    pub chain: Digest,
    /// Tags of the images that have it, or else their ids.
    pub images: Vec<String>,
    /// How it is.
    pub state: LayerState,
}

impl Inner {
    /// Seals the layers that are on the disk and have no seal yet. Blocks, at low priority.
    pub(super) fn seal(&self) -> StoreResult<()> {
        let _one_at_a_time = lock(&self.sealing);
        low_priority();
        let layers: Vec<Digest> = {
            let state = self.state();
            let synced = state.layers.iter().filter(|(_, layer)| layer.unsynced.is_none());
            synced.map(|(chain, _)| *chain).collect()
        };
        for chain in layers {
            if self.is_ending() {
                return Ok(());
            }
            if read_seal(&self.layer_path(&chain)).is_some() {
                continue;
            }
            match self.look(&chain, &|| !self.is_ending()) {
                Ok((root, digest)) => self.write_seal(&chain, &root, &digest)?,
                // Layers may go meanwhile.
                Err(error) => tracing::debug!(%chain, error, "a layer was not sealed"),
            }
        }
        Ok(())
    }

    /// Looks at each layer, and tells `sender` until it is closed. Blocks, at low priority.
    pub(super) fn verify(&self, sender: &mpsc::Sender<VerifiedLayer>) -> StoreResult<()> {
        low_priority();
        let layers: Vec<Digest> = self.state().layers.keys().copied().collect();
        let go_on = || !self.is_ending() && !sender.is_closed();
        for chain in layers {
            let mut state = self.judge(&chain, &go_on)?;
            if matches!(state, LayerState::Changed(_)) {
                // It may have gone, or gone and come again, while it was read.
                state = self.judge(&chain, &go_on)?;
            }
            if !go_on() {
                return Ok(());
            }
            if !self.state().layers.contains_key(&chain) {
                continue;
            }
            if let LayerState::Changed(why) = &state {
                tracing::error!(%chain, why, "a layer is damaged");
            }
            let layer = VerifiedLayer { chain, images: self.images_of(&chain), state };
            if !self.send(sender, layer) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn judge(&self, chain: &Digest, go_on: &dyn Fn() -> bool) -> StoreResult<LayerState> {
        let seal = read_seal(&self.layer_path(chain));
        Ok(match (self.look(chain, go_on), seal) {
            (Err(error), _) => LayerState::Changed(format!("cannot be read: {error}")),
            (Ok((_, actual)), Some(seal)) if actual == seal => LayerState::Intact,
            (Ok((_, actual)), Some(seal)) => {
                LayerState::Changed(format!("its tree has the digest {actual}, and had {seal} when it came"))
            }
            (Ok((root, actual)), None) => {
                self.write_seal(chain, &root, &actual)?;
                LayerState::New
            }
        })
    }

    /// The layer's root as it was opened, and the digest of its tree.
    fn look(&self, chain: &Digest, go_on: &dyn Fn() -> bool) -> Result<(OwnedFd, Digest), String> {
        let root = open_dir(&self.layer_path(chain).join("fs")).map_err(|error| error.chain())?;
        let digest = tree::digest(&root, go_on).map_err(|error| error.to_string())?;
        Ok((root, digest))
    }

    /// Writes a seal, unless the layer of this root has gone.
    fn write_seal(&self, chain: &Digest, root: &OwnedFd, digest: &Digest) -> StoreResult<()> {
        let layer = self.layer_path(chain);
        let failed = |e| StoreError::io(format!("writing {}", layer.join("seal").display()), e);
        // No layer comes or goes meanwhile.
        let _db = lock(&self.db);
        if !self.state().layers.contains_key(chain) {
            return Ok(());
        }
        let inode = |root: &OwnedFd| rustix::fs::fstat(root).map(|stat| (stat.st_dev, stat.st_ino));
        let there = open_dir(&layer.join("fs"))?;
        if inode(&there).ok() != inode(root).ok() {
            return Ok(());
        }
        let new = layer.join("seal.new");
        let written = File::create(&new).and_then(|mut file| write!(file, "{VERSION}{digest}"));
        written.and_then(|()| fs::rename(&new, layer.join("seal"))).map_err(failed)
    }

    fn images_of(&self, chain: &Digest) -> Vec<String> {
        let state = self.state();
        let having = state.images.iter().filter(|(_, image)| image.chains.contains(chain));
        let names = having.flat_map(|(id, image)| {
            let id = Some(id).filter(|_| image.tags.is_empty());
            image.tags.iter().chain(id).cloned().collect::<Vec<_>>()
        });
        names.take(NAMES).collect()
    }
}

/// Has a thread look at all layers, which tells `sender` of each.
pub(super) async fn verify(inner: &Arc<Inner>, sender: mpsc::Sender<VerifiedLayer>) -> StoreResult<()> {
    let owned = inner.clone();
    inner.background.run("layer-verify", move || owned.verify(&sender)).await
}

/// The digest that the layer's tree had, if it is known.
fn read_seal(layer: &Path) -> Option<Digest> {
    let path = layer.join("seal");
    if fs::symlink_metadata(&path).ok()?.len() > SEAL_BYTES {
        return None;
    }
    fs::read_to_string(path).ok()?.strip_prefix(VERSION)?.parse().ok()
}

fn low_priority() {
    // Of the calling thread alone. Without it, the work is done all the same.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the priority of a thread");
    }
}

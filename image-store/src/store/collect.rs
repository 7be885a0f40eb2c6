//! Layers that nothing needs any more: what goes, and when.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::db::Change;
use super::inner::Inner;
use super::jobs::deadline;
use super::staging;
use crate::digest::Digest;
use crate::lock::lock;

impl Inner {
    /// Deletes what nothing needs any more, without waiting for it.
    pub(crate) fn collect_later(self: &Arc<Self>) {
        self.in_background("image-gc", |inner| {
            delete(inner.collect());
            Ok(())
        });
    }

    /// Lets go of layers that were kept for the next pull: of those whose time is over, or of all
    /// when the disk is nearly full or `all` is set.
    pub(crate) fn tidy(&self, all: bool) {
        let before =
            if all || nearly_full(&self.config.root) { SystemTime::now() } else { deadline(self.config.keep_layers) };
        drop(self.jobs.expire(before));
        self.state().kept.retain(|_, since| *since > before);
    }

    /// Deletes all that is only kept for the next pull; gives the bytes of the whole layers among
    /// it.
    pub(crate) async fn give_back(self: &Arc<Self>) -> u64 {
        let inner = self.clone();
        let deleted = self.background.run("image-gc", move || {
            let used = |inner: &Self| inner.state().layers.values().map(|layer| layer.bytes).sum::<u64>();
            let before = used(&inner);
            inner.tidy(true);
            delete(inner.collect());
            Ok(before.saturating_sub(used(&inner)))
        });
        deleted.await.unwrap_or(0)
    }

    pub(super) fn collect_if_unused(self: &Arc<Self>) {
        if !self.state().unused().is_empty() {
            self.collect_later();
        }
    }

    /// Takes away layers that nothing needs. What it gives back is out of the store and still to be
    /// deleted.
    pub(crate) fn collect(&self) -> Vec<PathBuf> {
        let mut db = lock(&self.db);
        let unused = self.state().unused();
        if unused.is_empty() {
            return Vec::new();
        }
        db.remove(&Change { layers: unused.iter().map(|chain| (chain, None)).collect(), ..Change::default() });
        let leaving: Vec<Digest> = {
            let mut state = self.state();
            // A pull may have come for one meanwhile; then it records it again.
            let free = |chain: &Digest| !state.pins.contains_key(chain);
            let leaving: Vec<Digest> = unused.into_iter().filter(free).collect();
            leaving.iter().for_each(|chain| drop(state.layers.remove(chain)));
            leaving
        };
        let mut rubbish = Vec::new();
        for chain in leaving {
            let away = self.jobs.temporary("rubbish");
            match fs::rename(self.layer_path(&chain), &away) {
                Ok(()) => rubbish.push(away),
                Err(error) => tracing::warn!(%chain, %error, "cannot remove a layer before the next start"),
            }
        }
        rubbish
    }
}

/// Deletes what [`Inner::collect`] took out.
pub(crate) fn delete(rubbish: Vec<PathBuf>) {
    rubbish.iter().for_each(|path| staging::delete(path));
}

/// Whether less than 15 % of the store's file system is free: by default the kubelet frees space
/// then, and what is only kept for the next pull goes first.
fn nearly_full(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|fs| fs.f_bavail < fs.f_blocks / 20 * 3)
}

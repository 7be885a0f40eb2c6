//! What the store has, in memory for readers, and the layers that running pulls keep.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use super::db::{ImageRecord, LayerRecord, LeaseRecord};
use super::inner::Inner;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::progress::Meter;
use crate::reference::Reference;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<String, Arc<ImageRecord>>,
    pub(crate) layers: BTreeMap<Digest, LayerRecord>,
    pub(crate) leases: BTreeMap<String, LeaseRecord>,
    /// Layers that running pulls need.
    pub(super) pins: HashMap<Digest, usize>,
    /// Layers that no image has yet, since when: the next pull may want them.
    pub(super) kept: HashMap<Digest, SystemTime>,
    pub(crate) meters: Vec<Arc<Meter>>,
}

/// Keeps layers while a pull runs; what is unused afterwards goes.
pub(crate) struct Pins {
    inner: Arc<Inner>,
    chains: Vec<Digest>,
}

impl State {
    /// Whether an image has the reference among its names.
    pub(crate) fn has_name(&self, reference: &Reference) -> bool {
        self.images.values().any(|image| match (reference.tag_key(), reference.digest()) {
            (_, Some(digest)) => image.digests.contains(&reference.digest_key(digest)),
            (Some(tag), None) => image.tags.contains(&tag),
            (None, None) => false,
        })
    }

    /// The image that has the reference among its names, when the registry serves it still under
    /// the digest that it was pulled by: then a pull has nothing to change.
    pub(crate) fn unchanged(&self, reference: &Reference, served: &Digest) -> Option<String> {
        let digest = reference.digest_key(served);
        let same = |image: &ImageRecord| {
            image.digests.contains(&digest) && reference.tag_key().is_none_or(|tag| image.tags.contains(&tag))
        };
        self.images.iter().find(|(_, image)| same(image)).map(|(id, _)| id.clone())
    }

    /// The layers that the database is to know.
    pub(super) fn recorded(&self) -> impl Iterator<Item = &Digest> {
        let images = self.images.values().flat_map(|image| &image.chains);
        images.chain(self.leases.values().flat_map(|lease| &lease.chains))
    }

    pub(super) fn unused(&self) -> Vec<Digest> {
        let used: HashSet<&Digest> = self.recorded().chain(self.pins.keys()).chain(self.kept.keys()).collect();
        self.layers.keys().filter(|chain| !used.contains(chain)).copied().collect()
    }
}

impl Pins {
    /// Keeps these layers until it is dropped.
    pub(super) fn new(inner: &Arc<Inner>, chains: &[Digest]) -> Self {
        let mut state = inner.state();
        for chain in chains {
            *state.pins.entry(*chain).or_default() += 1;
        }
        Self { inner: inner.clone(), chains: chains.to_vec() }
    }

    /// For layers that the caller has counted already, under the lock by which it found them.
    pub(super) fn counted(inner: &Arc<Inner>, chains: Vec<Digest>) -> Self {
        Self { inner: inner.clone(), chains }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let unused = {
            let mut state = self.inner.state();
            for chain in &self.chains {
                if let Some(count) = state.pins.get_mut(chain) {
                    *count -= 1;
                    if *count == 0 {
                        state.pins.remove(chain);
                    }
                }
            }
            !state.unused().is_empty()
        };
        if unused {
            self.inner.collect_later();
        }
    }
}

/// The image that a reference, an id, or the beginning of one stands for.
pub(crate) fn resolve(state: &State, asked: &str) -> StoreResult<Option<String>> {
    if state.images.contains_key(asked) {
        return Ok(Some(asked.to_owned()));
    }
    let hex = asked.strip_prefix("sha256:").unwrap_or(asked);
    let digits = !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if digits && hex.len() == 64 {
        let id = format!("sha256:{hex}");
        return Ok(state.images.contains_key(&id).then_some(id));
    }
    let reference = asked.parse::<Reference>();
    if let Ok(reference) = &reference {
        let found = state.images.iter().find(|(_, image)| match reference.digest() {
            Some(digest) => image.digests.contains(&reference.digest_key(digest)),
            None => reference.tag_key().is_some_and(|key| image.tags.contains(&key)),
        });
        if let Some((id, _)) = found {
            return Ok(Some(id.clone()));
        }
    }
    if digits {
        let prefix = format!("sha256:{hex}");
        let mut fitting = state.images.keys().filter(|id| id.starts_with(&prefix));
        return match (fitting.next(), fitting.next()) {
            (Some(_), Some(_)) => Err(StoreError::Ambiguous { id: asked.into() }),
            (found, _) => Ok(found.cloned()),
        };
    }
    reference.map(|_| None).map_err(StoreError::from)
}

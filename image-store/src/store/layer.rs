//! One layer of one pull: had from wherever it can be had, and put on top of those below it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::field::Empty;
use tracing::info_span;

use super::artifact::Form;
use super::background::lost;
use super::db::LayerRecord;
use super::inner::Inner;
use super::jobs::{Interest, Key, Staged};
use super::pull::Pull;
use super::staging::{Record, Staging, open_dir};
use super::state::Pins;
use super::twin;
use super::unpack::Job;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::extract::{Extracted, complete};
use crate::registry::Descriptor;
use crate::step::{SPANS, step};

/// What a manifest says about a layer, or about a blob of an artifact.
pub(super) struct Wanted {
    pub(super) index: usize,
    pub(super) blob: Descriptor,
    pub(super) form: Form,
    pub(super) diff_id: Digest,
}

/// Where the layer is.
pub(super) enum Source {
    /// Unpacked, on top of nothing yet.
    Job(Interest, Arc<Staged>),
    /// On top of other layers.
    Twin(PathBuf, Box<Record>, Pins),
}

impl Wanted {
    fn job(&self, inner: &Inner) -> Job {
        Job {
            name: format!("layer {}", self.blob.digest),
            size: self.blob.size,
            form: self.form.clone(),
            lowest: self.index == 0,
            diff_id: self.diff_id,
            limits: inner.config.limits.clone(),
        }
    }

    /// Has the layer fetched and unpacked, unless it is there.
    pub(super) async fn stage(&self, pull: &Pull) -> StoreResult<Source> {
        let (inner, diff_id) = (pull.inner.clone(), self.diff_id);
        let twin = pull.inner.background.run("layer-twin", move || Ok(inner.twin(&diff_id))).await?;
        if let Some((path, record, pins)) = twin {
            return Ok(Source::Twin(path, Box::new(record), pins));
        }
        let span = info_span!(
            target: SPANS,
            "layer fetch",
            otel.status_code = Empty,
            layer.digest = %self.blob.digest,
            layer.bytes = self.blob.size
        );
        step(span, self.fetch(pull)).await
    }

    async fn fetch(&self, pull: &Pull) -> StoreResult<Source> {
        let lowest = self.index == 0;
        let mut key = Key { blob: self.blob.digest, diff_id: self.diff_id, lowest: None };
        let done = &pull.meter.layers()[self.index].received;
        let get = |key| pull.inner.jobs.get(key, || self.job(&pull.inner), &pull.session, &self.blob, done);
        let (interest, staged) = get(key).await?;
        if staged.lowest == lowest || !staged.extracted.marks {
            return Ok(Source::Job(interest, staged));
        }
        drop((interest, staged));
        key.lowest = Some(lowest);
        get(key).await.map(|(interest, staged)| Source::Job(interest, staged))
    }

    /// What can only be done on top of the layers below, then the rename. Blocks.
    pub(super) fn publish(&self, pull: &Pull, source: Source) -> StoreResult<()> {
        let inner = &pull.inner;
        let chain = &pull.chains[self.index];
        if inner.state().layers.contains_key(chain) {
            return Ok(());
        }
        let (staging, mut extracted) = self.tree(inner, source)?;
        let mut original = extracted.clone();
        let lowers = if self.index == 0 || extracted.hides_below {
            Vec::new()
        } else {
            inner.dirs(&inner.state(), &pull.chains[..self.index])
        };
        let lowers = lowers.iter().map(|dir| open_dir(dir)).collect::<StoreResult<Vec<_>>>()?;
        complete(staging.root()?.as_fd(), &lowers, &mut extracted).map_err(|e| self.job(inner).extract_failed(e))?;
        let Extracted { bytes, inodes, hides_below, relocated, .. } = extracted;
        original.relocated = relocated;
        staging.write(&Record {
            boot: inner.boot_id.clone(),
            blob: self.blob.digest,
            diff_id: self.diff_id,
            lowest: self.index == 0,
            extracted: original,
            bytes,
            inodes,
        })?;
        let unsynced = Some(inner.unsynced());
        let diff_id = Some(self.diff_id);
        inner.publish(chain, staging, LayerRecord { bytes, inodes, hides_below, diff_id, unsynced })
    }

    /// The layer's tree, for this pull alone.
    fn tree(&self, inner: &Inner, source: Source) -> StoreResult<(Staging, Extracted)> {
        let (root, extracted, _interest, _pins) = match source {
            Source::Job(interest, staged) => match interest.take(&staged) {
                Some(staging) => return Ok((staging, staged.extracted.clone())),
                None => {
                    let root = staged.root().ok_or_else(lost)??;
                    (root, staged.extracted.clone(), Some(interest), None)
                }
            },
            Source::Twin(path, record, pins) => (open_dir(&path.join("fs"))?, record.extracted, None, Some(pins)),
        };
        let staging = inner.jobs.staging()?;
        twin::copy(&root, &staging.root()?, &extracted.implied)
            .map_err(|e| StoreError::io(format!("copying layer {}", self.blob.digest), e.into()))?;
        Ok((staging, extracted))
    }
}

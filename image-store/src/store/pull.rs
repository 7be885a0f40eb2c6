//! One pull: manifest, config, layers side by side, record.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::{mpsc, watch};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::db::{ImageRecord, LayerRecord};
use super::inner::{Inner, Pins};
use super::unpack::{Job, Staging, open_dir};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::extract::{Extracted, complete};
use crate::image::{ImageConfig, ParsedConfig, parse_config};
use crate::platform::Normal;
use crate::progress::Meter;
use crate::reference::Reference;
use crate::registry::{Auth, Compression, Descriptor, Manifest, Session, not_an_image, printable};
use crate::step::{SPANS, step};

/// Chunks (of at most some 100 KiB) between network and unpacking.
const QUEUE: usize = 16;

/// What the layers of one pull share.
struct Pull {
    inner: Arc<Inner>,
    session: Session,
    meter: Arc<Meter>,
    pins: Arc<Pins>,
    chains: Vec<Digest>,
    diff_ids: Vec<Digest>,
    /// How many layers, from the lowest, are in the store.
    ready: watch::Sender<usize>,
    /// Layers, and their blocking work, which an aborted task does not take with it.
    tasks: TaskTracker,
}

/// A pull's place in the list of those that run.
struct Running<'a>(&'a Inner, &'a Arc<Meter>);

impl<'a> Running<'a> {
    fn new(inner: &'a Inner, meter: &'a Arc<Meter>) -> Self {
        inner.state().meters.push(meter.clone());
        Self(inner, meter)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state().meters.retain(|meter| !Arc::ptr_eq(meter, self.1));
    }
}

/// Pulls an image; gives its id.
pub(crate) async fn pull(inner: Arc<Inner>, reference: Reference, auth: Option<Auth>) -> StoreResult<String> {
    let meter = Meter::new(reference.to_string());
    let _running = Running::new(&inner, &meter);
    let work = steps(inner.clone(), &reference, auth, &meter);
    tokio::pin!(work);
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tokio::select! {
            result = &mut work => {
                let elapsed_ms = meter.snapshot().elapsed.as_millis() as u64;
                match &result {
                    Ok(id) => tracing::info!(image = %reference, id, elapsed_ms, "pulled"),
                    Err(error) => tracing::warn!(image = %reference, elapsed_ms, error = error.chain(), "pull failed"),
                }
                return result;
            }
            _ = tick.tick() => meter.log(),
        }
    }
}

async fn steps(
    inner: Arc<Inner>,
    reference: &Reference,
    auth: Option<Auth>,
    meter: &Arc<Meter>,
) -> StoreResult<String> {
    let session = inner.registries.session(reference, auth).await?;
    // Registries count what is got, and not what is only asked for.
    let known = inner.state().has_name(reference);
    let head = if known { session.head(reference).await } else { None };
    let unchanged = head.and_then(|digest| inner.state().unchanged(reference, &digest));
    if let Some(id) = unchanged {
        return Ok(id);
    }
    let (served, manifest, size) = resolve(&session, reference, head).await?;
    let id = manifest.config.digest.to_string();
    meter.bytes_total.store(size - manifest.config.size, Relaxed);
    meter.layers_total.store(manifest.layers.len() as u64, Relaxed);
    let mut image = ImageRecord {
        tags: reference.tag_key().into_iter().collect(),
        digests: BTreeSet::from([reference.digest_key(&served)]),
        size,
        config: ImageConfig::default(),
        chains: Vec::new(),
    };
    let known = inner.state().images.get(&id).cloned();
    // Pinned first, looked at then: nothing can go in between.
    let pins = inner.pin(known.as_ref().map_or(&[], |known| &known.chains));
    let known = known.filter(|_| inner.state().images.contains_key(&id));
    let pins = if let Some(known) = known {
        meter.bytes_done.store(size - manifest.config.size, Relaxed);
        meter.layers_done.store(manifest.layers.len() as u64, Relaxed);
        image.config = known.config.clone();
        image.chains = known.chains.clone();
        image.size = known.size;
        Arc::new(pins)
    } else {
        let span = info_span!(target: SPANS, "image config", otel.status_code = Empty);
        let parsed = step(span, config(&session, &manifest)).await?;
        check_config(&inner, &manifest, &parsed)?;
        image.config = parsed.config;
        image.chains = chains(&parsed.diff_ids);
        let pins = Arc::new(inner.pin(&image.chains));
        let pull = Pull {
            inner: inner.clone(),
            session,
            meter: meter.clone(),
            pins: pins.clone(),
            chains: image.chains.clone(),
            diff_ids: parsed.diff_ids,
            ready: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        };
        layers(Arc::new(pull), manifest.layers).await?;
        pins
    };
    meter.log();
    let commit_id = id.clone();
    let commit = run_blocking(move || {
        let result = inner.commit_image(&commit_id, image);
        drop(pins);
        result
    });
    step(info_span!(target: SPANS, "image record", otel.status_code = Empty), commit).await?;
    Ok(id)
}

/// The image behind `reference`: the digest under which it was served, its manifest, and how many
/// bytes the image has.
async fn resolve(
    session: &Session,
    reference: &Reference,
    head: Option<Digest>,
) -> StoreResult<(Digest, Manifest, u64)> {
    let span = info_span!(
        target: SPANS,
        "image manifest",
        otel.status_code = Empty,
        image.bytes = Empty,
        image.layers = Empty
    );
    let (served, manifest) = step(span.clone(), session.resolve(reference, head)).await?;
    let size = manifest.config.size + manifest.layers.iter().map(|(layer, _)| layer.size).sum::<u64>();
    span.record("image.bytes", size).record("image.layers", manifest.layers.len());
    Ok((served, manifest, size))
}

fn chains(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut parent = None;
    let chain = |diff_id: &Digest| {
        let chain = Digest::chain(parent.as_ref(), diff_id);
        parent = Some(chain);
        chain
    };
    diff_ids.iter().map(chain).collect()
}

fn check_config(inner: &Inner, manifest: &Manifest, parsed: &ParsedConfig) -> StoreResult<()> {
    if parsed.diff_ids.len() != manifest.layers.len() {
        return Err(StoreError::malformed(
            "image config",
            format!("has {} diff IDs for {} layers", parsed.diff_ids.len(), manifest.layers.len()),
        ));
    }
    let (node, have) = (&inner.config.platform, &parsed.config);
    // Builders that cross-compile often leave their own architecture here, and other runtimes do not look.
    let says = Normal::new(&have.os, &have.architecture, &parsed.variant);
    if !have.architecture.is_empty() && says.rank(node).is_none() {
        tracing::warn!(
            os = printable(&have.os),
            architecture = printable(&have.architecture),
            node = format!("{}/{}", node.os, node.architecture),
            "the image says that it is for another platform; it is taken all the same"
        );
    }
    Ok(())
}

/// The config document. One of a type that is no image's decides by its content whether it is one.
async fn config(session: &Session, manifest: &Manifest) -> StoreResult<ParsedConfig> {
    let read = async { parse_config(&session.config(&manifest.config).await?) };
    match (read.await, &manifest.odd_config) {
        (Err(StoreError::Malformed { .. } | StoreError::NotFound { .. }), Some(odd)) => Err(not_an_image(odd)),
        (other, _) => other,
    }
}

/// Brings all layers into the store, lowest first, several at a time.
async fn layers(pull: Arc<Pull>, layers: Vec<(Descriptor, Compression)>) -> StoreResult<()> {
    let parallel = pull.inner.config.max_parallel_layers.max(1);
    let tasks = layers.into_iter().enumerate().map(|(index, (blob, compression))| {
        let pull = pull.clone();
        // A task of its own, so that layers are hashed on several processors.
        async move {
            let tracker = pull.tasks.clone();
            let work = tracker.track_future(pull.layer(index, blob, compression)).in_current_span();
            AbortOnDropHandle::new(tokio::spawn(work)).await
        }
    });
    let result = stream::iter(tasks)
        .buffer_unordered(parallel)
        .map(|joined| joined.unwrap_or_else(|e| Err(StoreError::io("a layer's task", std::io::Error::other(e)))))
        .try_collect::<()>()
        .await;
    // What was aborted leaves unpacking threads behind, which end and clean up now that their streams are cut off.
    pull.tasks.close();
    pull.tasks.wait().await;
    result
}

impl Pull {
    async fn layer(self: Arc<Self>, index: usize, blob: Descriptor, compression: Compression) -> StoreResult<()> {
        let chain = self.chains[index];
        let turn = self.inner.turn(&chain).lock_owned().await;
        let known = self.inner.state().layers.contains_key(&chain);
        let staged = if known {
            self.meter.bytes_done.fetch_add(blob.size, Relaxed);
            None
        } else {
            Some(self.stage(index, &blob, compression).await?)
        };
        // Closed never: the sender is ours.
        let _ = self.ready.subscribe().wait_for(|ready| *ready >= index).await;
        if let Some((staging, extracted, job)) = staged {
            let (pull, digest) = (self.clone(), blob.digest);
            let span = info_span!(target: SPANS, "layer publish", otel.status_code = Empty, layer.digest = %digest);
            step(span, self.run(move || pull.finish(index, staging, extracted, &job))).await?;
        }
        drop(turn);
        self.ready.send_replace(index + 1);
        self.meter.layers_done.fetch_add(1, Relaxed);
        self.meter.log();
        Ok(())
    }

    /// Downloads and unpacks at the same time; once more when a mirror's bytes turned out to be
    /// wrong after they were used, and another endpoint can be asked.
    async fn stage(
        &self,
        index: usize,
        blob: &Descriptor,
        compression: Compression,
    ) -> StoreResult<(Staging, Extracted, Job)> {
        let first = self.stage_once(index, blob, compression).await;
        if !matches!(first, Err(StoreError::DigestMismatch { .. })) || !self.session.has_other_source() {
            return first;
        }
        self.stage_once(index, blob, compression).await
    }

    async fn stage_once(
        &self,
        index: usize,
        blob: &Descriptor,
        compression: Compression,
    ) -> StoreResult<(Staging, Extracted, Job)> {
        let job = Job {
            name: format!("layer {}", blob.digest),
            size: blob.size,
            compression,
            lowest: index == 0,
            diff_id: self.diff_ids[index],
            limits: self.inner.config.limits.clone(),
        };
        let fetch = info_span!(
            target: SPANS,
            "layer fetch",
            otel.status_code = Empty,
            layer.digest = %blob.digest,
            layer.bytes = blob.size
        );
        let unpack = info_span!(
            target: SPANS,
            "layer unpack",
            otel.status_code = Empty,
            layer.digest = %blob.digest,
            layer.unpacked_bytes = Empty
        );
        let (sink, chunks) = mpsc::channel(QUEUE);
        let (inner, pins, unpacking) = (self.inner.clone(), self.pins.clone(), unpack.clone());
        let unpacked = self.run(move || {
            let staging = inner.staging()?;
            let extracted = job.run(staging.root()?, chunks)?;
            unpacking.record("layer.unpacked_bytes", extracted.bytes);
            drop(pins);
            Ok((staging, extracted, job))
        });
        let fetched = self.session.blob(blob, sink, &self.meter.bytes_done);
        let (sent, unpacked) = tokio::join!(step(fetch, fetched), step(unpack, unpacked));
        // When both failed, the download's failure is the cause.
        sent?;
        unpacked
    }

    /// What can only be done on top of the layers below, then the rename.
    fn finish(&self, index: usize, staging: Staging, mut extracted: Extracted, job: &Job) -> StoreResult<()> {
        let lowers = if index == 0 || extracted.hides_below {
            Vec::new()
        } else {
            self.inner.dirs(&self.inner.state(), &self.chains[..index])
        };
        let lowers = lowers.iter().map(|dir| open_dir(dir)).collect::<StoreResult<Vec<_>>>()?;
        complete(staging.root()?.as_fd(), &lowers, &mut extracted).map_err(|e| job.extract_failed(e))?;
        let Extracted { bytes, inodes, hides_below, .. } = extracted;
        let unsynced = Some(self.inner.unsynced());
        self.inner.publish(&self.chains[index], staging, LayerRecord { bytes, inodes, hides_below, unsynced })
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> StoreResult<T> + Send + 'static) -> StoreResult<T> {
        joined(self.tasks.spawn_blocking(work)).await
    }
}

/// Runs what waits for disks beside the runtime's threads.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> StoreResult<T> + Send + 'static,
) -> StoreResult<T> {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(handle: tokio::task::JoinHandle<StoreResult<T>>) -> StoreResult<T> {
    handle.await.unwrap_or_else(|e| Err(StoreError::io("work in the store", std::io::Error::other(e))))
}

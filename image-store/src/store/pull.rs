//! One pull: manifest, config, layers side by side, record.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinError;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::background::lost;
use super::content::{Content, artifact_layers, check_config, content, image_layers, known};
use super::db::ImageRecord;
use super::inner::Inner;
use super::layer::Wanted;
use super::state::Pins;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::image::ImageConfig;
use crate::progress::{LayerMeter, Meter};
use crate::reference::Reference;
use crate::registry::{Auth, Manifest, Session};
use crate::signature::Demand;
use crate::step::{SPANS, step};

/// What the layers of one pull share.
pub(super) struct Pull {
    pub(super) inner: Arc<Inner>,
    pub(super) session: Session,
    pub(super) meter: Arc<Meter>,
    /// Keeps the layers that are there already.
    _pins: Arc<Pins>,
    pub(super) chains: Vec<Digest>,
    /// How many layers, from the lowest, are in the store.
    ready: watch::Sender<usize>,
    /// Layers, and their blocking work, which an aborted task does not take with it.
    tasks: TaskTracker,
}

/// A pull's place in the list of those that run.
pub(super) struct Running<'a>(&'a Inner, &'a Arc<Meter>);

impl<'a> Running<'a> {
    pub(super) fn new(inner: &'a Inner, meter: &'a Arc<Meter>) -> Self {
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
                if matches!(result, Err(StoreError::NoSpace { .. })) {
                    // What is kept for the next pull is what there is to give back.
                    inner.give_back().await;
                }
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
    let demand = demand(&inner, reference).await?;
    let (registries, host) = (inner.registries.clone(), reference.host().to_owned());
    let endpoints = inner.background.run("registry-files", move || registries.endpoints(&host)).await?;
    let session = inner.registries.session(reference, auth, endpoints);
    // Registries count what is got, and not what is only asked for.
    let known = inner.state().has_name(reference);
    let head = if known { session.head(reference).await } else { None };
    // What was let in by an earlier policy is looked at again.
    let unchanged = head.filter(|_| demand.is_none()).and_then(|digest| inner.state().unchanged(reference, &digest));
    if let Some(id) = unchanged {
        return Ok(id);
    }
    let (served, manifest, size) =
        resolve(&session, reference, head).await.map_err(|error| error.of_image(reference))?;
    if let Some(demand) = demand {
        let span = info_span!(target: SPANS, "image signature", otel.status_code = Empty);
        step(span, demand.check(&session, [served, manifest.digest])).await?;
    }
    let tags = reference.tag_key().into_iter().collect();
    let digests = BTreeSet::from([reference.digest_key(&served)]);
    let (config, chains) = (ImageConfig::default(), Vec::new());
    let image = ImageRecord { tags, digests, size, config, artifact: None, chains };
    bring(inner, session, reference, manifest, image, meter).await
}

/// What the signature policy wants of an image; `None` where it wants nothing.
async fn demand(inner: &Inner, reference: &Reference) -> StoreResult<Option<Demand>> {
    let Some(path) = inner.config.signature_policy.clone() else { return Ok(None) };
    let reference = reference.clone();
    let demand = inner.background.run("signature-policy", move || Demand::of(&path, reference)).await?;
    Ok(Some(demand).filter(|demand| !demand.is_nothing()))
}

/// Brings the image of a manifest into the store, under the names of `image`.
pub(super) async fn bring(
    inner: Arc<Inner>,
    session: Session,
    reference: &Reference,
    manifest: Manifest,
    mut image: ImageRecord,
    meter: &Arc<Meter>,
) -> StoreResult<String> {
    let of_image = |error: StoreError| error.of_image(reference);
    meter.begin(manifest.layers.iter().map(|layer| (layer.blob.digest, layer.blob.size)));
    let known = known(&inner, &manifest);
    // Pinned first, looked at then: nothing can go in between.
    let pins = inner.pin(known.as_ref().map_or(&[], |(_, known)| &known.chains));
    let known = known.filter(|(id, _)| inner.state().images.contains_key(id));
    let (id, pins) = if let Some((id, known)) = known {
        meter.layers().iter().for_each(LayerMeter::finish);
        image.config = known.config.clone();
        image.artifact = known.artifact.clone();
        image.chains = known.chains.clone();
        image.size = known.size;
        (id, Arc::new(pins))
    } else {
        let span = info_span!(target: SPANS, "image config", otel.status_code = Empty);
        let content = step(span, content(&session, &manifest)).await.map_err(of_image)?;
        let (id, wanted) = match content {
            Content::Image(parsed) => {
                check_config(&inner, &manifest, &parsed).map_err(of_image)?;
                image.config = parsed.config;
                (manifest.config.digest, image_layers(&manifest, parsed.diff_ids))
            }
            Content::Artifact(kind) => {
                image.artifact = Some(kind);
                (manifest.digest, artifact_layers(&manifest).map_err(of_image)?)
            }
        };
        image.chains = chains(wanted.iter().map(|wanted| &wanted.diff_id));
        let pins = Arc::new(inner.pin(&image.chains));
        let pull = Pull {
            inner: inner.clone(),
            session,
            meter: meter.clone(),
            _pins: pins.clone(),
            chains: image.chains.clone(),
            ready: watch::Sender::new(0),
            tasks: TaskTracker::new(),
        };
        layers(Arc::new(pull), wanted).await?;
        (id.to_string(), pins)
    };
    meter.log();
    let commit_id = id.clone();
    let background = inner.background.clone();
    let commit = background.run("image-record", move || {
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
    let size = size(&manifest);
    span.record("image.bytes", size).record("image.layers", manifest.layers.len());
    Ok((served, manifest, size))
}

/// Bytes of an image as it is sent.
pub(super) fn size(manifest: &Manifest) -> u64 {
    manifest.config.size + manifest.layers.iter().map(|layer| layer.blob.size).sum::<u64>()
}

fn chains<'a>(diff_ids: impl Iterator<Item = &'a Digest>) -> Vec<Digest> {
    let mut parent = None;
    let chain = |diff_id: &Digest| {
        let chain = Digest::chain(parent.as_ref(), diff_id);
        parent = Some(chain);
        chain
    };
    diff_ids.map(chain).collect()
}

/// Brings all layers into the store. When it fails, nothing of it goes on when this returns.
async fn layers(pull: Arc<Pull>, layers: Vec<Wanted>) -> StoreResult<()> {
    let tasks = pull.tasks.clone();
    let result = side_by_side(pull, layers).await;
    tasks.close();
    tasks.wait().await;
    result
}

/// Lowest first, several at a time.
async fn side_by_side(pull: Arc<Pull>, layers: Vec<Wanted>) -> StoreResult<()> {
    let places = Arc::new(Semaphore::new(pull.inner.config.max_parallel_layers.max(1)));
    let mut tasks = FuturesUnordered::new();
    let joined = |done: Result<StoreResult<()>, JoinError>| {
        done.unwrap_or_else(|e| Err(StoreError::io("a layer's task", std::io::Error::other(e))))
    };
    for wanted in layers {
        let place = loop {
            tokio::select! {
                biased;
                Some(done) = tasks.next() => joined(done)?,
                place = places.clone().acquire_owned() => break place.map_err(|_| lost())?,
            }
        };
        // A task of its own, so that layers are hashed on several processors.
        let work = pull.tasks.track_future(pull.clone().layer(wanted, place)).in_current_span();
        tasks.push(AbortOnDropHandle::new(tokio::spawn(work)));
    }
    while let Some(done) = tasks.next().await {
        joined(done)?;
    }
    Ok(())
}

impl Pull {
    async fn layer(self: Arc<Self>, wanted: Wanted, place: OwnedSemaphorePermit) -> StoreResult<()> {
        let index = wanted.index;
        let known = self.inner.state().layers.contains_key(&self.chains[index]);
        let staged = if known { None } else { Some(wanted.stage(&self).await?) };
        // A slow layer below holds up nobody who is behind it in the line.
        drop(place);
        // Closed never: the sender is ours.
        let _ = self.ready.subscribe().wait_for(|ready| *ready >= index).await;
        if let Some(staged) = staged {
            let (pull, digest) = (self.clone(), wanted.blob.digest);
            let span = info_span!(target: SPANS, "layer publish", otel.status_code = Empty, layer.digest = %digest);
            let token = self.tasks.token();
            let publish = self.inner.background.run("layer-publish", move || {
                let published = wanted.publish(&pull, staged);
                drop((pull, token));
                published
            });
            step(span, publish).await?;
        }
        self.ready.send_replace(index + 1);
        self.meter.layers()[index].finish();
        self.meter.log();
        Ok(())
    }
}

//! The store.

mod artifact;
mod background;
mod blocks;
mod budget;
mod chunks;
mod collect;
mod content;
mod db;
mod export;
mod fetching;
mod frames;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod gzip;
mod import;
mod inner;
mod jobs;
mod layer;
mod pool;
mod pull;
mod recover;
mod staging;
mod state;
mod tree;
mod twin;
mod unpack;
mod verify;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cofferdam_ledger::Failing;
use futures::Stream;
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use tokio::sync::mpsc;
use tracing::Instrument;

use self::collect::delete;
use self::db::ImageRecord;
pub use self::export::ExportPart;
use self::inner::Inner;
use self::state::{State, resolve};
pub use self::verify::{LayerState, VerifiedLayer};
use crate::config::Config;
use crate::error::StoreResult;
use crate::image::Image;
use crate::lock::lock;
use crate::progress::PullProgress;
use crate::reference::Reference;
use crate::registry::Auth;

/// `sha256:<config digest>`; of an OCI artifact, `sha256:<manifest digest>`.
pub type ImageId = String;

/// What a lease gives: the directories to stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers {
    /// The image.
    pub image: ImageId,
    /// Topmost first; never empty (an image without layers has one empty directory).
    pub dirs: Vec<PathBuf>,
}

/// An image that came in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The image.
    pub id: ImageId,
    /// Its names, normalised.
    pub names: Vec<String>,
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

type Work = BoxFuture<'static, StoreResult<ImageId>>;
type Running = HashMap<(Reference, Option<Auth>), WeakShared<Work>>;

/// Images and their layers. Every method may be called from any thread; those that are not async
/// take moments, or one commit of the database where they say so.
pub struct Store {
    inner: Arc<Inner>,
    /// Running pulls by what was asked: who asks the same joins. Given up when nobody waits any
    /// more.
    running: Arc<Mutex<Running>>,
    /// Archives are taken in one after the other: each is on the disk twice meanwhile.
    importing: tokio::sync::Mutex<()>,
    verifying: tokio::sync::Mutex<()>,
}

impl Store {
    /// Opens the store, and makes it when it is new. Removes what an earlier daemon left half-done,
    /// so only one daemon can have it: another one gets [`crate::StoreError::Config`].
    pub fn open(config: Config) -> StoreResult<Self> {
        Ok(Self {
            inner: Arc::new(Inner::open(config)?),
            running: Arc::default(),
            importing: Default::default(),
            verifying: Default::default(),
        })
    }

    /// Pulls an image, and asks the registry also when the image is there. Layers that are there
    /// are not sent again.
    ///
    /// Pulls of the same reference with the same credentials become one. A pull ends when the last
    /// future that waits for it is dropped.
    pub async fn pull(&self, reference: &str, auth: Option<Auth>) -> StoreResult<ImageId> {
        let reference: Reference = reference.parse()?;
        let work = self.join(reference, auth);
        work.await
    }

    fn join(&self, reference: Reference, auth: Option<Auth>) -> Shared<Work> {
        let key = (reference, auth);
        let mut running = lock(&self.running);
        if let Some(work) = running.get(&key).and_then(WeakShared::upgrade) {
            return work;
        }
        running.retain(|_, work| work.upgrade().is_some());
        let (inner, table) = (self.inner.clone(), self.running.clone());
        let (reference, auth) = key.clone();
        let work: Work = async move {
            let result = pull::pull(inner, reference.clone(), auth.clone()).await;
            // Whoever asks from now on wants to know how things are then.
            lock(&table).remove(&(reference, auth));
            result
        }
        // Its steps belong to the call that began it, whoever waits for it.
        .in_current_span()
        .boxed();
        let work = work.shared();
        if let Some(weak) = work.downgrade() {
            running.insert(key, weak);
        }
        work
    }

    /// Brings the images of an archive into the store: an OCI layout in a tar that is not
    /// compressed, or what `docker save` writes. `name` is how its one image is to be called;
    /// without it, images have the names that the archive gives them, and those without a name are
    /// left out. Of images for several platforms, the node's is taken. The archive is held below
    /// the store's directory until this ends.
    ///
    /// # Errors
    /// The first image that cannot be brought in ends it; those before it stay. A stream that
    /// breaks off imports nothing.
    pub async fn import(
        &self,
        name: Option<&str>,
        archive: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> StoreResult<Vec<Imported>> {
        let name = name.map(import::name).transpose()?;
        let _one_at_a_time = self.importing.lock().await;
        import::import(&self.inner, name, archive).await
    }

    /// Writes images as an archive that [`Store::import`] and `docker load` take. Each has the name
    /// that it was asked for by, or all its tags. Layers are packed anew, so that they and the
    /// image have other digests in the archive. The export is given up when the receiver is
    /// dropped, and whole when it ends without an error.
    ///
    /// # Errors
    /// A reference that is none, or that no image has, and OCI artifacts, of which the store keeps
    /// too little; on the way, what the disk says.
    pub fn export(&self, references: &[String]) -> StoreResult<mpsc::Receiver<StoreResult<ExportPart>>> {
        export::export(&self.inner, references)
    }

    /// Looks at each layer whether it is still what came, one after the other, and tells `sender`.
    /// Ends when that is closed. Everything is read, at low priority.
    ///
    /// # Errors
    /// The disk does not take what a layer is, where that was not known before.
    pub async fn verify(&self, sender: mpsc::Sender<VerifiedLayer>) -> StoreResult<()> {
        let _one_at_a_time = self.verifying.lock().await;
        verify::verify(&self.inner, sender).await
    }

    /// The pulls that run.
    pub fn progress(&self) -> Vec<PullProgress> {
        self.inner.state().meters.iter().map(|meter| meter.snapshot()).collect()
    }

    /// Bytes of layers that registries have sent since the store was opened.
    pub fn received_bytes(&self) -> u64 {
        self.inner.registries.received()
    }

    /// The image that a reference, an id, or the beginning of an id stands for.
    pub fn status(&self, reference_or_id: &str) -> StoreResult<Option<Image>> {
        let state = self.inner.state();
        Ok(resolve(&state, reference_or_id)?.map(|id| self.image(&state, &id, &state.images[&id])))
    }

    /// All images, by id.
    pub fn list(&self) -> StoreResult<Vec<Image>> {
        let state = self.inner.state();
        Ok(state.images.iter().map(|(id, record)| self.image(&state, id, record)).collect())
    }

    /// Forgets an image with all of its names, and deletes its layers except those that other
    /// images, leases or running pulls need. An unknown image is no error, and a full disk none
    /// either.
    pub async fn remove(&self, reference_or_id: &str) -> StoreResult<()> {
        let Some(id) = resolve(&self.inner.state(), reference_or_id)? else {
            return Ok(());
        };
        let inner = self.inner.clone();
        let background = inner.background.clone();
        let remove = move || {
            inner.forget_image(&id);
            inner.tidy(false);
            delete(inner.collect());
            tracing::info!(id, "removed image");
            Ok(())
        };
        background.run("image-remove", remove).await
    }

    /// Deletes what is kept for pulls that failed and may be tried again, and nothing else. Gives
    /// the bytes that are free now.
    pub async fn forget_unfinished(&self) -> u64 {
        self.inner.give_back().await
    }

    /// Gives an image's directories and keeps them, also after the image was removed and the daemon
    /// was restarted, until the holder releases them. A holder has one lease: a second one takes
    /// the first one's place. Commits.
    pub fn lease(&self, id: &str, holder: &str) -> StoreResult<Layers> {
        let (image, dirs) = self.inner.lease(id, holder)?;
        Ok(Layers { image, dirs })
    }

    /// Ends a holder's lease; no error when there is none. Layers that nothing needs any more are
    /// deleted soon after. What the disk does not take now is written later. Commits.
    pub fn release(&self, holder: &str) {
        if self.inner.release(holder) {
            self.inner.collect_later();
        }
    }

    /// Writes to the database what a full or failing disk has kept out of it, and tries whether it
    /// can be written again; says why if not. To be called now and then. Commits.
    pub fn settle(&self) -> Option<Failing> {
        self.inner.settle()
    }

    /// The holders of leases.
    pub fn leases(&self) -> Vec<String> {
        self.inner.state().leases.keys().cloned().collect()
    }

    /// What the store uses of its file system.
    pub fn usage(&self) -> FsUsage {
        let db = self.inner.db_bytes();
        let state = self.inner.state();
        FsUsage {
            path: self.inner.config.root.clone(),
            used_bytes: db + state.layers.values().map(|layer| layer.bytes).sum::<u64>(),
            inodes_used: state.layers.values().map(|layer| layer.inodes).sum(),
        }
    }

    fn image(&self, state: &State, id: &str, record: &ImageRecord) -> Image {
        let layers = record.chains.iter().filter_map(|chain| state.layers.get(chain));
        Image {
            id: id.to_owned(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: record.size,
            disk_bytes: layers.map(|layer| layer.bytes).sum(),
            config: record.config.clone(),
            artifact: record.artifact.clone(),
            pinned: self.inner.pinned.has(record.tags.iter().chain(&record.digests)),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.inner.finish();
    }
}

//! The store's state: in memory for readers, in the database for the next start.
//!
//! Locks, in this order: `db` (held over a whole change, with its commit and with what it moves on
//! the disk), then `state` (held for moments and never over a system call, so that readers never
//! wait for a disk).

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_ledger::Failing;
use rustix::fs::FlockOperation;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::background::Background;
use super::budget::Budget;
use super::db::{Change, Db, ImageRecord, LayerRecord, LeaseRecord, Unsynced};
use super::jobs::Jobs;
use super::recover::clean_up;
use super::staging::{Record, Staging, open_dir};
use super::state::{Pins, State, resolve};
use crate::config::Config;
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::lock::lock;
use crate::pinned::Pinned;
use crate::registry::Registries;
use crate::signature::check_policy;

/// How often somebody who takes nothing is looked after.
const PAUSE: Duration = Duration::from_millis(2);

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) registries: Registries,
    pub(super) pinned: Pinned,
    pub(super) db: Mutex<Db>,
    state: Mutex<State>,
    pub(crate) jobs: Arc<Jobs>,
    serial: Arc<AtomicU64>,
    pub(crate) boot_id: String,
    syncing: Mutex<()>,
    /// Held while layers are sealed.
    pub(super) sealing: Mutex<()>,
    /// Long work in the background is to end.
    ending: AtomicBool,
    pub(crate) background: Arc<Background>,
    /// The store's directory, locked against other daemons.
    _owner: OwnedFd,
}

fn made(path: &Path, mode: u32) -> StoreResult<()> {
    let failed = |e| StoreError::io(format!("making {}", path.display()), e);
    fs::create_dir_all(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

impl Inner {
    pub(crate) fn open(config: Config) -> StoreResult<Self> {
        let registries = Registries::new(&config)?;
        let pinned = Pinned::new(&config.pinned)?;
        config.signature_policy.as_deref().map_or(Ok(()), check_policy)?;
        for (dir, mode) in [("", 0o700), ("layers", 0o700), ("tmp", 0o700), ("empty", 0o700), ("empty/fs", 0o755)] {
            made(&config.root.join(dir), mode)?;
        }
        let owner = open_dir(&config.root)?;
        rustix::fs::flock(&owner, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Config(format!("{} is in use by another daemon", config.root.display())))?;
        let (mut db, contents) = Db::open(&config.root.join("images.redb"))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_err(|e| StoreError::io("reading the boot id", e))?
            .trim()
            .to_owned();
        // Names of an earlier daemon's leavings are not used again.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let serial = Arc::new(AtomicU64::new(started));
        let background = Arc::new(Background::default());
        let budget = Budget::new(config.max_unpacking_layers, config.timeouts.patience);
        let jobs = Jobs::new(budget, background.clone(), config.root.join("tmp"), boot_id.clone(), serial.clone());
        let state = clean_up(&config, &mut db, contents, &boot_id, &jobs)?;
        Ok(Self {
            config,
            registries,
            pinned,
            db: Mutex::new(db),
            state: Mutex::new(state),
            jobs,
            serial,
            boot_id,
            syncing: Mutex::default(),
            sealing: Mutex::default(),
            ending: AtomicBool::default(),
            background,
            _owner: owner,
        })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn db_bytes(&self) -> u64 {
        // Its blocks and not its length: the ledger holds room on the disk beyond the end.
        fs::metadata(self.config.root.join("images.redb")).map_or(0, |m| m.blocks().saturating_mul(512))
    }

    pub(crate) fn unsynced(&self) -> Unsynced {
        Unsynced { boot: self.boot_id.clone(), serial: self.serial.fetch_add(1, Relaxed) }
    }

    pub(crate) fn pin(self: &Arc<Self>, chains: &[Digest]) -> Pins {
        Pins::new(self, chains)
    }

    pub(crate) fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.config.root.join("layers").join(chain.hex())
    }

    /// The directories of a chain, topmost first, without those of which nothing shows.
    pub(crate) fn dirs(&self, state: &State, chains: &[Digest]) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        for chain in chains.iter().rev() {
            dirs.push(self.layer_path(chain).join("fs"));
            if state.layers.get(chain).is_some_and(|layer| layer.hides_below) {
                break;
            }
        }
        if dirs.is_empty() {
            dirs.push(self.config.root.join("empty/fs"));
        }
        dirs
    }

    /// Makes a whole, verified layer visible. It is not synced yet: it counts for the next start
    /// only when [`Inner::commit_image`] has recorded it.
    pub(crate) fn publish(&self, chain: &Digest, staging: Staging, record: LayerRecord) -> StoreResult<()> {
        // No layer comes or goes meanwhile.
        let mut db = lock(&self.db);
        // A row of an earlier layer of this name would say that this one is on the disk.
        db.settle()?;
        if self.state().layers.contains_key(chain) {
            return Ok(());
        }
        staging.move_to(&self.layer_path(chain))?;
        let mut state = self.state();
        state.layers.insert(*chain, record);
        state.kept.insert(*chain, SystemTime::now());
        Ok(())
    }

    /// Records an image whose layers are all there and pinned. Tags that other images had move.
    pub(crate) fn commit_image(self: &Arc<Self>, id: &str, mut image: ImageRecord) -> StoreResult<()> {
        let mut db = lock(&self.db);
        let state = self.state();
        let mut layers = Vec::new();
        for chain in &image.chains {
            let layer =
                state.layers.get(chain).ok_or_else(|| StoreError::NotFound { what: format!("layer {chain}") })?;
            layers.push((*chain, layer.clone()));
        }
        let known = state.images.get(id).cloned();
        if let Some(known) = &known {
            image.tags.extend(known.tags.iter().cloned());
            image.digests.extend(known.digests.iter().cloned());
        }
        let mut changed: Vec<(String, ImageRecord)> = Vec::new();
        for (other_id, other) in &state.images {
            if other_id != id && other.tags.iter().any(|tag| image.tags.contains(tag)) {
                let mut other = ImageRecord::clone(other);
                other.tags.retain(|tag| !image.tags.contains(tag));
                changed.push((other_id.clone(), other));
            }
        }
        drop(state);
        if known.as_deref() == Some(&image) && changed.is_empty() {
            return Ok(());
        }
        changed.push((id.to_owned(), image));
        db.commit(&Change {
            images: changed.iter().map(|(id, image)| (id.as_str(), Some(image))).collect(),
            layers: layers.iter().map(|(chain, layer)| (chain, Some(layer))).collect(),
            leases: Vec::new(),
        })?;
        let mut state = self.state();
        for (chain, _) in &layers {
            state.kept.remove(chain);
        }
        for (id, image) in changed {
            state.images.insert(id, Arc::new(image));
        }
        drop(state);
        if layers.iter().any(|(_, layer)| layer.unsynced.is_some()) {
            self.in_background("image-sync", |inner| {
                inner.sync()?;
                // A thread of its own: its priority is low, and the next sync does not wait for it.
                inner.in_background("layer-seal", |inner| inner.seal());
                Ok(())
            });
        }
        Ok(())
    }

    /// Brings layers to the disk. No pull waits for that: the disk may be busy with gigabytes of
    /// somebody else's.
    fn sync(&self) -> StoreResult<()> {
        let _one_at_a_time = lock(&self.syncing);
        let unsynced = |state: &State| -> Vec<(Digest, LayerRecord)> {
            let layers = state.layers.iter().filter(|(_, layer)| layer.unsynced.is_some());
            layers.map(|(chain, layer)| (*chain, layer.clone())).collect()
        };
        let mut synced = unsynced(&self.state());
        if synced.is_empty() {
            return Ok(());
        }
        let dir = open_dir(&self.config.root.join("layers"))?;
        rustix::fs::syncfs(&dir).map_err(|e| StoreError::io("syncing the layers", e.into()))?;
        let mut db = lock(&self.db);
        // Not those that went meanwhile, or came again; those that no image has yet are not
        // written.
        synced.retain(|(chain, layer)| self.state().layers.get(chain) == Some(layer));
        synced.iter_mut().for_each(|(_, layer)| layer.unsynced = None);
        let recorded: Vec<_> = {
            let state = self.state();
            let used: HashSet<_> = state.recorded().collect();
            synced.iter().filter(|(chain, _)| used.contains(chain)).map(|(chain, layer)| (chain, Some(layer))).collect()
        };
        db.commit(&Change { layers: recorded, ..Change::default() })?;
        self.state().layers.extend(synced);
        Ok(())
    }

    /// Does something that nobody waits for, except the end of the store.
    pub(super) fn in_background(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Arc<Self>) -> StoreResult<()> + Send + 'static,
    ) {
        let inner = self.clone();
        self.background.spawn(name, move || {
            if let Err(error) = work(&inner) {
                tracing::warn!(error = error.chain(), "the image store's housekeeping");
            }
        });
    }

    /// Whether the store ends.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    /// Sends `item` as soon as there is room for it. False when nobody takes it any more, and when
    /// the store ends: somebody who takes nothing must not hold that up. Blocks.
    pub(super) fn send<T>(&self, to: &Sender<T>, mut item: T) -> bool {
        while !self.is_ending() {
            match to.try_send(item) {
                Ok(()) => return true,
                Err(TrySendError::Closed(_)) => return false,
                Err(TrySendError::Full(back)) => item = back,
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    /// Waits for what was begun in the background.
    pub(crate) fn finish(&self) {
        self.ending.store(true, Relaxed);
        self.jobs.close();
        self.background.finish();
    }

    /// A published layer of this content that can be had on top of other layers too, and what it
    /// was when it was extracted. Blocks.
    pub(crate) fn twin(self: &Arc<Self>, diff_id: &Digest) -> Option<(PathBuf, Record, Pins)> {
        let (chain, pins) = {
            let mut state = self.state();
            let (chain, _) = state.layers.iter().find(|(_, layer)| layer.diff_id.as_ref() == Some(diff_id))?;
            let chain = *chain;
            // Under the same lock: nothing can go in between.
            *state.pins.entry(chain).or_default() += 1;
            (chain, Pins::counted(self, vec![chain]))
        };
        let path = self.layer_path(&chain);
        let record = Record::of(&path).filter(|record| record.extracted.stands_alone())?;
        (record.diff_id == *diff_id).then_some((path, record, pins))
    }

    /// Forgets an image with all its names; its layers go with [`Inner::collect`].
    pub(crate) fn forget_image(&self, id: &str) {
        let mut db = lock(&self.db);
        if !self.state().images.contains_key(id) {
            return;
        }
        db.remove(&Change { images: vec![(id, None)], ..Change::default() });
        self.state().images.remove(id);
    }

    pub(crate) fn lease(&self, asked: &str, holder: &str) -> StoreResult<(String, Vec<PathBuf>)> {
        let mut db = lock(&self.db);
        let (lease, dirs) = {
            let state = self.state();
            let id = resolve(&state, asked)?.ok_or_else(|| StoreError::NotFound { what: format!("image {asked}") })?;
            let chains = state.images[&id].chains.clone();
            let dirs = self.dirs(&state, &chains);
            let lease = LeaseRecord { image: id, chains };
            if state.leases.get(holder) == Some(&lease) {
                return Ok((lease.image, dirs));
            }
            (lease, dirs)
        };
        db.commit(&Change { leases: vec![(holder, Some(&lease))], ..Change::default() })?;
        let id = lease.image.clone();
        self.state().leases.insert(holder.to_owned(), lease);
        Ok((id, dirs))
    }

    /// True when there was such a lease.
    pub(crate) fn release(&self, holder: &str) -> bool {
        let mut db = lock(&self.db);
        if !self.state().leases.contains_key(holder) {
            return false;
        }
        db.remove(&Change { leases: vec![(holder, None)], ..Change::default() });
        self.state().leases.remove(holder);
        true
    }

    /// Writes what could not be written; says why if that is still so.
    pub(crate) fn settle(self: &Arc<Self>) -> Option<Failing> {
        self.tidy(false);
        self.collect_if_unused();
        let mut db = lock(&self.db);
        if let Err(error) = db.settle() {
            tracing::debug!(error = error.chain(), "the image database is still behind");
        }
        db.failing()
    }
}

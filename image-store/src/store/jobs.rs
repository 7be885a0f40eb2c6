//! Layers that are fetched and unpacked, whoever wants them: a blob that several pulls want at the
//! same time is fetched once, and one whose pull ended goes on where it stopped when the next pull
//! wants it.
//!
//! ```text
//!             pull ──┐  one feeds, the others wait
//!             pull ──┴──► Job { Feed: New ─► Fetching ─► Whole (a tree below tmp/) }
//!                                              └─► Broken: the next one starts over
//! ```
//!
//! A job belongs to no pull. Each pull that wants it holds an [`Interest`]. The job that nobody
//! wants any more is *parked*: its threads wait where the bytes stopped, or its tree lies there,
//! until a pull comes, the time to keep it is over, others need its memory, or the disk is full.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tracing::field::Empty;

use super::background::{Background, lost};
use super::budget::{Budget, Pulse};
use super::fetching::{Fed, Fetching};
use super::staging::{Record, Staging};
use super::unpack::{Gate, Job as Work};
use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::extract::Extracted;
use crate::flow::{self, Source};
use crate::lock::lock;
use crate::registry::{Descriptor, Download, Session};
use crate::step::SPANS;

/// Compressed bytes of a layer between network and unpacking.
const QUEUE: u32 = 512 << 10;
/// Jobs that nobody wants at the moment.
const PARKED: usize = 64;
/// Times that a layer starts over because others needed its memory, or a mirror sent wrong bytes.
const STARTS: usize = 4;

/// Which tree a job makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    /// Set when the layer's whiteouts make it another tree at the bottom than above other layers.
    pub(crate) lowest: Option<bool>,
}

/// All jobs.
pub(crate) struct Jobs {
    table: Mutex<HashMap<Key, Entry>>,
    budget: Arc<Budget>,
    background: Arc<Background>,
    tmp: PathBuf,
    boot: String,
    serial: Arc<AtomicU64>,
}

struct Entry {
    job: Arc<Job>,
    users: usize,
    /// When the last one left.
    since: SystemTime,
}

pub(crate) struct Job {
    feed: tokio::sync::Mutex<Feed>,
    pulse: Mutex<Option<Arc<Pulse>>>,
}

enum Feed {
    New,
    Fetching(Box<Fetching>),
    Whole(Arc<Staged>),
    Broken,
}

/// A whole layer, verified, and not yet on top of others.
pub(crate) struct Staged {
    staging: Mutex<Option<Staging>>,
    pub(crate) extracted: Extracted,
    pub(crate) lowest: bool,
}

/// A pull's wish for a job.
pub(crate) struct Interest {
    jobs: Arc<Jobs>,
    key: Key,
    job: Arc<Job>,
}

impl Jobs {
    pub(crate) fn new(
        budget: Arc<Budget>,
        background: Arc<Background>,
        tmp: PathBuf,
        boot: String,
        serial: Arc<AtomicU64>,
    ) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), budget, background, tmp, boot, serial })
    }

    /// A name below `tmp/` that nobody has.
    pub(crate) fn temporary(&self, label: &str) -> PathBuf {
        self.tmp.join(format!("{label}-{:x}", self.serial.fetch_add(1, Relaxed)))
    }

    pub(crate) fn staging(&self) -> StoreResult<Staging> {
        Staging::new(self.temporary("layer"), self.background.clone())
    }

    /// Takes in a whole layer that an earlier daemon left. A second one like it is deleted. Blocks.
    pub(crate) fn adopt(&self, path: PathBuf, record: Record, since: SystemTime) {
        let staging = Staging::found(path, self.background.clone());
        let key = Key { blob: record.blob, diff_id: record.diff_id, lowest: None };
        if lock(&self.table).contains_key(&key) {
            return staging.delete();
        }
        let staged = Staged { staging: Mutex::new(Some(staging)), extracted: record.extracted, lowest: record.lowest };
        let job = Job { feed: tokio::sync::Mutex::new(Feed::Whole(Arc::new(staged))), pulse: Mutex::default() };
        lock(&self.table).insert(key, Entry { job: Arc::new(job), users: 0, since });
    }

    fn interest(self: &Arc<Self>, key: Key) -> Interest {
        let mut table = lock(&self.table);
        let entry = table.entry(key).or_insert_with(|| {
            let job = Job { feed: tokio::sync::Mutex::new(Feed::New), pulse: Mutex::default() };
            Entry { job: Arc::new(job), users: 0, since: SystemTime::now() }
        });
        entry.users += 1;
        entry.job.park(false);
        Interest { jobs: self.clone(), key, job: entry.job.clone() }
    }

    /// Gives the layer, fetched by `session` as far as nobody has done so yet.
    pub(crate) async fn get(
        self: &Arc<Self>,
        key: Key,
        work: impl Fn() -> Work,
        session: &Session,
        blob: &Descriptor,
        meter: &AtomicU64,
    ) -> StoreResult<(Interest, Arc<Staged>)> {
        let mut error = lost();
        for _ in 0..STARTS {
            meter.store(0, Relaxed);
            let interest = self.interest(key);
            let mut feed = interest.job.feed.lock().await;
            if let Feed::New = *feed {
                *feed = Feed::Fetching(Box::new(self.start(&interest.job, blob, work())));
            }
            match &mut *feed {
                Feed::Fetching(fetching) => match fetching.feed(session, blob, meter).await {
                    Fed::Whole(staged) => *feed = Feed::Whole(Arc::new(staged)),
                    Fed::Cut(error) => return Err(error),
                    Fed::Broken(cause) => {
                        *feed = Feed::Broken;
                        self.forget(&interest);
                        match cause {
                            StoreError::Stopped { .. } => error = cause,
                            // A mirror's bytes turned out to be wrong after they were used.
                            StoreError::DigestMismatch { .. } if session.has_other_source() => error = cause,
                            cause => return Err(cause),
                        }
                    }
                },
                Feed::Whole(_) => meter.store(blob.size, Relaxed),
                Feed::New | Feed::Broken => {}
            }
            if let Feed::Whole(staged) = &*feed {
                let staged = staged.clone();
                drop(feed);
                return Ok((interest, staged));
            }
        }
        Err(error)
    }

    /// The next one who wants this starts over.
    fn forget(&self, interest: &Interest) {
        let mut table = lock(&self.table);
        if table.get(&interest.key).is_some_and(|entry| Arc::ptr_eq(&entry.job, &interest.job)) {
            table.remove(&interest.key);
        }
    }

    fn start(self: &Arc<Self>, job: &Job, blob: &Descriptor, work: Work) -> Fetching {
        let (sink, mut source) = flow::queue(QUEUE);
        let pulse = Pulse::new(sink.stopper());
        *lock(&job.pulse) = Some(pulse.clone());
        let (sender, outcome) = oneshot::channel();
        let (jobs, digest) = (self.clone(), blob.digest);
        let span = tracing::info_span!(
            target: SPANS,
            "layer unpack",
            otel.status_code = Empty,
            layer.digest = %digest,
            layer.unpacked_bytes = Empty
        );
        // A layer of which nothing has come needs no thread.
        tokio::spawn(async move {
            if !source.begun().await && work.size > 0 {
                return drop(sender.send(Err(StoreError::stopped(&work.name))));
            }
            let Some(permit) = jobs.budget.admit(&pulse).await else {
                return drop(sender.send(Err(StoreError::stopped(&work.name))));
            };
            let gate = Gate { budget: jobs.budget.clone(), pulse };
            let background = jobs.background.clone();
            background.spawn("layer-unpack", move || {
                let staged = span.in_scope(|| jobs.unpack(work, digest, source, &gate));
                match &staged {
                    Ok(staged) => drop(span.record("layer.unpacked_bytes", staged.extracted.bytes)),
                    Err(_) => drop(span.record("otel.status_code", "ERROR")),
                }
                drop(span);
                // The memory is free before anybody hears of it.
                drop((permit, gate));
                let _ = sender.send(staged);
            });
        });
        Fetching::new(Download::new(blob, sink), outcome)
    }

    fn unpack(&self, work: Work, blob: Digest, source: Source, gate: &Gate) -> StoreResult<Staged> {
        let staging = self.staging()?;
        let lowest = work.lowest;
        let result = staging.root().and_then(|root| work.run(root, source, gate)).and_then(|extracted| {
            let (bytes, inodes, diff_id) = (extracted.bytes, extracted.inodes, work.diff_id);
            let record = Record { boot: self.boot.clone(), blob, diff_id, lowest, extracted, bytes, inodes };
            staging.write(&record)?;
            Ok(record.extracted)
        });
        match result {
            Ok(extracted) => Ok(Staged { staging: Mutex::new(Some(staging)), extracted, lowest }),
            Err(error) => {
                staging.delete();
                Err(error)
            }
        }
    }

    /// Takes out what nobody has wanted since `before`, or more of it than is kept. What it gives
    /// back goes away when it is dropped.
    pub(crate) fn expire(&self, before: SystemTime) -> Vec<Arc<Job>> {
        let mut table = lock(&self.table);
        let mut parked: Vec<_> =
            table.iter().filter(|(_, entry)| entry.users == 0).map(|(key, entry)| (entry.since, *key)).collect();
        parked.sort_by_key(|(since, _)| *since);
        let too_many = parked.len().saturating_sub(PARKED);
        let leaving = parked.into_iter().enumerate().filter(|(i, (since, _))| *i < too_many || *since <= before);
        leaving.filter_map(|(_, (_, key))| table.remove(&key)).map(|entry| entry.job).collect()
    }

    /// At the store's end: whole layers stay for the next daemon.
    pub(crate) fn close(&self) {
        for (_, entry) in std::mem::take(&mut *lock(&self.table)) {
            let Ok(mut feed) = entry.job.feed.try_lock() else {
                continue;
            };
            if let Feed::Whole(staged) = std::mem::replace(&mut *feed, Feed::Broken)
                && let Some(staging) = lock(&staged.staging).take()
            {
                staging.leave();
            }
        }
    }
}

impl Job {
    fn park(&self, parked: bool) {
        if let Some(pulse) = &*lock(&self.pulse) {
            pulse.parked.store(parked, SeqCst);
        }
    }
}

impl Interest {
    /// The tree itself when nobody else wants it; the job is over then.
    pub(crate) fn take(&self, staged: &Staged) -> Option<Staging> {
        let mut table = lock(&self.jobs.table);
        match table.get(&self.key) {
            Some(entry) if Arc::ptr_eq(&entry.job, &self.job) => {
                if entry.users > 1 {
                    return None;
                }
                table.remove(&self.key);
            }
            // Out of the table while others still have it.
            _ => return None,
        }
        lock(&staged.staging).take()
    }
}

impl Staged {
    /// The tree's root, to be copied. The layer must not be taken meanwhile: its [`Interest`] sees
    /// to that.
    pub(crate) fn root(&self) -> Option<StoreResult<std::os::fd::OwnedFd>> {
        lock(&self.staging).as_ref().map(Staging::root)
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut table = lock(&self.jobs.table);
        let Some(entry) = table.get_mut(&self.key).filter(|entry| Arc::ptr_eq(&entry.job, &self.job)) else {
            return;
        };
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        entry.since = SystemTime::now();
        let over = entry.job.feed.try_lock().is_ok_and(|feed| matches!(*feed, Feed::New | Feed::Broken));
        if over {
            table.remove(&self.key);
            return;
        }
        entry.job.park(true);
        drop(table);
        drop(self.jobs.expire(SystemTime::UNIX_EPOCH));
    }
}

/// What lies around for longer than `keep` is over.
pub(crate) fn deadline(keep: Duration) -> SystemTime {
    SystemTime::now().checked_sub(keep).unwrap_or(SystemTime::UNIX_EPOCH)
}

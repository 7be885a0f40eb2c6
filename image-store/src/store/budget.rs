//! What the layers of all pulls share: the right to work, and memory.
//!
//! - A *slot* is held by a layer that decompresses, and given back whenever it waits for the
//!   network. So a registry that stalls holds none. Layers take turns: one that had its share hands
//!   its slot on when others wait.
//! - A *window* is what a zstd frame asks for ahead of its bytes, up to 128 MiB. All windows
//!   together stay under [`WINDOWS`]: the largest one runs alone. A window is taken while nothing
//!   else of the pool is held, so that two layers never wait for each other.
//! - *Admission* bounds the layers that are begun, each of which has some 600 KiB: a queue, a
//!   block, a decompressor, threads.
//!
//! Whoever waits for memory may have it from a layer that gets nowhere: one that no pull wants at
//! the moment, or one whose registry has sent next to nothing for [`Budget::patience`]. Such a
//! layer starts over when it is wanted again.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::blocks::Blocks;
use super::pool::{Pool, Share};
use crate::flow::Stopper;
use crate::lock::lock;

/// All zstd windows together, in KiB.
pub(crate) const WINDOWS: usize = 128 << 10;
/// Layers that are begun at one time.
const ADMITTED: usize = 96;
/// Compressed bytes after which a layer counts as one that gets somewhere.
const PROGRESS: u64 = 256 << 10;
/// Compressed bytes after which a layer hands its slot on.
pub(crate) const TURN: u64 = 4 << 20;
/// How often who waits for memory looks for a layer that can give its own.
const LOOK: Duration = Duration::from_millis(500);

/// The shares.
pub(crate) struct Budget {
    pub(crate) slots: Arc<Pool>,
    pub(crate) windows: Arc<Pool>,
    pub(crate) blocks: Arc<Blocks>,
    admitted: Arc<Semaphore>,
    /// Layers that hold memory.
    holders: Mutex<Vec<Weak<Pulse>>>,
    /// How long a layer may get nowhere while others wait for its memory.
    patience: Duration,
}

/// How one layer gets on.
pub(crate) struct Pulse {
    stopper: Stopper,
    stopped: AtomicBool,
    /// No pull wants it at the moment.
    pub(crate) parked: AtomicBool,
    /// KiB of its window.
    window: AtomicU64,
    waits: Mutex<Waits>,
}

/// Time that a layer waited for the network.
#[derive(Default)]
struct Waits {
    /// Before the wait that goes on, since the last [`PROGRESS`] bytes.
    past: Duration,
    bytes: u64,
    since: Option<Instant>,
}

impl Budget {
    pub(crate) fn new(slots: usize, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            slots: Pool::new(slots.max(1)),
            windows: Pool::new(WINDOWS),
            blocks: Blocks::new(slots.max(1)),
            admitted: Arc::new(Semaphore::new(ADMITTED)),
            holders: Mutex::default(),
            patience,
        })
    }

    /// Lets a layer begin, and holds it responsible for what it uses until the permit is dropped.
    pub(crate) async fn admit(&self, pulse: &Arc<Pulse>) -> Option<OwnedSemaphorePermit> {
        let waiting = self.admitted.clone().acquire_many_owned(1);
        tokio::pin!(waiting);
        let permit = loop {
            match tokio::time::timeout(LOOK, &mut waiting).await {
                Ok(permit) => break permit.ok()?,
                Err(_) if pulse.is_stopped() => return None,
                Err(_) => self.make_room(|_| true),
            }
        };
        let mut holders = lock(&self.holders);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(Arc::downgrade(pulse));
        Some(permit)
    }

    /// A window of so many bytes; `None` when the layer is to stop. Blocks the thread. The layer
    /// must hold none.
    pub(crate) fn window(&self, bytes: u64, pulse: &Pulse) -> Option<Share> {
        let kib = usize::try_from(bytes.div_ceil(1024)).unwrap_or(usize::MAX).min(WINDOWS);
        let mut looked = Instant::now();
        pulse.window.store(0, SeqCst);
        let share = self.windows.take(kib, || {
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.make_room(|holder| holder.window.load(SeqCst) > 0);
            }
            !pulse.is_stopped()
        })?;
        pulse.window.store(kib as u64, SeqCst);
        Some(share)
    }

    /// Stops the layer that has got nowhere for the longest time, if there is one.
    fn make_room(&self, holds: impl Fn(&Pulse) -> bool) {
        let holders = lock(&self.holders);
        let held = holders.iter().filter_map(Weak::upgrade).filter(|holder| holds(holder) && !holder.is_stopped());
        let idle = held.filter_map(|holder| {
            let waited = holder.waited();
            let parked = holder.parked.load(SeqCst);
            (parked || waited >= self.patience).then_some((parked, waited, holder))
        });
        if let Some((parked, waited, holder)) = idle.max_by_key(|(parked, waited, _)| (*parked, *waited)) {
            tracing::info!(
                parked,
                waited_ms = waited.as_millis() as u64,
                "a layer that gets nowhere gives its memory to others"
            );
            holder.stop();
        }
    }
}

impl Pulse {
    pub(crate) fn new(stopper: Stopper) -> Arc<Self> {
        Arc::new(Self {
            stopper,
            stopped: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            window: AtomicU64::new(0),
            waits: Mutex::default(),
        })
    }

    /// Has the layer end without the rest of its bytes.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.stopper.stop();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(SeqCst)
    }

    /// The layer begins to wait for the network.
    pub(crate) fn waits(&self) {
        lock(&self.waits).since = Some(Instant::now());
    }

    /// The wait is over, and so many bytes came.
    pub(crate) fn goes_on(&self, bytes: u64) {
        let mut waits = lock(&self.waits);
        let waited = waits.since.take().map(|since| since.elapsed()).unwrap_or_default();
        waits.past += waited;
        waits.bytes += bytes;
        if waits.bytes >= PROGRESS {
            *waits = Waits::default();
        }
    }

    fn waited(&self) -> Duration {
        let waits = lock(&self.waits);
        waits.past + waits.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

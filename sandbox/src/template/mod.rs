//! Templates: microVMs that were booted once and saved, from which those of pods are restored.
//!
//! ```text
//! asked for ──► made in the background ──► ready ──► a pod is restored from it
//!    ▲            │ fails: later again       │ other inputs, or it fails: thrown away
//!    └────────────┴──────────────────────────┘
//! ```
//!
//! A pod never waits for a template: without one, its microVM boots.

mod kept;
mod shape;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{SealFlags, fstat};
use tokio::sync::mpsc;

use crate::error::SandboxError;
use crate::spec::{VmConfig, VmSize};
pub(crate) use shape::{Inputs, Shape};

/// Most templates that are kept. Each takes what a guest has touched until its agent listens.
const MOST: usize = 6;
/// How long after a failure it is tried again, each time twice as long, up to [`AGAIN_MOST`].
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_MOST: Duration = Duration::from_secs(3600);
/// What nobody can do to a template's files, not even those who have the descriptors.
const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::GROW).union(SealFlags::SHRINK).union(SealFlags::SEAL);

/// A saved microVM.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) shape: Shape,
    pub(crate) inputs: Inputs,
    /// The guest's memory; sealed.
    pub(crate) memory: OwnedFd,
    /// Everything else; sealed.
    pub(crate) state: OwnedFd,
    /// What both take of the node's memory.
    bytes: u64,
    /// Pages that clones write to before they serve a pod; not known until one was tried out.
    written: OnceLock<Vec<(u32, u32)>>,
}

impl Template {
    /// Of files that do not change any more. Blocks for a moment.
    #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
    pub(crate) fn new(shape: Shape, inputs: Inputs, memory: OwnedFd, state: OwnedFd) -> Self {
        let blocks: i64 =
            [&memory, &state].into_iter().filter_map(|fd| fstat(fd).ok()).map(|stat| stat.st_blocks).sum();
        let bytes = u64::try_from(blocks).unwrap_or(0) * 512;
        Self { shape, inputs, memory, state, bytes, written: OnceLock::new() }
    }

    /// Learns from the monitor `pid` of a clone which pages clones write to before they serve a pod.
    /// Blocks for a moment.
    pub(crate) fn learn(&self, pid: u32) -> Result<(), SandboxError> {
        let _ = self.written.set(written::find(pid, &self.memory)?);
        Ok(())
    }

    /// Pages that clones write to before they serve a pod, as `Restore::written`.
    pub(crate) fn written(&self) -> &[(u32, u32)] {
        self.written.get().map(Vec::as_slice).unwrap_or_default()
    }
}

/// How a pod's microVM came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It booted.
    Boot,
    /// It was restored for the pod.
    Template,
    /// It was restored ahead of the pod.
    Pool,
}

/// What templates are and were used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TemplateUsage {
    /// Templates that are ready.
    pub ready: usize,
    /// Templates that are asked for and not made yet.
    pub pending: usize,
    /// Memory of the node that they take, bytes.
    pub bytes: u64,
    /// MicroVMs that were restored from one.
    pub restored: u64,
    /// MicroVMs that booted.
    pub booted: u64,
    /// MicroVMs that could not be restored, and booted then.
    pub failed: u64,
    /// MicroVMs that were restored ahead of their pods, and have none yet.
    pub waiting: usize,
    /// Memory of the node that those take, bytes.
    pub waiting_bytes: u64,
    /// Pods that got a microVM that had waited.
    pub taken: u64,
}

/// The node's templates.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    kept: Mutex<Kept>,
    restored: AtomicU64,
    booted: AtomicU64,
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct Kept {
    /// The one that was used last comes last.
    ready: Vec<Arc<Template>>,
    /// Asked for, and not made yet.
    asked: BTreeSet<Shape>,
    /// How often in a row it failed, and from when on it may be asked for again.
    failures: BTreeMap<Shape, (u32, Instant)>,
    /// To the task that makes them.
    maker: Option<mpsc::UnboundedSender<Shape>>,
}

impl Kept {
    fn ask_for(&mut self, shape: Shape) {
        let waits = self.failures.get(&shape).is_some_and(|(_, from)| *from > Instant::now());
        if let Some(maker) = &self.maker
            && !waits
            && self.asked.insert(shape)
        {
            let _ = maker.send(shape);
        }
    }

    fn failed(&mut self, shape: Shape) {
        let (count, from) = self.failures.entry(shape).or_insert((0, Instant::now()));
        *from = Instant::now() + AGAIN.saturating_mul(1 << (*count).min(20)).min(AGAIN_MOST);
        *count = count.saturating_add(1);
    }
}

impl Templates {
    /// With what an earlier daemon left. Without the usual pod's, that one is asked for. Blocks.
    pub(crate) fn open(config: &VmConfig) -> Self {
        let inputs = config.template.as_ref().and_then(|_| Inputs::of(config).ok());
        let ready: Vec<_> = kept::find(inputs.as_ref()).into_iter().map(Arc::new).collect();
        if !ready.is_empty() {
            tracing::info!(templates = ready.len(), "templates of microVMs are there from before the restart");
        }
        let usual = config.template.as_ref().and_then(|settings| Shape::to_restore(settings, settings.size, 1));
        let is_missing = |shape: &Shape| !ready.iter().any(|template| template.shape == *shape);
        let asked = usual.into_iter().filter(is_missing).collect();
        Self { kept: Mutex::new(Kept { ready, asked, ..Kept::default() }), ..Self::default() }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A template for a pod that gets `wanted`, or why its microVM boots. One that is missing is
    /// made for later pods. Blocks for a moment.
    pub(crate) fn choose(&self, config: &VmConfig, wanted: VmSize, cards: usize) -> Result<Arc<Template>, String> {
        let Some(settings) = &config.template else { return Err("vm.template is off".into()) };
        let Some(shape) = Shape::to_restore(settings, wanted, cards) else {
            return Err("no template can grow to the pod's size".into());
        };
        let inputs = Inputs::of(config).map_err(|error| error.chain())?;
        let mut kept = self.kept();
        let old: Vec<_> = kept.ready.extract_if(.., |template| template.inputs != inputs).collect();
        old.iter().for_each(|template| kept::forget(template));
        let Some(at) = kept.ready.iter().position(|template| template.shape == shape) else {
            kept.ask_for(shape);
            return Err(format!("there is no template of shape {shape} yet"));
        };
        let template = kept.ready.remove(at);
        kept.ready.push(Arc::clone(&template));
        Ok(template)
    }

    /// A microVM came up.
    pub(crate) fn came_up(&self, is_restored: bool) {
        let count = if is_restored { &self.restored } else { &self.booted };
        count.fetch_add(1, Relaxed);
    }

    /// A microVM could not be restored from it: it is thrown away, and made anew later.
    pub(crate) fn discard(&self, template: &Arc<Template>) {
        self.failed.fetch_add(1, Relaxed);
        let mut kept = self.kept();
        kept.ready.retain(|other| !Arc::ptr_eq(other, template));
        kept.failed(template.shape);
        kept::forget(template);
    }

    /// What they are used for.
    pub(crate) fn usage(&self) -> TemplateUsage {
        let kept = self.kept();
        TemplateUsage {
            ready: kept.ready.len(),
            pending: kept.asked.len(),
            bytes: kept.ready.iter().map(|template| template.bytes).sum(),
            restored: self.restored.load(Relaxed),
            booted: self.booted.load(Relaxed),
            failed: self.failed.load(Relaxed),
            ..TemplateUsage::default()
        }
    }

    /// Has what is asked for told to whoever makes templates, from now on.
    pub(crate) fn asked(&self) -> mpsc::UnboundedReceiver<Shape> {
        let (maker, asked) = mpsc::unbounded_channel();
        let mut kept = self.kept();
        for shape in &kept.asked {
            let _ = maker.send(*shape);
        }
        kept.maker = Some(maker);
        asked
    }

    /// One that was asked for cannot be made.
    pub(crate) fn not_made(&self, shape: Shape) {
        let mut kept = self.kept();
        kept.asked.remove(&shape);
        kept.failed(shape);
    }

    /// Keeps what was made, and lets go of the one that was not used for the longest time. Blocks for
    /// a moment.
    pub(crate) fn add(&self, template: Arc<Template>) {
        kept::keep(&template);
        let mut kept = self.kept();
        kept.asked.remove(&template.shape);
        kept.failures.remove(&template.shape);
        kept.ready.retain(|other| other.shape != template.shape);
        kept.ready.push(template);
        if kept.ready.len() > MOST {
            kept::forget(&kept.ready.remove(0));
        }
    }
}

#[cfg(test)]
mod tests;

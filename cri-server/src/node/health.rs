//! Whether the disk under `state_dir` takes what it is given, and the writing of what it did not take.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cofferdam_image_store::Failing;

use super::{Node, lock};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// A file system with fewer bytes than this for its owner is full.
const LEAST: u64 = 1 << 20;

/// What is wrong with the disk, as it was at the last look.
#[derive(Default)]
pub(crate) struct Health(Mutex<Option<Failing>>);

impl Health {
    /// Nothing: it works.
    pub(crate) fn trouble(&self) -> Option<Failing> {
        lock(&self.0).clone()
    }

    /// Looks, and tells of changes.
    fn look(&self, node: &Node) {
        node.records.catch_up();
        let databases = [node.records.failing(), node.store.settle()];
        // A disk that fails is worse than one that is full.
        let failing = databases.into_iter().flatten().min_by_key(|failing| failing.full);
        let now = failing.or_else(|| full(&node.config.state_dir));
        let before = std::mem::replace(&mut *lock(&self.0), now.clone());
        match (before, now) {
            (before, Some(now)) if before.as_ref() != Some(&now) => {
                tracing::error!(why = now.why, owed = node.records.behind(), "state_dir is in trouble");
            }
            (Some(_), None) => tracing::info!("state_dir works again"),
            _ => {}
        }
    }
}

/// Whether a file system has no room.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn full(state_dir: &Path) -> Option<Failing> {
    let fs = rustix::fs::statvfs(state_dir).ok()?;
    let bytes = fs.f_bavail.saturating_mul(fs.f_frsize);
    let without = match (bytes < LEAST, fs.f_files > 0 && fs.f_favail == 0) {
        (true, _) => "space",
        (false, true) => "inodes",
        (false, false) => return None,
    };
    let why = format!("no {without} left on the file system of {}", state_dir.display());
    Some(Failing { full: true, why })
}

/// Starts the thread that looks after the disk until the daemon ends.
///
/// The thread is its own: a look each second in tokio's pool would give every idle thread of the pool something to do in
/// turn, and the pool would never shrink after a burst of calls.
///
/// # Errors
///
/// No thread can be started.
#[expect(clippy::disallowed_methods, reason = "on a thread of its own")]
pub(crate) fn look_after(node: &Arc<Node>) -> io::Result<()> {
    let node = Arc::downgrade(node);
    let work = move || {
        while let Some(node) = node.upgrade() {
            // A disk that hangs is not asked again before it answers.
            if catch_unwind(AssertUnwindSafe(|| node.health.look(&node))).is_err() {
                tracing::error!("a look after state_dir ended early");
            }
            drop(node);
            thread::sleep(PAUSE);
        }
    };
    thread::Builder::new().name("disk-health".into()).spawn(work).map(drop)
}

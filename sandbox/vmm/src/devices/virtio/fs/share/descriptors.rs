//! One bound for all descriptors that a guest makes the file server hold: files that it knows, and files that it has open.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Resource, getrlimit};

use super::errno;

/// Descriptors that the rest of the monitor may need: log files, connections of the daemon's, what was open from the start.
/// Without them no exec, no status and no log would be possible as soon as a guest has opened all that it may.
const RESERVED: usize = 2048;

/// How many descriptors there are, and may be. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Descriptors(Arc<Count>);

#[derive(Debug)]
struct Count {
    most: usize,
    held: AtomicUsize,
}

impl Descriptors {
    /// As many as this process may have at once, without those that are kept for others.
    pub(super) fn of_process() -> Self {
        let limit = getrlimit(Resource::Nofile).maximum.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(usize::MAX);
        Self::new(limit - RESERVED.min(limit / 2))
    }

    /// At most `most`.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Count { most, held: AtomicUsize::new(0) }))
    }

    /// Counts one more, for as long as the answer lives; `ENFILE` when there is none left.
    pub(super) fn hold(&self) -> io::Result<Held> {
        // Made first, so that the count goes back when it was the one too many.
        let (before, held) = (self.0.held.fetch_add(1, Ordering::Relaxed), Held(self.0.clone()));
        if before < self.0.most { Ok(held) } else { Err(errno(libc::ENFILE)) }
    }

    /// How many are held.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.held.load(Ordering::Relaxed)
    }
}

/// One descriptor that counts.
#[derive(Debug)]
pub(super) struct Held(Arc<Count>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

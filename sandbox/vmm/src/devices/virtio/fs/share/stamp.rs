//! By what a change of a file's contents shows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::Statx;

/// So long ago must the last change be: file systems tell times apart by a tick of the node's
/// clock, some by two seconds.
const SETTLED: Duration = Duration::from_secs(3);

/// Length and times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    /// Seconds and nanoseconds of the last change of the contents.
    modified: (i64, u32),
    /// And of the file in any way, which programs cannot set.
    changed: (i64, u32),
}

impl Stamp {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }
    }

    /// Whether any change from now on will show: the last one is not from just now, nor from the
    /// future.
    pub(super) fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let settled =
            |seconds: i64| u64::try_from(seconds).is_ok_and(|seconds| Duration::from_secs(seconds) + SETTLED <= now);
        settled(self.modified.0) && settled(self.changed.0)
    }
}

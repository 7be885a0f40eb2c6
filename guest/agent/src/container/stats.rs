//! What a container uses.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_proto::agent::ContainerStatsReply;
use tokio::sync::Mutex;

use super::lifecycle::Container;
use super::rootfs::Layer;
use crate::agent::{Agent, Mode};
use crate::error::Result;
use crate::sys;

/// How long a walk of a writable layer counts.
const FRESH: Duration = Duration::from_secs(10);
/// Entries that are looked at before others get their turn.
const SLICE: usize = 256;
/// Most entries that are counted.
const MAX_ENTRIES: usize = 2_000_000;

/// How a writable layer is measured: by the quota of its disk, or by walking it.
#[derive(Debug)]
pub struct Usage {
    quota: Option<(OwnedFd, u32)>,
    walked: Mutex<Option<(Instant, u64, u64)>>,
}

impl Usage {
    /// Gives a new layer a quota project where the disk has quotas (a microVM's does).
    pub fn start(agent: &Agent, layer: &Layer) -> Self {
        let mut quota = None;
        if agent.mode == Mode::Vm
            && let Ok(dir) = layer.open()
        {
            let project = agent.next_project();
            // The overlay renames from its work directory to the upper one, which ext4 refuses between projects.
            let set = [layer.upper(), layer.work()].into_iter().try_for_each(|path| {
                let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
                sys::set_project(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?, project)
            });
            match set {
                Ok(()) if sys::project_usage(&dir, project).is_ok() => quota = Some((dir, project)),
                Ok(()) => tracing::debug!("the disk has no project quotas"),
                Err(error) => tracing::debug!(%error, "the disk has no projects"),
            }
        }
        Self { quota, walked: Mutex::new(None) }
    }

    async fn measure(&self, upper: PathBuf) -> (u64, u64) {
        if let Some((fd, project)) = &self.quota
            && let Ok(used) = sys::project_usage(fd, *project)
        {
            return used;
        }
        let mut walked = self.walked.lock().await;
        if let Some((at, bytes, inodes)) = *walked
            && at.elapsed() < FRESH
        {
            return (bytes, inodes);
        }
        let (bytes, inodes) = walk(&upper).await;
        *walked = Some((Instant::now(), bytes, inodes));
        (bytes, inodes)
    }
}

/// Disk usage of what is below `top`, without following links or leaving the file system.
async fn walk(top: &Path) -> (u64, u64) {
    let (mut bytes, mut inodes) = (0u64, 0u64);
    let mut seen = std::collections::HashSet::new();
    let mut todo = vec![top.to_owned()];
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            count += 1;
            if count > MAX_ENTRIES {
                return (bytes, inodes);
            }
            if count % SLICE == 0 {
                tokio::task::yield_now().await;
            }
            let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino()) {
                continue;
            }
            bytes += meta.blocks() * 512;
            inodes += 1;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

/// Statistics of one container.
///
/// # Errors
/// When there is none.
pub async fn stats(agent: &Agent, id: &str) -> Result<ContainerStatsReply> {
    let container: std::sync::Arc<Container> = agent.container(id)?;
    let (usage, working_set, rss) = container.cgroup.memory();
    let (bytes, inodes) = container.usage.measure(container.layer.upper()).await;
    Ok(ContainerStatsReply {
        cpu_usage_nanos: container.cgroup.cpu_nanos(),
        memory_usage_bytes: usage,
        memory_working_set_bytes: working_set,
        memory_rss_bytes: rss,
        pids: container.cgroup.tasks(),
        writable_bytes: bytes,
        writable_inodes: inodes,
    })
}

//! What a container uses.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use cofferdam_proto::agent::{ContainerStatsReply, PodStatsReply, PodStatsRequest, ProcessStats};
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

/// Most processes and most descriptors of one container that are looked at.
const MAX_LOOKED_AT: (usize, usize) = (1024, 100_000);

/// Statistics of one container.
///
/// # Errors
/// When there is none.
pub async fn stats(agent: &Agent, id: &str) -> Result<ContainerStatsReply> {
    Ok(of(&*agent.container(id)?, false).await)
}

/// Statistics of all containers.
pub async fn pod(agent: &Agent, request: &PodStatsRequest) -> PodStatsReply {
    let mut containers = Vec::new();
    for container in agent.containers() {
        containers.push(of(&container, request.processes).await);
    }
    PodStatsReply { containers }
}

async fn of(container: &Container, processes: bool) -> ContainerStatsReply {
    let mut usage = container.cgroup.usage();
    if usage.tasks == 0 {
        // Without its controller nobody counts threads.
        usage.tasks = container.cgroup.pids().len() as u64;
    }
    let (bytes, inodes) = container.usage.measure(container.layer.upper()).await;
    let disk = rustix::fs::statvfs(container.layer.upper()).ok();
    let of_disk = |pick: fn(&rustix::fs::StatVfs) -> u64| disk.as_ref().map_or(0, pick);
    ContainerStatsReply {
        cpu_usage_nanos: usage.cpu_nanos,
        memory_usage_bytes: usage.memory_bytes,
        memory_working_set_bytes: usage.memory_bytes.saturating_sub(usage.memory_inactive_file_bytes),
        memory_rss_bytes: usage.memory_anon_bytes,
        pids: usage.tasks,
        writable_bytes: bytes,
        writable_inodes: inodes,
        id: container.spec.id.clone(),
        disk_bytes: of_disk(|d| d.f_blocks.saturating_mul(d.f_frsize)),
        disk_inodes: of_disk(|d| d.f_files),
        disk_free_inodes: of_disk(|d| d.f_favail),
        processes: processes.then(|| look_into(container)),
        usage: Some(usage),
    }
}

/// A /proc of the agent's own pid namespace: a supervisor sees the node's, where its containers have other numbers.
pub(super) fn proc() -> Option<String> {
    static PROC: LazyLock<Option<OwnedFd>> = LazyLock::new(|| {
        let made = super::rootfs::new_mount("proc", &[], 0);
        made.inspect_err(|error| tracing::warn!(error = error.chain(), "processes cannot be looked into")).ok()
    });
    PROC.as_ref().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Open files and sockets of all processes of a container. One that ends meanwhile is left out.
fn look_into(container: &Container) -> ProcessStats {
    let pids = container.cgroup.pids();
    let mut stats = ProcessStats { processes: pids.len() as u64, ..ProcessStats::default() };
    let Some(proc) = proc() else { return stats };
    for pid in pids.iter().take(MAX_LOOKED_AT.0) {
        let Ok(open) = fs::read_dir(format!("{proc}/{}/fd", pid.as_raw_nonzero())) else { continue };
        for entry in open.flatten() {
            if stats.open_files >= MAX_LOOKED_AT.1 as u64 {
                return stats;
            }
            stats.open_files += 1;
            let socket = fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"socket:"));
            stats.sockets += u64::from(socket);
        }
    }
    if !container.ended() {
        let limits =
            fs::read_to_string(format!("{proc}/{}/limits", container.pid.as_raw_nonzero())).unwrap_or_default();
        stats.open_files_limit = soft_limit(&limits).unwrap_or(0);
    }
    stats
}

/// `Max open files            1024                 524288               files`
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        let own = fs::read_to_string("/proc/self/limits").unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(soft_limit(&own), limit.current);
        assert_eq!(soft_limit("Max open files unlimited\n"), None);
        assert_eq!(soft_limit(""), None);
    }
}

//! A container's cgroup (version 2): limits, kill, and what it used.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::CgroupUsage;
use rustix::fs::{Mode, OFlags};

use crate::error::{Doing, Error, Result};
use crate::sys::write_knob;

/// Controllers that are handed down to containers.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "pids", "hugetlb"];
/// Longest knob that is read.
const MAX_KNOB: usize = 1 << 20;

/// Where cgroup v2 is mounted: as everywhere, or as on a machine that still has version 1 beside it.
pub fn find_root() -> PathBuf {
    let usual = Path::new("/sys/fs/cgroup");
    let is_v2 = rustix::fs::statfs(usual).is_ok_and(|s| s.f_type == 0x6367_7270);
    if is_v2 { usual.to_owned() } else { usual.join("unified") }
}

/// One cgroup that this agent made.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes `<root>/<parent>/<id>` and hands the controllers down to it.
    ///
    /// # Errors
    /// When it is there already, or cannot be made.
    pub fn create(root: &Path, parent: &Path, id: &str) -> Result<Self> {
        let mut at = prepare(root, parent)?;
        at.push(id);
        match fs::create_dir(&at) {
            // Left by a supervisor that was killed: nothing lives in it, or it would be busy.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let old = Self { path: at.clone() };
                old.kill();
                old.remove()?;
                fs::create_dir(&at).doing(format!("make cgroup {}", at.display()))?;
            }
            other => other.doing(format!("make cgroup {}", at.display()))?,
        }
        Ok(Self { path: at })
    }

    /// The cgroup in or below this one that a process is in; `text` is its `/proc/<pid>/cgroup`.
    pub fn of_process(&self, root: &Path, text: &str) -> Option<Self> {
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let path = root.join(path);
        let plain = path.components().all(|part| part != std::path::Component::ParentDir);
        (plain && path.starts_with(&self.path)).then_some(Self { path })
    }

    /// For clone3.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).doing(format!("open cgroup {}", self.path.display()))
    }

    /// For attaching programs, which an `O_PATH` descriptor does not allow.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open_for_programs(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).doing(format!("open cgroup {}", self.path.display()))
    }

    /// One of its files.
    pub(super) fn knob(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What one of its files says; nothing when it is not there.
    pub(super) fn read(&self, knob: &str) -> String {
        read(&self.path.join(knob)).trim().to_owned()
    }

    /// Kills every process in it and below.
    pub fn kill(&self) {
        if write_knob(&self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Kernels before 5.14.
        for pid in self.pids() {
            let _ = crate::sys::kill(pid, libc::SIGKILL);
        }
    }

    /// Processes in it and below, as this agent's pid namespace sees them.
    pub fn pids(&self) -> Vec<rustix::process::Pid> {
        let mut pids = Vec::new();
        let mut todo = vec![self.path.clone()];
        while let Some(dir) = todo.pop() {
            let text = read(&dir.join("cgroup.procs"));
            pids.extend(text.lines().filter_map(|l| rustix::process::Pid::from_raw(l.parse().ok()?)));
            todo.extend(children(&dir));
        }
        pids
    }

    /// Whether a process is in it or below.
    pub fn populated(&self) -> bool {
        read(&self.path.join("cgroup.events")).lines().any(|l| l == "populated 1")
    }

    /// Deletes it and what is below.
    ///
    /// # Errors
    /// While a process is in it.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path).doing(format!("delete cgroup {}", self.path.display()))
    }

    /// Number of processes that the kernel killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        field(&read(&self.path.join("memory.events")), "oom_kill")
    }

    /// What it used and uses.
    pub fn usage(&self) -> CgroupUsage {
        cofferdam_proto::usage::read(&self.path)
    }
}

/// Makes the cgroup `parent` and hands all controllers down to what will be in it.
///
/// # Errors
/// When it cannot be made.
pub fn prepare(root: &Path, parent: &Path) -> Result<PathBuf> {
    let parent = parent.strip_prefix("/").unwrap_or(parent);
    if parent.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        return Err(Error::invalid(format!("{} is not a cgroup's path", parent.display())));
    }
    let mut at = root.to_owned();
    delegate(&at);
    for part in parent {
        at.push(part);
        match fs::create_dir(&at) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(e).doing(format!("make cgroup {}", at.display()));
            }
            _ => delegate(&at),
        }
    }
    Ok(at)
}

fn read(path: &Path) -> String {
    let bytes = fs::File::open(path).and_then(|f| crate::sys::read_bounded(f, MAX_KNOB)).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|l| l.split_once(' '));
    lines.find(|(n, _)| *n == name).and_then(|(_, v)| v.trim().parse().ok()).unwrap_or(0)
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        // Has children, or a process.
        Err(_) => {}
    }
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Lets the cgroups below `dir` have what `dir` has. What cannot be given is missed when a limit needs it.
fn delegate(dir: &Path) {
    let have = read(&dir.join("cgroup.controllers"));
    let given = read(&dir.join("cgroup.subtree_control"));
    let missing = |c: &&&str| have.split_whitespace().any(|h| h == **c) && !given.split_whitespace().any(|g| g == **c);
    let list: Vec<String> = CONTROLLERS.iter().filter(missing).map(|c| format!("+{c}")).collect();
    let knob = dir.join("cgroup.subtree_control");
    if !list.is_empty() && write_knob(&knob, list.join(" ")).is_err() {
        for one in list {
            let _ = write_knob(&knob, one);
        }
    }
}

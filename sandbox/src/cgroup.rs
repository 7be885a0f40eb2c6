//! A pod's cgroup (v2): `<cgroup_parent>/<id>`, or systemd's scope `cofferdam-<id>.scope` where the parent is a slice, with the monitor or supervisor in a leaf of it, since a cgroup that
//! has controllers for its children may hold no process itself.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

mod scope;

use std::error::Error as _;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::error::{Doing, SandboxError};
use crate::spec::Config;

use scope::{Holder, Scope};

/// Controllers that pods use; each is handed down where the kernel has it.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];
/// How long killed processes may take to go. Generous: a killed VM gives back all its memory first.
const EMPTY_LIMIT: Duration = Duration::from_secs(60);

/// One pod's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodCgroup {
    root: PathBuf,
    /// Relative to the root, with a leading slash.
    name: String,
    /// Where systemd makes it.
    scope: Option<Scope>,
}

/// A place for a pod's first process.
#[derive(Debug)]
pub(crate) struct Place {
    /// `cgroup.procs` of the leaf.
    pub(crate) procs: fs::File,
    /// Keeps a scope alive until the process has joined.
    _holder: Option<Holder>,
}

impl PodCgroup {
    /// The cgroup of pod `id` below `parent`: a path, or the name of a slice, which has no slash.
    ///
    /// # Errors
    /// When `parent` would leave the root, or is a slice that there cannot be.
    pub(crate) fn new(config: &Config, parent: &str, id: &str) -> Result<Self, SandboxError> {
        if parent.ends_with(".slice") && !parent.contains('/') {
            let scope = Scope { unit: format!("cofferdam-{id}.scope"), slice: parent.to_owned() };
            let name = match scope::expand(parent)? {
                root if root.is_empty() => format!("/{}", scope.unit),
                path => format!("/{path}/{}", scope.unit),
            };
            return Ok(Self { root: config.cgroup_root.clone(), name, scope: Some(scope) });
        }
        let parent = parent.trim_matches('/');
        if parent.split('/').any(|part| part == ".." || part == "." || part.contains('\0')) {
            return Err(SandboxError::Invalid(format!("cgroup parent {parent:?} is no plain path")));
        }
        let name = if parent.is_empty() { format!("/{id}") } else { format!("/{parent}/{id}") };
        Ok(Self { root: config.cgroup_root.clone(), name, scope: None })
    }

    /// As it is called below the mount point, `/kubepods/.../<id>`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root.join(&self.name[1..])
    }

    /// The cgroup above it, unless that is the root.
    pub(crate) fn parent(&self) -> Option<PathBuf> {
        self.path().parent().filter(|parent| *parent != self.root).map(Path::to_owned)
    }

    /// The memory, in bytes, that everything in it may use: the least of its parents' limits. Nothing where there is none.
    pub(crate) fn memory_limit(&self) -> Option<u64> {
        let mut at = self.root.clone();
        let mut least: Option<u64> = None;
        for part in self.name[1..].split('/') {
            at.push(part);
            let text = fs::read_to_string(at.join("memory.max")).unwrap_or_default();
            let limit = text.trim().parse().ok(); // "max", or it is not there
            least = least.into_iter().chain(limit).min();
        }
        least
    }

    /// Memory that is charged to it, bytes; 0 when it is not there.
    pub(crate) fn memory_used(&self) -> u64 {
        let text = fs::read_to_string(self.path().join("memory.current")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// How many processes in it the kernel killed because memory was short there or on the node.
    pub(crate) fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(self.path().join("memory.events")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }

    /// Makes it and its parents with all controllers that can be had, and `leaf` in it, where the pod's process is to start while the
    /// answer is held. What is made in the pod's cgroup later has controllers too if `divided`: each switch costs the kernel a grace
    /// period, and a VM needs none. Blocks.
    pub(crate) fn create(&self, leaf: &str, divided: bool) -> Result<Place, SandboxError> {
        let at = self.path();
        let holder = match &self.scope {
            Some(scope) => Some(scope.start(&self.name)?),
            None => {
                let mut at = self.root.clone();
                for part in self.name[1..].split('/') {
                    hand_down(&at);
                    at.push(part);
                    make(&at)?;
                }
                None
            }
        };
        let leaf = at.join(leaf);
        make(&leaf)?;
        let path = leaf.join("cgroup.procs");
        let procs = fs::OpenOptions::new().write(true).open(&path).doing(|| format!("open {}", path.display()))?;
        if let Some(holder) = &holder {
            // Before controllers are handed down: a cgroup that does has no process itself.
            let moved = (&procs).write_all(holder.pid().to_string().as_bytes());
            moved.doing(|| format!("move a process to {}", leaf.display()))?;
        }
        if divided {
            hand_down(&at);
        }
        Ok(Place { procs, _holder: holder })
    }

    /// Kills everything in it, waits until nothing is left, and removes it. Idempotent. Blocks.
    pub(crate) fn destroy(&self) -> Result<(), SandboxError> {
        let path = self.path();
        if path.exists() {
            let step = || format!("empty cgroup {}", path.display());
            kill(&path).doing(step)?;
            wait_empty(&path)?;
            remove(&path).doing(|| format!("remove cgroup {}", path.display()))?;
        }
        if let Some(scope) = &self.scope
            && let Err(error) = scope.stop()
        {
            // systemd collects a scope without processes by itself.
            tracing::warn!(unit = scope.unit, error = %error, cause = ?error.source(), "scope not stopped");
        }
        Ok(())
    }
}

fn make(path: &Path) -> Result<(), SandboxError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).doing(|| format!("make cgroup {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Gives the children of `cgroup` every controller that it has. A controller that cannot be handed down (a process lives in the
/// cgroup itself, or an administrator keeps it) costs its limits and nothing else.
fn hand_down(cgroup: &Path) {
    let words = |file: &str| fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let (has, gives) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let missing =
        |name: &&&str| has.split_whitespace().any(|x| x == **name) && !gives.split_whitespace().any(|x| x == **name);
    let missing: Vec<&str> = CONTROLLERS.iter().filter(missing).copied().collect();
    let all: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    if missing.is_empty() || fs::write(cgroup.join("cgroup.subtree_control"), all.join(" ")).is_ok() {
        return;
    }
    for name in missing {
        if let Err(error) = fs::write(cgroup.join("cgroup.subtree_control"), format!("+{name}")) {
            tracing::debug!(cgroup = %cgroup.display(), controller = name, %error, "controller is not handed down");
        }
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

fn kill(path: &Path) -> io::Result<()> {
    gone_is_fine(fs::write(path.join("cgroup.kill"), "1"))
}

fn populated(events: &fs::File) -> bool {
    let mut buffer = [0; 256];
    let length = events.read_at(&mut buffer, 0).unwrap_or(0); // the cgroup is gone: nothing is in it
    String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "populated 1")
}

/// Waits until no process is left; the kernel says so on `cgroup.events`.
fn wait_empty(path: &Path) -> Result<(), SandboxError> {
    let deadline = Instant::now() + EMPTY_LIMIT;
    let Ok(events) = fs::File::open(path.join("cgroup.events")) else { return Ok(()) };
    while populated(&events) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let step = format!("the processes of cgroup {} to end", path.display());
            return Err(SandboxError::TimedOut { step, seconds: EMPTY_LIMIT.as_secs() });
        }
        // Ready when something changed since this descriptor was read.
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&timeout));
    }
    Ok(())
}

/// Removes it with all below it, deepest first.
fn remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove(&entry.path())?;
    }
    // A process that was killed is gone from `populated` a moment before its cgroup may go.
    let mut pause = Duration::from_micros(200);
    loop {
        match gone_is_fine(fs::remove_dir(path)) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && pause < Duration::from_secs(2) => {
                std::thread::sleep(pause);
                pause *= 2;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{new_id, on_a_node};

    #[test]
    fn the_least_limit_of_all_parents_counts() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { cgroup_root: folder.path().into(), ..crate::testing::config_below(folder.path()) };
        let cgroup = PodCgroup::new(&config, "/kubepods/pod1", &new_id()).unwrap();
        let limit = |at: &str, text: &str| {
            fs::create_dir_all(folder.path().join(at)).unwrap();
            fs::write(folder.path().join(at).join("memory.max"), text).unwrap();
        };
        assert_eq!(cgroup.memory_limit(), None);
        limit("kubepods/pod1", "max\n");
        assert_eq!(cgroup.memory_limit(), None);
        limit("kubepods", "8192\n");
        assert_eq!(cgroup.memory_limit(), Some(8192));
        limit("kubepods/pod1", "4096\n");
        assert_eq!(cgroup.memory_limit(), Some(4096));
    }

    #[test]
    fn kills_for_want_of_memory_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { cgroup_root: folder.path().into(), ..crate::testing::config_below(folder.path()) };
        let cgroup = PodCgroup::new(&config, "/p", &new_id()).unwrap();
        assert_eq!(cgroup.oom_kills(), 0);
        fs::create_dir_all(cgroup.path()).unwrap();
        fs::write(cgroup.path().join("memory.events"), "low 0\nmax 9\noom 2\noom_kill 3\noom_group_kill 0\n").unwrap();
        assert_eq!(cgroup.oom_kills(), 3);
    }

    #[test]
    fn controllers_are_handed_down_and_nothing_is_left() {
        on_a_node(|node| async move {
            let config = &node.config;
            let words = |path: PathBuf| fs::read_to_string(path.join("cgroup.controllers")).unwrap();
            let has = words(config.cgroup_root.clone());
            let expected: Vec<&str> =
                CONTROLLERS.into_iter().filter(|name| has.split_whitespace().any(|x| x == *name)).collect();
            println!("the node has {expected:?}");
            let cgroup = PodCgroup::new(config, "cofferdam-test/deeper/", &new_id()).unwrap();
            cgroup.create("leaf", true).unwrap();
            cgroup.create("leaf", true).expect("it may be there already");
            let leaf = words(cgroup.path().join("leaf"));
            assert!(expected.iter().all(|name| leaf.split_whitespace().any(|x| x == *name)), "{leaf} of {has}");
            cgroup.destroy().unwrap();
            cgroup.destroy().unwrap();
            assert!(!cgroup.path().exists());
            let vm = PodCgroup::new(config, "/cofferdam-test/deeper", &new_id()).unwrap();
            vm.create("leaf", false).unwrap();
            assert_eq!(words(vm.path().join("leaf")).trim(), "");
            assert!(expected.iter().all(|name| words(vm.path()).contains(name)), "a VM has no limits");
            vm.destroy().unwrap();
            let _ = fs::remove_dir(config.cgroup_root.join("cofferdam-test/deeper"));
            let _ = fs::remove_dir(config.cgroup_root.join("cofferdam-test"));
        });
    }
}

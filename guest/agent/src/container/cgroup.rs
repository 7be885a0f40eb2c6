//! A container's cgroup (version 2): limits, kill, and what it used.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::Resources;
use rustix::fs::{Mode, OFlags};

use crate::error::{Doing, Error, Kind, Result};
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

    /// A cgroup inside this one, for one exec.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn child(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        fs::create_dir(&path).doing(format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
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

    /// Sets limits.
    ///
    /// # Errors
    /// When the kernel refuses a value, or lacks a controller that is needed.
    pub fn limit(&self, resources: &Resources) -> Result<()> {
        for (knob, value) in knobs(resources)? {
            self.set(knob, &value)?;
        }
        let mut unified: Vec<_> = resources.unified.iter().collect();
        unified.sort();
        for (knob, value) in unified {
            if !is_knob(knob) {
                return Err(Error::invalid(format!("{knob:?} is not a cgroup's file")));
            }
            if self.path.join(knob).exists() {
                self.set(knob, value)?;
            }
        }
        Ok(())
    }

    fn set(&self, knob: &str, value: &str) -> Result<()> {
        match write_knob(&self.path.join(knob), value) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && knob == "memory.swap.max" => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::new(
                Kind::Precondition,
                format!("cannot set {knob}: its controller is not on in {}", self.path.display()),
            )),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ERANGE)) => {
                Err(e).asked(format!("set {knob} to {value:?}"))
            }
            Err(e) => Err(e).doing(format!("set {knob} to {value:?}")),
        }
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

    /// Nanoseconds of CPU.
    pub fn cpu_nanos(&self) -> u64 {
        field(&read(&self.path.join("cpu.stat")), "usage_usec").saturating_mul(1000)
    }

    /// Bytes: all, working set, anonymous.
    pub fn memory(&self) -> (u64, u64, u64) {
        let usage = read(&self.path.join("memory.current")).trim().parse().unwrap_or(0u64);
        let stat = read(&self.path.join("memory.stat"));
        (usage, usage.saturating_sub(field(&stat, "inactive_file")), field(&stat, "anon"))
    }

    /// Number of processes and threads.
    pub fn tasks(&self) -> u64 {
        let text = read(&self.path.join("pids.current"));
        text.trim().parse().unwrap_or_else(|_| self.pids().len() as u64)
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

fn is_knob(name: &str) -> bool {
    name.contains('.')
        && !name.starts_with("cgroup.")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
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

/// `cpu.weight` for CPU shares. 1024 shares are weight 100, 2 are 1 and 262144 are 10000, on a parabola of logarithms:
/// the conversion that runtimes agreed on, so that a request weighs the same on every node.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn knobs(r: &Resources) -> Result<Vec<(&'static str, String)>> {
    let mut knobs = Vec::new();
    if r.cpu_shares > 0 {
        knobs.push(("cpu.weight", weight(r.cpu_shares).to_string()));
    }
    if r.cpu_quota_us != 0 || r.cpu_period_us != 0 {
        let quota = if r.cpu_quota_us > 0 { r.cpu_quota_us.to_string() } else { "max".into() };
        let period = if r.cpu_period_us == 0 { 100_000 } else { r.cpu_period_us };
        knobs.push(("cpu.max", format!("{quota} {period}")));
    }
    for (knob, value) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            knobs.push((knob, value.clone()));
        }
    }
    let amount = |n: i64| if n < 0 { "max".to_owned() } else { n.to_string() };
    if r.memory_swap_bytes > 0 && r.memory_limit_bytes > 0 {
        let swap = r.memory_swap_bytes.checked_sub(r.memory_limit_bytes).filter(|s| *s >= 0);
        let swap = swap.ok_or_else(|| Error::invalid("memory and swap together are less than the memory alone"))?;
        knobs.push(("memory.swap.max", swap.to_string()));
    } else if r.memory_swap_bytes < 0 {
        knobs.push(("memory.swap.max", "max".into()));
    }
    if r.memory_limit_bytes != 0 {
        knobs.push(("memory.max", amount(r.memory_limit_bytes)));
    }
    if r.pids_limit != 0 {
        knobs.push(("pids.max", amount(r.pids_limit)));
    }
    Ok(knobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_agreed_corners() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..262_144).step_by(997).all(|s| weight(s) <= weight(s + 997)));
    }

    #[test]
    fn limits_become_knobs() {
        let r = Resources {
            cpu_shares: 1024,
            cpu_quota_us: 50_000,
            memory_limit_bytes: 100,
            memory_swap_bytes: 150,
            pids_limit: -1,
            ..Resources::default()
        };
        let got = knobs(&r).unwrap();
        let expected = [
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("memory.swap.max", "50"),
            ("memory.max", "100"),
            ("pids.max", "max"),
        ];
        assert_eq!(got, expected.map(|(k, v)| (k, v.to_owned())));
        assert!(knobs(&Resources { memory_limit_bytes: 2, memory_swap_bytes: 1, ..r }).is_err());
    }

    #[test]
    fn a_knob_is_a_name() {
        for (name, good) in
            [("memory.high", true), ("../x.y", false), ("cgroup.kill", false), ("hugetlb.2MB.max", true), ("x", false)]
        {
            assert_eq!(is_knob(name), good, "{name}");
        }
    }
}

//! What the daemon and its pods hold on the node, by name where it has one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::bench::memory;
use crate::daemon;
use crate::failure::{Doing, Outcome};

/// How much more resident memory the daemon may have: what an allocator's arenas wander by. 500 pods that leaked 10 KiB each are more.
const MEMORY_MIB: f64 = 4.0;

/// One look.
pub(super) struct Reading {
    things: BTreeMap<&'static str, BTreeSet<String>>,
    memory_mib: f64,
}

impl Reading {
    /// Looks.
    pub(super) fn take() -> Outcome<Self> {
        let daemon = u32::try_from(daemon::pid()?).doing("read the daemon's pid")?;
        let ours = processes();
        let mut namespaces = BTreeSet::new();
        for (pid, _) in &ours {
            // Each thread: one that entered a namespace and did not come back keeps it.
            for task in names(&format!("/proc/{pid}/task")) {
                for kind in ["mnt", "pid", "ipc", "uts", "net", "user", "cgroup"] {
                    let link = fs::read_link(format!("/proc/{pid}/task/{task}/ns/{kind}"));
                    namespaces.extend(link.map(|l| l.display().to_string()));
                }
            }
        }
        let mut files = BTreeSet::new();
        for folder in ["/run/cofferdam", "/var/lib/cofferdam", "/run/netns", "/dev/shm"] {
            below(Path::new(folder), &mut files, &|_| true);
        }
        // The plugins' own lock and last address stay after their first use.
        below(Path::new("/var/lib/cni"), &mut files, &|path| {
            !path.ends_with("lock") && !path.ends_with("last_reserved_ip.0")
        });
        let mut cgroups = BTreeSet::new();
        let systemd = ["/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/user.slice"];
        below(Path::new("/sys/fs/cgroup"), &mut cgroups, &|path| {
            path.is_dir() && !systemd.iter().any(|s| path.starts_with(s))
        });
        let mut rules = BTreeSet::new();
        for program in ["iptables-save", "ip6tables-save"] {
            let output = Command::new(program).output().doing(&format!("run {program}"))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            rules.extend(numbered(text.lines().filter(|l| l.starts_with("-A")).map(|l| format!("{program} {l}"))));
        }
        let mounts = fs::read_to_string("/proc/1/mounts").doing("read the node's mounts")?;
        let fds = names(&format!("/proc/{daemon}/fd"));
        let opened = fds.iter().filter_map(|fd| fs::read_link(format!("/proc/{daemon}/fd/{fd}")).ok());
        let things = BTreeMap::from([
            ("processes", ours.iter().map(|(pid, name)| format!("{name} {pid}")).collect()),
            ("daemon's descriptors", numbered(opened.map(|target| kind(&target.display().to_string())))),
            ("daemon's threads", numbered(names(&format!("/proc/{daemon}/task")).into_iter().map(|_| "thread".into()))),
            ("mounts", numbered(mounts.lines().map(str::to_owned))),
            ("namespaces", namespaces),
            ("cgroups", cgroups),
            ("files", files),
            ("links", names("/sys/class/net").into_iter().collect()),
            ("firewall rules", rules),
        ]);
        Ok(Self { things, memory_mib: memory::rss_mib(daemon, u64::MAX / 1024)? })
    }

    /// With the smaller memory of both.
    pub(super) fn with_least_memory(mut self, other: &Self) -> Self {
        self.memory_mib = self.memory_mib.min(other.memory_mib);
        self
    }

    /// What there is here and not there, one line each.
    pub(super) fn beyond(&self, before: &Self) -> String {
        let mut text = String::new();
        for (what, now) in &self.things {
            let Some(then) = before.things.get(what) else { continue };
            let new: Vec<_> = now.difference(then).collect();
            if !new.is_empty() && (now.len() > then.len() || !["namespaces", "processes"].contains(what)) {
                text.push_str(&format!("\n  {what}: {} now, {} before:", now.len(), then.len()));
                new.iter().take(20).for_each(|line| text.push_str(&format!("\n    {line}")));
            }
        }
        if self.memory_mib > before.memory_mib + MEMORY_MIB {
            text.push_str(&format!(
                "\n  daemon's memory: {:.1} MiB, {:.1} before: more than {MEMORY_MIB} MiB beyond",
                self.memory_mib, before.memory_mib
            ));
        }
        text
    }
}

impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, things) in &self.things {
            write!(f, "{what} {}, ", things.len())?;
        }
        write!(f, "daemon's memory {:.1} MiB", self.memory_mib)
    }
}

/// A socket's or pipe's number says nothing; what kind it is does.
fn kind(target: &str) -> String {
    target.split_once(":[").map_or(target, |(kind, _)| kind).to_owned()
}

/// Makes equal lines different, so that one more of them is seen.
fn numbered(lines: impl Iterator<Item = String>) -> BTreeSet<String> {
    let mut count: BTreeMap<String, u32> = BTreeMap::new();
    let number = |line: String| {
        let seen = count.entry(line.clone()).or_default();
        *seen += 1;
        if *seen == 1 { line } else { format!("{line} (number {seen})") }
    };
    lines.map(number).collect()
}

/// Processes of the daemon and its pods, dead ones that nobody reaped included: by cgroup, by program, by parent.
fn processes() -> Vec<(u32, String)> {
    let pids = names("/proc").into_iter().filter_map(|name| name.parse::<u32>().ok());
    let ours = |pid: &u32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        cgroup.contains("cofferdam")
            || ["cofferdam-vmm", "cofferdam-agent"].iter().any(|p| crate::processes::runs(*pid, p))
    };
    let named = |pid: u32| (pid, fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned());
    pids.filter(ours).map(named).collect()
}

fn names(folder: &str) -> Vec<String> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Everything wanted below a folder.
fn below(folder: &Path, found: &mut BTreeSet<String>, wanted: &impl Fn(&Path) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if wanted(&path) {
            found.insert(path.display().to_string());
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                below(&path, found, wanted);
            }
        }
    }
}

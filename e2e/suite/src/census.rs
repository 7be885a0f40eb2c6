//! What pods leave on a node: processes, mounts, namespaces, taps, cgroups, files, leases, firewall rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::crictl::wait_for;
use crate::failure::{Doing, Outcome, ensure};

/// Everything of ours that exists on the node now, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Census(BTreeSet<String>);

impl Census {
    /// Counts.
    pub(crate) fn take() -> Outcome<Self> {
        let mut found = BTreeSet::new();
        processes(&mut found);
        for line in fs::read_to_string("/proc/self/mounts").doing("read the mounts")?.lines() {
            if line.contains("cofferdam") && !line.contains("/product") {
                found.insert(format!("mount {line}"));
            }
        }
        files(&mut found, "network namespace", Path::new("/run/netns"), 1);
        for link in names(Path::new("/sys/class/net")) {
            if link != "lo" && link != "cni0" && !link.starts_with('e') && !link.starts_with("docker") {
                found.insert(format!("link {link}"));
            }
        }
        files(&mut found, "cgroup", Path::new("/sys/fs/cgroup/cofferdam"), 3);
        files(&mut found, "cgroup", Path::new("/sys/fs/cgroup/cofferdam.slice"), 3);
        files(&mut found, "file", Path::new("/run/cofferdam/pods"), 2);
        files(&mut found, "file", Path::new("/var/lib/cofferdam/pods"), 2);
        files(&mut found, "lease", Path::new("/var/lib/cni/networks"), 2);
        files(&mut found, "CNI result", Path::new("/var/lib/cni/results"), 1);
        let rules = Command::new("iptables-save").output().doing("run iptables-save")?;
        for rule in String::from_utf8_lossy(&rules.stdout).lines() {
            if rule.starts_with("-A CNI-") || rule.contains("10.88.") {
                found.insert(format!("rule {rule}"));
            }
        }
        // Chains, masquerading and lock files of the plugins themselves stay once they were used; no pod owns them.
        found.retain(|line| !is_the_plugins_own(line));
        Ok(Self(found))
    }

    /// Fails unless the node is as it was, within the time that asynchronous clean-up may take.
    pub(crate) fn unchanged(&self) -> Outcome {
        let mut left = String::new();
        let settled = wait_for("the node to be as before", || {
            let now = Self::take()?;
            left = now.0.difference(&self.0).map(|line| format!("\n    {line}")).collect();
            Ok(left.is_empty())
        });
        ensure!(settled.is_ok(), "left behind:{left}");
        Ok(())
    }

    /// How many things there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn is_the_plugins_own(line: &str) -> bool {
    line.ends_with("/last_reserved_ip.0")
        || line.ends_with("/lock")
        || line == "lease /var/lib/cni/networks/pods"
        || line.starts_with("rule -A CNI-FORWARD -m comment")
        || line.starts_with("rule -A CNI-HOSTPORT")
        || line.starts_with("rule -A CNI-FORWARD -j CNI-ADMIN")
}

fn processes(found: &mut BTreeSet<String>) {
    for program in ["cofferdam-vmm", "cofferdam-agent"] {
        for pid in crate::processes::all(program) {
            found.insert(format!("process {pid} {program}"));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn files(found: &mut BTreeSet<String>, kind: &str, folder: &Path, depth: u32) {
    for name in names(folder) {
        let path = folder.join(name);
        let is_folder = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        if kind == "cgroup" && !is_folder {
            continue;
        }
        found.insert(format!("{kind} {}", path.display()));
        if is_folder && depth > 1 {
            files(found, kind, &path, depth - 1);
        }
    }
}

//! What host pods need of the node.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::path::Path;

use rustix::mount::{FsOpenFlags, fsopen};

use super::program;
use crate::spec::Config;

/// Magic number of cgroup v2 in statfs(2).
const CGROUP2: u64 = 0x6367_7270;

/// Checks everything, cheapest first.
pub(super) fn check(config: &Config) -> Result<(), String> {
    program("the agent", &config.agent)?;
    for namespace in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let path = Path::new("/proc/self/ns").join(namespace);
        fs::symlink_metadata(&path).map_err(|_| format!("the node's kernel has no {namespace} namespaces"))?;
    }
    let root = config.cgroup_root.display();
    let magic =
        rustix::fs::statfs(&config.cgroup_root).map_err(|error| format!("cannot look at {root}: {error}"))?.f_type;
    if u64::try_from(magic) != Ok(CGROUP2) {
        return Err(format!("{root} is not cgroup v2: boot the node with systemd.unified_cgroup_hierarchy=1"));
    }
    let has = fs::read_to_string(config.cgroup_root.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !has.split_whitespace().any(|word| word == *name))
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "cgroup v2 in {root} lacks controllers: {}; is one of them in use by cgroup v1?",
            missing.join(", ")
        ));
    }
    // Opening it loads the module if there is one.
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| format!("the node's kernel has no overlayfs ({error}): load the overlay module"))?;
    Ok(())
}

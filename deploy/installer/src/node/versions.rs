//! Old versions: kept while a program of theirs runs, and the last one for the way back.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Doing, Result};
use crate::paths::Paths;

/// Programs of a version that a pod, or the daemon, may still run.
const PROGRAMS: [&str; 4] =
    ["bin/cofferdam", "bin/cofferdam-installer", "lib/cofferdam/cofferdam-vmm", "lib/cofferdam/cofferdam-agent"];

/// Removes versions that are neither in `keep` nor run by a process of this node. Returns what it
/// removed.
pub(crate) fn prune(paths: &Paths, keep: &[&str]) -> Result<Vec<String>> {
    let running = running(&paths.host("/proc"));
    let folder = paths.versions();
    let step = || format!("look at the versions in {}", folder.display());
    let mut removed = Vec::new();
    for entry in fs::read_dir(&folder).doing(step)? {
        let entry = entry.doing(step)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What begins with a dot is being placed by a pod right now, or is removed when its version
        // is placed again.
        if name.starts_with('.') || keep.contains(&name.as_str()) || is_used(&entry.path(), &running) {
            continue;
        }
        fs::remove_dir_all(entry.path()).doing(|| format!("remove {}", entry.path().display()))?;
        removed.push(name);
    }
    Ok(removed)
}

/// The program files that run, by device and inode: a process in a mount namespace of its own has
/// another path to them.
fn running(proc: &Path) -> HashSet<(u64, u64)> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    processes.filter_map(|process| identity(&process.path().join("exe"))).collect()
}

fn is_used(version: &Path, running: &HashSet<(u64, u64)>) -> bool {
    PROGRAMS.iter().filter_map(|name| identity(&version.join(name))).any(|program| running.contains(&program))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_use_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        for version in ["1", "2", "3", "4", ".5.new"] {
            let program = paths.version(version).join("lib/cofferdam/cofferdam-vmm");
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::write(program, version).unwrap();
        }
        let process = paths.host("/proc/17");
        fs::create_dir_all(&process).unwrap();
        std::os::unix::fs::symlink(paths.version("1").join("lib/cofferdam/cofferdam-vmm"), process.join("exe"))
            .unwrap();
        assert_eq!(prune(&paths, &["4", "3"]).unwrap(), ["2"]);
        assert!(paths.version("1").exists() && paths.version(".5.new").exists());
    }
}

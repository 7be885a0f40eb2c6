//! The CPU quota of a pod counts for what its containers do, not for what it takes to start them: while the pod boots, and while its first
//! container is made, the quota of the pod's cgroup is lifted.
//!
//! The kubelet sets `cpu.max` on the cgroup above ours (`kubepods/.../pod<uid>`). A microVM's boot would be held by it: with 50m it takes
//! twenty times as long. Booting in a cgroup elsewhere would leave the memory of the boot charged there for ever, as cgroup v2 moves no charges.
//!
//! What the quota was is kept in a file before it is lifted, so that it is put back whatever happens to the daemon meanwhile.

#![expect(
    clippy::disallowed_methods,
    reason = "on blocking threads, but for the end of a lift: cgroup files are in the kernel's memory"
)]

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cgroup::PodCgroup;
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError};

/// A quota that is lifted; dropping this puts it back.
#[derive(Debug)]
pub struct LiftedQuota {
    record: PathBuf,
}

/// What is kept while a quota is lifted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Record {
    /// The file that holds the quota.
    knob: PathBuf,
    /// What it said: `5000 100000`.
    before: String,
    /// What it says meanwhile: `max 100000`.
    meanwhile: String,
}

/// Lifts the quota of the cgroup above the pod's, if it has one and nothing but this pod is below it. Blocks for moments.
pub(crate) fn lift(cgroup: &PodCgroup, dirs: &Dirs) -> Result<Option<LiftedQuota>, SandboxError> {
    let path = cgroup.path();
    let record = dirs.lifted_quota();
    let Some(parent) = cgroup.parent().filter(|parent| !record.exists() && is_alone(parent, &path)) else {
        return Ok(None);
    };
    let knob = parent.join("cpu.max");
    let Ok(text) = fs::read_to_string(&knob) else { return Ok(None) };
    let before = text.trim().to_owned();
    let Some((quota, period)) = before.split_once(' ').filter(|(quota, _)| *quota != "max") else { return Ok(None) };
    tracing::debug!(cgroup = %parent.display(), quota, period, "CPU quota lifted");
    let meanwhile = format!("max {period}");
    dirs::write(&record, &Record { knob: knob.clone(), before: before.clone(), meanwhile: meanwhile.clone() })?;
    let lifted = LiftedQuota { record };
    fs::write(&knob, meanwhile).doing(|| format!("lift the CPU quota of {}", parent.display()))?;
    Ok(Some(lifted))
}

/// Whether nothing runs in or below `parent` but what is in `own`. A quota that others share is not lifted.
fn is_alone(parent: &Path, own: &Path) -> bool {
    let says = |path: PathBuf, line: &str| fs::read_to_string(path).unwrap_or_default().lines().any(|l| l == line);
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let others = entries.map(|entry| entry.path()).filter(|path| path != own && path.is_dir());
    let itself = fs::read_to_string(parent.join("cgroup.procs")).unwrap_or_default();
    itself.is_empty() && others.map(|path| path.join("cgroup.events")).all(|path| !says(path, "populated 1"))
}

/// Puts a quota back that was lifted for a pod, unless somebody has set another one since. Idempotent; a failure is logged, since nothing
/// else has to wait for it.
pub(crate) fn put_back(dirs: &Dirs) {
    restore_or_log(&dirs.lifted_quota());
}

fn restore_or_log(record: &Path) {
    if let Err(error) = restore(record) {
        tracing::error!(record = %record.display(), error = ?error, "a pod's CPU quota was not put back");
    }
}

fn restore(record: &Path) -> Result<(), SandboxError> {
    let Some(Record { knob, before, meanwhile }) = dirs::read(record)? else { return Ok(()) };
    match fs::read_to_string(&knob) {
        Ok(now) if now.trim() == meanwhile => {
            fs::write(&knob, &before).doing(|| format!("put {before:?} back into {}", knob.display()))?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {} // the cgroup went with its pod
        Err(error) => return Err(error).doing(|| format!("read {}", knob.display())),
    }
    fs::remove_file(record).doing(|| format!("delete {}", record.display()))
}

impl Drop for LiftedQuota {
    fn drop(&mut self) {
        restore_or_log(&self.record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config_below, new_id};

    struct Tree {
        _folder: tempfile::TempDir,
        cgroup: PodCgroup,
        dirs: Dirs,
        knob: PathBuf,
    }

    impl Tree {
        fn new(cpu_max: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut config = config_below(folder.path());
            config.cgroup_root = folder.path().join("cgroup");
            let id = new_id();
            let cgroup = PodCgroup::new(&config, "/kubepods/pod1", &id).unwrap();
            let dirs = Dirs::of(&config, &id).unwrap();
            dirs::make_private(&dirs.run).unwrap();
            fs::create_dir_all(cgroup.path()).unwrap();
            let knob = cgroup.parent().unwrap().join("cpu.max");
            fs::write(&knob, cpu_max).unwrap();
            fs::write(cgroup.path().join("cgroup.events"), "populated 1\n").unwrap();
            Self { _folder: folder, cgroup, dirs, knob }
        }

        fn now(&self) -> String {
            fs::read_to_string(&self.knob).unwrap().trim().to_owned()
        }

        fn lift(&self) -> Option<LiftedQuota> {
            lift(&self.cgroup, &self.dirs).unwrap()
        }
    }

    #[test]
    fn a_quota_is_lifted_and_put_back() {
        let tree = Tree::new("5000 100000\n");
        let lifted = tree.lift().unwrap();
        assert_eq!(tree.now(), "max 100000");
        assert!(tree.lift().is_none(), "it is lifted already");
        assert_eq!(tree.now(), "max 100000");
        drop(lifted);
        assert_eq!(tree.now(), "5000 100000");
        assert!(!tree.dirs.lifted_quota().exists());
    }

    #[test]
    fn a_daemon_that_was_killed_puts_it_back_later() {
        let tree = Tree::new("5000 100000\n");
        std::mem::forget(tree.lift().unwrap());
        put_back(&tree.dirs);
        assert_eq!(tree.now(), "5000 100000");
        put_back(&tree.dirs);
        std::mem::forget(tree.lift().unwrap());
        fs::remove_file(&tree.knob).unwrap();
        put_back(&tree.dirs);
        assert!(!tree.dirs.lifted_quota().exists(), "the cgroup may be gone");
    }

    #[test]
    fn what_the_kubelet_sets_meanwhile_stays() {
        let tree = Tree::new("5000 100000\n");
        let lifted = tree.lift().unwrap();
        fs::write(&tree.knob, "20000 100000\n").unwrap();
        drop(lifted);
        assert_eq!(tree.now(), "20000 100000");
    }

    #[test]
    fn no_quota_and_a_shared_one_are_left_alone() {
        assert!(Tree::new("max 100000\n").lift().is_none());
        let tree = Tree::new("5000 100000\n");
        let other = tree.knob.parent().unwrap().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(tree.lift().is_none());
        fs::write(other.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        assert!(tree.lift().is_some());
        fs::write(tree.knob.parent().unwrap().join("cgroup.procs"), "17\n").unwrap();
        assert!(tree.lift().is_none());
        assert_eq!(tree.now(), "5000 100000");
    }
}

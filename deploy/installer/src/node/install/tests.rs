//! An install that is killed before any of its steps leaves the node as it was, or done.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use super::*;
use crate::node::machine::Expect;

/// A node whose daemon is ready when the link leads to a version that works.
struct Fake<'a> {
    paths: &'a Paths,
    broken: &'a str,
    running: RefCell<Option<String>>,
    enabled: Cell<bool>,
}

impl Machine for Fake<'_> {
    async fn reload(&self) -> Result<()> {
        Ok(())
    }
    async fn enable(&self, _: &[&str], enabled: bool) -> Result<()> {
        self.enabled.set(enabled);
        Ok(())
    }
    async fn start(&self, _: &str) -> Result<()> {
        unreachable!("an install restarts")
    }
    async fn restart(&self, _: &str) -> Result<()> {
        *self.running.borrow_mut() = self.paths.installed();
        Ok(())
    }
    async fn stop(&self, _: &str) -> Result<()> {
        *self.running.borrow_mut() = None;
        Ok(())
    }
    async fn daemon_ready(&self) -> Result<()> {
        match self.running.borrow().as_deref() {
            Some(version) if version != self.broken => Ok(()),
            other => refuse(format!("{other:?} does not come up")),
        }
    }
    async fn stop_pods(&self, _: &str) -> Result<()> {
        unreachable!("an install touches no pod")
    }
    async fn node_ready(&self, _: &str, _: &str, _: Expect) -> Result<()> {
        unreachable!("an install leaves the kubelet alone")
    }
}

fn place(paths: &Paths, version: &str) {
    let folder = paths.version(version);
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join("share")).unwrap();
    fs::write(folder.join("bin/cofferdam"), version).unwrap();
    for name in ["config.toml", UNIT, RECOVER_UNIT] {
        fs::write(folder.join("share").join(name), format!("# {name} of {version}\n")).unwrap();
    }
}

/// Every file and link of the node, except the placed versions and folders that are empty.
fn picture(paths: &Paths) -> BTreeMap<PathBuf, String> {
    fn walk(folder: &Path, seen: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                seen.insert(path.clone(), fs::read_link(&path).unwrap().display().to_string());
            } else if path.is_dir() {
                walk(&path, seen);
            } else {
                seen.insert(path.clone(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut seen = BTreeMap::new();
    walk(&paths.host("/"), &mut seen);
    seen.retain(|path, _| !path.starts_with(paths.versions()));
    seen
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// Installs `version`; the process dies before step `death`, counted from 0. Returns whether it
/// did.
fn install(machine: &Fake<'_>, version: &str, death: usize) -> (bool, Option<Result<()>>) {
    let count = Cell::new(0);
    let step = |_: &str| {
        if count.replace(count.get() + 1) == death {
            std::panic::resume_unwind(Box::new("killed"));
        }
    };
    let install = Install { paths: machine.paths, machine, step: &step };
    match catch_unwind(AssertUnwindSafe(|| block(install.run(version)))) {
        Ok(outcome) => (false, Some(outcome)),
        Err(_) => (true, None),
    }
}

fn recover(machine: &Fake<'_>) {
    block(Install { paths: machine.paths, machine, step: &|_| () }.recover()).unwrap();
}

fn at_each_step(previous: Option<&str>, broken: &str) {
    for death in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path());
        place(&paths, "1");
        place(&paths, "2");
        let machine = Fake { paths: &paths, broken, running: RefCell::default(), enabled: Cell::new(false) };
        if let Some(previous) = previous {
            install(&machine, previous, usize::MAX).1.unwrap().unwrap();
        }
        let before = (picture(&paths), machine.running.borrow().clone(), machine.enabled.get());
        let (died, outcome) = install(&machine, "2", death);
        recover(&machine);
        let after = (picture(&paths), machine.running.borrow().clone(), machine.enabled.get());
        if died || broken == "2" {
            assert_eq!(after, before, "killed before step {death}");
            assert!(outcome.is_none_or(|outcome| outcome.is_err()));
        } else {
            outcome.unwrap().unwrap();
            assert_eq!(paths.installed().as_deref(), Some("2"));
            assert_eq!((after.1.as_deref(), after.2), (Some("2"), true));
        }
        if !died {
            assert!(death >= 6, "only {death} steps");
            return;
        }
        // And the next try completes, if the version works.
        let (_, again) = install(&machine, "2", usize::MAX);
        assert_eq!(again.unwrap().is_ok(), broken != "2");
    }
}

#[test]
fn a_first_install_is_undone_or_done() {
    at_each_step(None, "");
    at_each_step(None, "2");
}

#[test]
fn an_upgrade_is_undone_or_done() {
    at_each_step(Some("1"), "");
    at_each_step(Some("1"), "2");
}

#[test]
fn the_nodes_own_configuration_stays() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::below(dir.path());
    place(&paths, "1");
    files::write(&paths.config(), "log_level = \"debug\"\n", 0o644).unwrap();
    let machine = Fake { paths: &paths, broken: "", running: RefCell::default(), enabled: Cell::new(false) };
    install(&machine, "1", usize::MAX).1.unwrap().unwrap();
    assert_eq!(fs::read_to_string(paths.config()).unwrap(), "log_level = \"debug\"\n");
}

#[test]
fn a_packages_installation_and_a_missing_version_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::below(dir.path());
    let machine = Fake { paths: &paths, broken: "", running: RefCell::default(), enabled: Cell::new(false) };
    let error = install(&machine, "1", usize::MAX).1.unwrap().unwrap_err().to_string();
    assert!(error.contains("holds no version"), "{error}");
    place(&paths, "1");
    files::write(&paths.host("/usr/lib/systemd/system/cofferdam.service"), "", 0o644).unwrap();
    let error = install(&machine, "1", usize::MAX).1.unwrap().unwrap_err().to_string();
    assert!(error.contains("package"), "{error}");
    assert!(!paths.state(JOURNAL).exists());
}

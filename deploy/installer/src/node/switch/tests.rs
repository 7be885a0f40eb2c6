//! A switch that is killed before any of its steps is undone whole, or done.

use std::cell::{Cell, RefCell};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;

const OLD: &str = "unix:///run/containerd/containerd.sock";
const NEW: &str = "unix:///run/cofferdam/cofferdam.sock";

/// A node whose kubelet takes its endpoint from its file when it is started.
struct Fake<'a> {
    paths: &'a Paths,
    ready: bool,
    kubelet: RefCell<Option<String>>,
    ended: RefCell<Vec<String>>,
}

impl Machine for Fake<'_> {
    async fn reload(&self) -> Result<()> {
        Ok(())
    }
    async fn enable(&self, _: &[&str], _: bool) -> Result<()> {
        Ok(())
    }
    async fn start(&self, _: &str) -> Result<()> {
        *self.kubelet.borrow_mut() = files::read(&self.paths.host("/etc/kubelet.yaml"))?;
        Ok(())
    }
    async fn restart(&self, _: &str) -> Result<()> {
        unreachable!("the kubelet is stopped and started")
    }
    async fn stop(&self, _: &str) -> Result<()> {
        *self.kubelet.borrow_mut() = None;
        Ok(())
    }
    async fn daemon_ready(&self) -> Result<()> {
        Ok(())
    }
    async fn stop_pods(&self, endpoint: &str) -> Result<()> {
        assert!(self.kubelet.borrow().is_none(), "a kubelet that runs would make the pods anew");
        self.ended.borrow_mut().push(endpoint.to_owned());
        Ok(())
    }
    async fn node_ready(&self, _: &str, _: &str, expect: Expect) -> Result<()> {
        let on = self.kubelet.borrow().as_deref().unwrap_or_default().contains(NEW);
        match self.ready && on == (expect == Expect::Cofferdam) {
            true => Ok(()),
            false => refuse("node n was not Ready within 300 s"),
        }
    }
}

fn plan() -> Move {
    let edit = |name: &str, before: Option<String>, after: String| Edit { path: name.into(), before, after };
    Move {
        node: "n".into(),
        unit: "kubelet.service".into(),
        kubeconfig: "/k".into(),
        from: OLD.into(),
        to: NEW.into(),
        edits: vec![
            edit("/etc/kubelet.yaml", Some(format!("e: {OLD}\n")), format!("e: {NEW}\n")),
            edit("/etc/kubelet.d/zz-cofferdam.conf", None, "x: 1\n".into()),
        ],
        forward: true,
    }
}

fn block<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

/// Switches; the process dies before step `death`. None if it did.
fn switch(machine: &Fake<'_>, plan: &Move, death: usize) -> Option<Result<()>> {
    let count = Cell::new(0);
    let step = |_: &str| {
        if count.replace(count.get() + 1) == death {
            std::panic::resume_unwind(Box::new("killed"));
        }
    };
    let switch = Switch { paths: machine.paths, machine, step: &step };
    catch_unwind(AssertUnwindSafe(|| block(switch.run(plan)))).ok()
}

fn before(dir: &std::path::Path) -> Paths {
    let paths = Paths::below(dir);
    files::write(&paths.host("/etc/kubelet.yaml"), &format!("e: {OLD}\n"), 0o644).unwrap();
    paths
}

fn assert_old(machine: &Fake<'_>, at: usize) {
    let paths = machine.paths;
    assert_eq!(machine.kubelet.borrow().as_deref(), Some(format!("e: {OLD}\n").as_str()), "step {at}");
    assert!(!paths.host("/etc/kubelet.d/zz-cofferdam.conf").exists(), "step {at}");
    assert!(!paths.state(JOURNAL).exists() && !paths.state(KEPT).exists(), "step {at}");
}

fn at_each_step(ready: bool) {
    for death in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let paths = before(dir.path());
        let kubelet = RefCell::new(Some(format!("e: {OLD}\n")));
        let machine = Fake { paths: &paths, ready, kubelet, ended: RefCell::default() };
        let outcome = switch(&machine, &plan(), death);
        let recovery = Switch { paths: &paths, machine: &machine, step: &|_| () };
        let undone = block(recovery.recover()).unwrap();
        assert!(!block(recovery.recover()).unwrap(), "there is nothing left to undo");
        match outcome {
            None => assert!(undone),
            Some(outcome) if ready => {
                outcome.unwrap();
                assert_eq!(machine.kubelet.borrow().as_deref(), Some(format!("e: {NEW}\n").as_str()));
                assert_eq!(*machine.ended.borrow(), [OLD]);
                assert!(paths.state(KEPT).exists() && !paths.state(JOURNAL).exists());
                assert_eq!(death, 7);
                return;
            }
            Some(outcome) => {
                let error = outcome.unwrap_err().to_string();
                assert!(error.contains("not Ready") && error.contains("again"), "{error}");
                assert_old(&machine, death);
                return;
            }
        }
        assert_old(&machine, death);
    }
}

#[test]
fn a_switch_is_undone_or_done() {
    at_each_step(true);
}

#[test]
fn a_node_that_does_not_become_ready_goes_back() {
    at_each_step(false);
}

#[test]
fn the_way_back_restores_what_has_not_changed_since() {
    let dir = tempfile::tempdir().unwrap();
    let paths = before(dir.path());
    let machine = Fake { paths: &paths, ready: true, kubelet: RefCell::default(), ended: RefCell::default() };
    switch(&machine, &plan(), usize::MAX).unwrap().unwrap();
    let kept: Move = serde_json::from_str(&fs::read_to_string(paths.state(KEPT)).unwrap()).unwrap();
    let read = |edit: &Edit| files::read(&paths.host(&edit.path.to_string_lossy()));
    let way = back(&kept, read, || unreachable!("nothing has changed")).unwrap();
    switch(&machine, &way, usize::MAX).unwrap().unwrap();
    assert_eq!(fs::read_to_string(paths.host("/etc/kubelet.yaml")).unwrap(), format!("e: {OLD}\n"));
    assert_eq!(*machine.ended.borrow(), [OLD, NEW]);
    assert!(!paths.state(KEPT).exists());

    files::write(&paths.host("/etc/kubelet.yaml"), "e: changed\n", 0o644).unwrap();
    let anew = Edit { path: "/x".into(), before: None, after: String::new() };
    let way = back(&kept, read, || Ok(vec![anew.clone()])).unwrap();
    assert_eq!(way.edits, [anew]);
}

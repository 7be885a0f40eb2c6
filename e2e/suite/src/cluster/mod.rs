//! A real cluster whose node runs Cofferdam, seen through kubectl. Runs on the machine that runs
//! the cluster's control plane, not in the node: `e2e/in-cluster.sh` starts both.

mod bench;
mod controllers;
mod installer;
mod kubectl;
mod lifecycle;
mod mistakes;
mod nodes;
mod resources;
mod restarts;
mod services;
mod streaming;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::emulator;
use crate::failure::{Doing, Failure, Outcome, ensure};
use kubectl::{Namespace, kubectl, kubectl_in};

/// RuntimeClasses of both handlers, vm first.
const CLASSES: [&str; 2] = ["cofferdam", "cofferdam-host"];

/// The cluster, as the tests know it.
pub(crate) struct Cluster {
    /// The script that speaks with the node VM.
    node: PathBuf,
}

/// One test: its name, and what it does in a namespace of its own.
type Test = (&'static str, fn(&Cluster, &Namespace) -> Outcome);

/// The last ones restart the node's programs and then the node itself.
const TESTS: &[&[Test]] = &[
    services::TESTS,
    streaming::TESTS,
    mistakes::TESTS,
    volumes::TESTS,
    resources::TESTS,
    controllers::TESTS,
    lifecycle::TESTS,
    restarts::TESTS,
];

impl Cluster {
    /// Runs a command of the node's shell and answers what it printed.
    fn on_node(&self, command: &str) -> Outcome<String> {
        let output = Command::new(&self.node).args(["run", command]).output().doing("run a command of the node")?;
        ensure!(
            output.status.success(),
            "on the node, {command}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What the daemon of the (first) node has said of a slip of the emulator since then, if it has.
    fn slip(&self, since: Instant) -> Option<String> {
        let machine = self.on_node("systemd-detect-virt").ok()?;
        let seconds = since.elapsed().as_secs() + 1;
        let journal = format!("journalctl -u cofferdam -o cat --no-pager --since=-{seconds}s");
        emulator::first_slip(&machine, &self.on_node(&journal).ok()?)
    }
}

/// One field of the node, by a path of kubectl's; empty if it is not there.
fn node_field(path: &str) -> Outcome<String> {
    kubectl(&["get", "node", "node", "-o", &format!("jsonpath={{{path}}}")])
}

fn node_runtime() -> Outcome<String> {
    node_field(".status.nodeInfo.containerRuntimeVersion")
}

fn node_is_ready() -> Outcome<bool> {
    Ok(node_field(r#".status.conditions[?(@.type=="Ready")].status"#)? == "True")
}

/// Makes the RuntimeClasses that the installer's manifest has, one with an unknown handler, and the
/// labels that say what the node can run.
fn prepare() -> Outcome {
    let mut classes: Vec<&str> = include_str!("../../../../deploy/cofferdam.yaml").split("\n---\n").collect();
    classes.retain(|object| object.contains("\nkind: RuntimeClass\n"));
    ensure!(classes.len() == CLASSES.len(), "deploy/cofferdam.yaml has {} RuntimeClasses", classes.len());
    classes.push(include_str!("manifests/unknown-handler.yaml"));
    kubectl_in(&["apply", "-f", "-"], &classes.join("\n---\n"))?;
    kubectl(&["label", "--overwrite", "node", "--all", "cofferdam.dev/vm=true", "cofferdam.dev/host=true"])?;
    let runs_on = node_runtime()?;
    ensure!(runs_on.starts_with("cofferdam://"), "the node's runtime is {runs_on:?}");
    Ok(())
}

/// Runs the tests whose names contain one of `filter`'s words, which have commas between them.
pub(crate) fn run(node: PathBuf, filter: Option<&str>) -> Outcome {
    let chosen = |name: &str| filter.is_none_or(|words| words.split(',').any(|word| name.contains(word)));
    let tests: Vec<&Test> = TESTS.iter().copied().flatten().filter(|(name, _)| chosen(name)).collect();
    ensure!(!tests.is_empty(), "no test of the cluster has a name with {:?}", filter.unwrap_or(""));
    run_all(&Cluster { node }, &tests)
}

/// Runs the tests that need two nodes.
pub(crate) fn run_two_nodes(node: PathBuf) -> Outcome {
    run_all(&Cluster { node }, &nodes::TESTS.iter().collect::<Vec<_>>())
}

fn run_all(cluster: &Cluster, tests: &[&Test]) -> Outcome {
    prepare()?;
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests {
        let began = Instant::now();
        let mut outcome = in_namespace(cluster, name, *test);
        if let (Err(failure), Some(slip)) = (&outcome, cluster.slip(began)) {
            println!("again, as the emulator slipped: {name}\n        {failure}\n        {slip}");
            outcome = in_namespace(cluster, name, *test);
        }
        let took = began.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                println!("ok      {took:6.1} s  {name}");
                passed += 1;
            }
            Err(Failure(why)) => {
                println!("FAILED  {took:6.1} s  {name}: {why}");
                failed.push(*name);
            }
        }
    }
    ensure!(failed.is_empty(), "{} of {} tests failed: {}", failed.len(), passed + failed.len(), failed.join(", "));
    println!("\n{passed} tests of the cluster passed");
    Ok(())
}

/// Runs the steps of the installer on a node that has never had Cofferdam. `versions` is what
/// `e2e/cluster/versions.sh` made.
pub(crate) fn run_installer(node: PathBuf, versions: PathBuf) -> Outcome {
    installer::run(&Cluster { node }, versions)
}

/// Measures from `kubectl apply` to Ready, beside containerd + runc, and adds the rows to the
/// report in the folder `report`.
pub(crate) fn run_bench(node: PathBuf, rounds: usize, report: &Path) -> Outcome {
    prepare()?;
    bench::run(&Cluster { node }, rounds, report)
}

/// Runs a test in a namespace of its own; what is left in it at a failure is described before it
/// goes.
fn in_namespace(cluster: &Cluster, name: &str, test: fn(&Cluster, &Namespace) -> Outcome) -> Outcome {
    let namespace = Namespace::new(&name.replace('_', "-"))?;
    let outcome = test(cluster, &namespace);
    if outcome.is_err() {
        println!("{}", namespace.described());
    }
    let gone = namespace.delete();
    outcome.and(gone)
}

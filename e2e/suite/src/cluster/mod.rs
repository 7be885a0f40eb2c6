//! A real cluster whose node runs Cofferdam, seen through kubectl. Runs on the machine that runs
//! the cluster's control plane, not in the node: `e2e/in-cluster.sh` starts both.

mod controllers;
mod kubectl;
mod mistakes;
mod resources;
mod restarts;
mod services;
mod streaming;
mod volumes;

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

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
}

/// Runs the tests whose names contain one of `filter`'s words, which have commas between them.
pub(crate) fn run(node: PathBuf, filter: Option<&str>) -> Outcome {
    let cluster = Cluster { node };
    kubectl_in(&["apply", "-f", "-"], include_str!("manifests/runtime-classes.yaml"))?;
    let runs_on = kubectl(&["get", "node", "node", "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}"])?;
    ensure!(runs_on.starts_with("cofferdam://"), "the node's runtime is {runs_on:?}");
    let chosen = |name: &str| filter.is_none_or(|words| words.split(',').any(|word| name.contains(word)));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in TESTS.iter().copied().flatten().filter(|(name, _)| chosen(name)) {
        let began = Instant::now();
        let outcome = in_namespace(&cluster, name, *test);
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
    ensure!(passed + failed.len() > 0, "no test of the cluster has a name with {:?}", filter.unwrap_or(""));
    ensure!(failed.is_empty(), "{} of {} tests failed: {}", failed.len(), passed + failed.len(), failed.join(", "));
    println!("\n{passed} tests of the cluster passed");
    Ok(())
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

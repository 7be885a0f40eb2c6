//! Runs inside the node VM, against the real daemon, with the real crictl and the real registry;
//! `cluster` alone runs beside the node, where kubectl is.
//!
//! - `cofferdam-e2e demo`: the tour that `make demo` shows.
//! - `cofferdam-e2e test [NAME]`: every test, or those whose names contain NAME.
//! - `cofferdam-e2e soak`: hundreds of pods come and go, and the node is as before.
//! - `cofferdam-e2e kubelet`: a real kubelet on Cofferdam, with static pods.
//! - `cofferdam-e2e cluster --node SCRIPT [NAME]`: a cluster's node, seen through kubectl.
//! - `cofferdam-e2e bench --out DIR`: Cofferdam beside containerd + runc, alternating.

mod bad_registry;
mod bench;
mod census;
mod cluster;
mod crictl;
mod daemon;
mod demo;
mod direct;
mod emulator;
mod failure;
mod inside;
mod kubelet;
mod monitor;
mod openmetrics;
mod pod_cgroup;
mod processes;
mod rpc;
mod soak;
mod templates;
mod tests;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Cofferdam's suites, for the node VM")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The tour: a pod in a microVM and a host pod, from pull to nothing left.
    Demo,
    /// Every test, or those whose names contain the filter.
    Test {
        /// Part of a name; several have commas between them.
        filter: Option<String>,
    },
    /// Pods come and go by the hundred, and nothing is left.
    Soak(soak::Options),
    /// A real kubelet on Cofferdam alone, with static pods.
    Kubelet,
    /// A cluster whose node runs Cofferdam, through the kubectl of the environment.
    Cluster {
        /// The script that runs commands on the node (e2e/node/vm).
        #[arg(long)]
        node: PathBuf,
        /// Only the installer's steps, with the versions of this folder (e2e/cluster/versions.sh).
        #[arg(long, conflicts_with = "filter")]
        installer: Option<PathBuf>,
        /// Only the tests that need two nodes.
        #[arg(long, conflicts_with_all = ["filter", "installer"])]
        two_nodes: bool,
        /// Only the benchmark, of so many rounds; its rows are added to the report in docs/.
        #[arg(long, conflicts_with_all = ["filter", "installer", "two_nodes"])]
        bench: Option<usize>,
        /// Part of a test's name; several have commas between them.
        filter: Option<String>,
    },
    /// What a test does inside a container.
    #[command(hide = true)]
    Inside {
        #[command(subcommand)]
        work: inside::Work,
    },
    /// Cofferdam beside containerd + runc.
    Bench {
        /// Where benchmarks.json and benchmarks.md go.
        #[arg(long)]
        out: PathBuf,
        /// Samples of each row but pulls: 20, and 5 of the workloads, where it is not said.
        #[arg(short)]
        n: Option<usize>,
        /// Samples of each pull.
        #[arg(long, default_value_t = 5)]
        pulls: usize,
        /// Pods that are listed.
        #[arg(long, default_value_t = 200)]
        list_pods: usize,
        /// Seconds over which an idle pod's CPU is measured.
        #[arg(long, default_value_t = 60)]
        idle_seconds: u64,
        /// What the machine is, for the report.
        #[arg(long, default_value = "unnamed machine")]
        machine: String,
        /// Which rows to measure.
        #[arg(long, value_enum, default_value = "all")]
        rows: bench::Rows,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo => demo::show(),
        Command::Test { filter } => tests::run(filter.as_deref()),
        Command::Soak(options) => soak::run(&options),
        Command::Kubelet => kubelet::run(),
        Command::Cluster { node, installer: Some(versions), .. } => cluster::run_installer(node, versions),
        Command::Cluster { node, two_nodes: true, .. } => cluster::run_two_nodes(node),
        Command::Cluster { node, bench: Some(rounds), .. } => cluster::run_bench(node, rounds, Path::new("docs")),
        Command::Cluster { node, filter, .. } => cluster::run(node, filter.as_deref()),
        Command::Inside { work } => inside::run(&work),
        Command::Bench { out, n, pulls, list_pods, idle_seconds, machine, rows } => {
            bench::run(&bench::Options { out, n, pulls, list_pods, idle_seconds, machine, rows })
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

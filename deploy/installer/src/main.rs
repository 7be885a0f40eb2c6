//! `cofferdam-installer`: puts Cofferdam on nodes, moves their kubelet to it, and back.
//!
//! ```text
//!  DaemonSet's pod, Job's pod                         the host
//!  cluster/  what does the node need next?
//!     │ copies the image's product ───────────────►   /opt/cofferdam/versions/VERSION
//!     │ StartTransientUnit, over D-Bus ───────────►   node/  installs, switches, goes back, as root
//!     ◄──────────────── outcome-*.json ────────────   /var/lib/cofferdam-installer
//! ```
//!
//! The pod has no rights on the host but these two. The host's part keeps a journal, so that it can
//! be undone after a crash.

mod check;
mod cluster;
mod error;
mod files;
mod node;
mod paths;
mod product;
mod systemd;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::cluster::api::Cluster;
use crate::error::{Doing, Result, refuse};

#[derive(Parser)]
#[command(version, about = "Puts Cofferdam on the nodes of a cluster, switches their kubelet to it, and back")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// In a pod: says whether this node can have Cofferdam at all.
    Check,
    /// In the DaemonSet's pod: keeps the node as its labels ask.
    Run {
        #[command(flatten)]
        pod: Pod,
        /// The product in the image.
        #[arg(long, default_value = "/product")]
        product: PathBuf,
        /// The file that says to the readiness probe that the node is as it should be.
        #[arg(long, default_value = READY)]
        ready: PathBuf,
    },
    /// In the DaemonSet's pod, as its readiness probe: status 0 when the node is as its labels ask.
    Ready {
        /// The file to look for.
        #[arg(long, default_value = READY)]
        ready: PathBuf,
    },
    /// In a Job's pod: takes Cofferdam off its node.
    Uninstall {
        #[command(flatten)]
        pod: Pod,
        /// This pod's name.
        #[arg(long, env = "POD_NAME")]
        pod_name: String,
        /// The runtime to go to, for a node that was born with Cofferdam.
        #[arg(long)]
        endpoint: Option<String>,
        /// Removes images, records and the configuration too.
        #[arg(long)]
        purge: bool,
    },
    /// On the host, as root: the work itself. Units that the pods start do it; so can an
    /// administrator.
    Node {
        #[command(subcommand)]
        verb: node::verbs::Verb,
    },
}

const READY: &str = "/run/installer/ready";

#[derive(clap::Args)]
struct Pod {
    /// The name of this pod's node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// This pod's namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "kube-system")]
    namespace: String,
    /// The kubelet's unit on the host.
    #[arg(long, env = "KUBELET_UNIT", default_value = "kubelet.service")]
    kubelet: String,
    /// How long a drain may take, in seconds.
    #[arg(long, env = "DRAIN_SECONDS", default_value_t = 900)]
    drain_seconds: u64,
}

impl Pod {
    async fn cluster(&self) -> Result<Cluster> {
        Cluster::connect(self.node.clone(), self.namespace.clone()).await
    }
}

fn main() -> ExitCode {
    let command = Arguments::parse().command;
    let filter = tracing_subscriber::EnvFilter::new("warn,cofferdam_installer=info");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    // The workspace has one provider of TLS; kube asks for the process's default.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.doing(|| "start".into()).and_then(|runtime| runtime.block_on(run(command)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam-installer: {}", error::chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Check => check::run().await,
        Command::Run { pod, product, ready } => {
            let drain = Duration::from_secs(pod.drain_seconds);
            let options = cluster::run::Options { product, kubelet: pod.kubelet.clone(), drain, ready };
            cluster::run::run(pod.cluster().await?, options).await
        }
        Command::Ready { ready } if ready.exists() => Ok(()),
        Command::Ready { .. } => {
            refuse("the node is not yet as its labels ask; the annotation cofferdam.dev/state says why")
        }
        Command::Uninstall { pod, pod_name, endpoint, purge } => {
            let drain = Duration::from_secs(pod.drain_seconds);
            let options =
                cluster::uninstall::Options { pod: pod_name, kubelet: pod.kubelet.clone(), endpoint, purge, drain };
            cluster::uninstall::run(pod.cluster().await?, options).await
        }
        Command::Node { verb } => node::verbs::run(verb).await,
    }
}

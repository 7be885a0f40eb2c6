//! `cofferdam-installer node …`: one work at a time, with its outcome written down.
//!
//! A work that failed and was undone ends with status 0: systemd starts only a work again that
//! crashed.

use std::fs::File;

use clap::Subcommand;
use rustix::fs::{FlockOperation, flock};

use super::install::Install;
use super::kubelet::Kubelet;
use super::machine::Host;
use super::outcome::{self, Outcome, Work};
use super::switch::{Move, Switch};
use super::uninstall::{Uninstall, same};
use super::versions;
use crate::error::{Doing, Result, chain, refuse};
use crate::paths::{Paths, is_version};
use crate::systemd::Systemd;

/// What can be done on the host.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Verb {
    /// Makes a version below /opt/cofferdam/versions the current one and restarts the daemon; pods
    /// go on.
    Install {
        /// The name of its folder.
        #[arg(long)]
        version: String,
    },
    /// Moves the kubelet to Cofferdam. The node has to be drained before.
    Switch {
        /// The node's name in the cluster.
        #[arg(long)]
        node: String,
        /// The kubelet's unit.
        #[arg(long, default_value = "kubelet.service")]
        kubelet: String,
    },
    /// Moves the kubelet back to its old runtime and removes Cofferdam. The node has to be drained
    /// before.
    Uninstall {
        /// The node's name in the cluster.
        #[arg(long)]
        node: String,
        /// The kubelet's unit.
        #[arg(long, default_value = "kubelet.service")]
        kubelet: String,
        /// The runtime to go to, for a node that this installer has not switched.
        #[arg(long)]
        endpoint: Option<String>,
        /// Removes images, records and the configuration too.
        #[arg(long)]
        purge: bool,
    },
    /// Undoes what was interrupted.
    Recover,
}

/// Does it.
///
/// # Errors
/// When the work could not be done, which its outcome says too; or when nothing could be written
/// down.
pub(crate) async fn run(verb: Verb) -> Result<()> {
    let paths = Paths::node();
    std::fs::create_dir_all(paths.state("")).doing(|| "make the installer's folder of state".into())?;
    let path = paths.state("lock");
    let lock = File::create(&path).doing(|| format!("open {}", path.display()))?;
    flock(&lock, FlockOperation::LockExclusive).doing(|| format!("lock {}", path.display()))?;
    let host = Host { systemd: Systemd::connect().await?, paths };
    match verb {
        Verb::Recover => recover(&host).await.map(drop),
        Verb::Install { version } if !is_version(&version) => refuse(format!("{version:?} is no version's name")),
        Verb::Install { version } => {
            outcome::forget(&host.paths, Work::Install)?;
            let result = install(&host, &version).await;
            keep(&host.paths, Work::Install, version, result)
        }
        Verb::Switch { node, kubelet } => {
            let result = switch(&host, node, kubelet).await.map(plain);
            keep(&host.paths, Work::Switch, own_version(&host.paths), result)
        }
        Verb::Uninstall { node, kubelet, endpoint, purge } => {
            let version = own_version(&host.paths);
            outcome::forget(&host.paths, Work::Uninstall)?;
            let work = Uninstall { node, unit: kubelet, endpoint, purge };
            let result = match recover(&host).await {
                Ok(_) => work.run(&host).await.map(plain),
                Err(error) => Err(error),
            };
            keep(&host.paths, Work::Uninstall, version, result)
        }
    }
}

fn plain(message: String) -> Outcome {
    Outcome { version: String::new(), done: true, message, vm: false, host: false }
}

fn own_version(paths: &Paths) -> String {
    paths.installed().unwrap_or_default()
}

fn keep(paths: &Paths, work: Work, version: String, result: Result<Outcome>) -> Result<()> {
    let kept = match result {
        Ok(outcome) => Outcome { version, ..outcome },
        Err(error) => Outcome { version, done: false, ..plain(chain(&error)) },
    };
    let (done, message) = (kept.done, kept.message.as_str());
    tracing::info!(work = work.name(), version = kept.version, done, message, "ended");
    outcome::write(paths, work, &kept)
}

async fn install(host: &Host, version: &str) -> Result<Outcome> {
    let previous = host.paths.installed();
    let step = |step: &str| tracing::info!(step, version, "install");
    Install { paths: &host.paths, machine: host, step: &step }.run(version).await?;
    let (vm, said) = host.check("vm").await;
    let (as_host, _) = host.check("host").await;
    let keep: Vec<&str> = [Some(version), previous.as_deref()].into_iter().flatten().collect();
    match versions::prune(&host.paths, &keep) {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => tracing::info!(versions = removed.join(", "), "old versions removed"),
        Err(error) => tracing::warn!(error = chain(&error), "old versions are left"),
    }
    Ok(Outcome { version: version.into(), done: true, message: said, vm, host: as_host })
}

async fn switch(host: &Host, node: String, unit: String) -> Result<String> {
    if recover(host).await? {
        return refuse("the switch was interrupted, and has been undone");
    }
    let _ = outcome::forget(&host.paths, Work::Switch);
    let ours = host.endpoint().await?;
    let kubelet = Kubelet::find(&host.systemd, &unit).await?;
    let from = kubelet.endpoint(&host.paths)?;
    if same(&from, &ours) {
        return Ok(format!("the kubelet uses {from} already"));
    }
    super::pods::runtime_ready(&ours).await?;
    let plan = Move {
        node,
        unit,
        kubeconfig: kubelet.kubeconfig()?,
        from,
        edits: kubelet.edits(&host.paths, &ours, true)?,
        to: ours,
        forward: true,
    };
    let step = |step: &str| tracing::info!(step, from = plan.from, to = plan.to, "switch");
    Switch { paths: &host.paths, machine: host, step: &step }.run(&plan).await?;
    Ok(format!("the kubelet went from {} to {}", plan.from, plan.to))
}

/// Undoes what was interrupted, and says so in its outcome. Returns whether a switch was.
async fn recover(host: &Host) -> Result<bool> {
    let silent = |_: &str| ();
    Install { paths: &host.paths, machine: host, step: &silent }.recover().await?;
    let was = Switch { paths: &host.paths, machine: host, step: &silent }.recover().await?;
    if was {
        let result = refuse("the switch was interrupted, and has been undone");
        keep(&host.paths, Work::Switch, own_version(&host.paths), result)?;
    }
    Ok(was)
}

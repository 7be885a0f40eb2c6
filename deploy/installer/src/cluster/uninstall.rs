//! The Job that takes Cofferdam off a node. The switch back ends its pod; the next one finds what
//! the host has done, and goes on.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

use super::api::Cluster;
use super::plan::Seen;
use super::{HOST, INSTALL, RETRY, STATE, SWITCH, UNINSTALLING, VERSION, VM, drain, lease};
use crate::error::{Result, refuse};
use crate::node::outcome::{self, Work};
use crate::paths::{Paths, WORK_UNIT};
use crate::systemd::Systemd;

/// What the Job is started with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// This pod's name, which the drain leaves alone.
    pub(crate) pod: String,
    /// The kubelet's unit.
    pub(crate) kubelet: String,
    /// The runtime to go to where none is known.
    pub(crate) endpoint: Option<String>,
    /// Whether images, records and configuration go too.
    pub(crate) purge: bool,
    /// How long a drain may take.
    pub(crate) drain: Duration,
}

/// Works until the node is without Cofferdam.
///
/// # Errors
/// When a step failed; the node then runs as before, cordoned only if it was before.
pub(crate) async fn run(cluster: Cluster, options: Options) -> Result<()> {
    let paths = Paths::node();
    let systemd = Systemd::connect().await?;
    loop {
        let node = cluster.get().await?;
        let seen = Seen::of(&node);
        // The pod before this one had the host begin.
        let begun = node.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(UNINSTALLING));
        // Before anything else, so that no DaemonSet installs it again.
        cluster.label(&node, &[(INSTALL, None), (SWITCH, None)]).await?;
        if systemd.is_active(WORK_UNIT).await? {
            cluster.annotate(&node, &[(UNINSTALLING, Some("true"))]).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            continue;
        }
        if paths.installed().is_none() && !seen.on_cofferdam && seen.ready {
            return finish(&cluster, &node).await;
        }
        if begun {
            let last = outcome::read(&paths, Work::Uninstall)?;
            match last {
                Some(last) if !last.done => {
                    cluster.annotate(&node, &[(UNINSTALLING, None)]).await?;
                    drain::uncordon(&cluster, &node).await?;
                    lease::release(&cluster).await?;
                    return refuse(format!("{}. Run the Job again to try again", last.message));
                }
                // Done on the host; the API server does not know yet.
                Some(_) => {
                    tokio::time::sleep(Duration::from_secs(3)).await;
                    continue;
                }
                None => {}
            }
        }
        if paths.installed().is_none() {
            if seen.on_cofferdam && !begun {
                return refuse(
                    "this node's Cofferdam is not the installer's (there is no /opt/cofferdam/current); drain the node, change \
                     its kubelet's configuration, and remove the package",
                );
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
            continue;
        }
        start(&cluster, &systemd, &node, &options).await?;
    }
}

async fn start(cluster: &Cluster, systemd: &Systemd, node: &Node, options: &Options) -> Result<()> {
    while let Some(holder) = lease::take(cluster).await? {
        cluster.annotate(node, &[(STATE, Some(&format!("uninstall waits: {holder} has the lease")))]).await?;
        tokio::time::sleep(Duration::from_secs(15)).await;
    }
    let now = cluster.get().await?;
    cluster.annotate(&now, &[(STATE, Some("the node is being drained, to be uninstalled"))]).await?;
    drain::cordon(cluster, &now).await?;
    if let Err(error) = drain::drain(cluster, Some(&options.pod), options.drain).await {
        drain::uncordon(cluster, &cluster.get().await?).await?;
        lease::release(cluster).await?;
        return Err(error);
    }
    let program = Paths::node().current().join("bin/cofferdam-installer");
    let mut argv = vec![program.to_string_lossy().into_owned(), "node".into(), "uninstall".into()];
    argv.extend(["--node".into(), cluster.node.clone(), "--kubelet".into(), options.kubelet.clone()]);
    argv.extend(options.endpoint.iter().flat_map(|endpoint| ["--endpoint".into(), endpoint.clone()]));
    argv.extend(options.purge.then(|| "--purge".into()));
    systemd.run(WORK_UNIT, "Cofferdam's installer takes Cofferdam off this node", &argv).await?;
    cluster.annotate(&now, &[(UNINSTALLING, Some("true"))]).await
}

async fn finish(cluster: &Cluster, node: &Node) -> Result<()> {
    drain::uncordon(cluster, node).await?;
    lease::release(cluster).await?;
    cluster.label(node, &[(VM, None), (HOST, None)]).await?;
    cluster.annotate(node, &[(VERSION, None), (STATE, None), (RETRY, None), (UNINSTALLING, None)]).await?;
    cluster.event(false, "CofferdamUninstalled", "Cofferdam has been removed from the node").await;
    tracing::info!(node = cluster.node, "uninstalled");
    Ok(())
}

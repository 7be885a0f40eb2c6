//! Takes Cofferdam off a node: the kubelet goes back to its old runtime, then units and versions
//! go.

use std::fs;
use std::io::ErrorKind;

use super::kubelet::{Edit, GATE, Kubelet};
use super::machine::{Host, Machine};
use super::switch::{KEPT, Move, Switch, back};
use crate::error::{Doing, Result, refuse};
use crate::files;
use crate::paths::{Paths, RECOVER_UNIT, UNIT};

/// What an uninstallation is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Uninstall {
    /// The node's name.
    pub(crate) node: String,
    /// The kubelet's unit.
    pub(crate) unit: String,
    /// The runtime to go to, where the node was not switched by the installer.
    pub(crate) endpoint: Option<String>,
    /// Whether images, records and the configuration go too.
    pub(crate) purge: bool,
}

impl Uninstall {
    /// Switches back if the kubelet uses Cofferdam, and removes the product.
    pub(crate) async fn run(&self, host: &Host) -> Result<String> {
        let paths = &host.paths;
        let mut said = "the kubelet did not use Cofferdam".to_owned();
        if paths.installed().is_some() {
            let ours = host.endpoint().await?;
            let kubelet = Kubelet::find(&host.systemd, &self.unit).await?;
            if same(&kubelet.endpoint(paths)?, &ours) {
                said = self.switch_back(host, &kubelet, &ours).await?;
            }
            // What ran beside the kubelet, by hand or before its switch.
            if super::pods::runtime_ready(&ours).await.is_ok() {
                host.stop_pods(&ours).await?;
            }
        }
        self.remove(host).await?;
        Ok(said)
    }

    async fn switch_back(&self, host: &Host, kubelet: &Kubelet, ours: &str) -> Result<String> {
        let paths = &host.paths;
        let kept: Option<Move> = match files::read(&paths.state(KEPT))? {
            Some(text) => Some(serde_json::from_str(&text).doing(|| format!("read {KEPT}"))?),
            None => None,
        };
        let plan = match (&kept, &self.endpoint) {
            (Some(kept), None) => back(
                kept,
                |edit: &Edit| files::read(&paths.host(&edit.path.to_string_lossy())),
                || kubelet.edits(paths, &kept.from, false),
            )?,
            (_, Some(endpoint)) => Move {
                node: self.node.clone(),
                unit: self.unit.clone(),
                kubeconfig: kubelet.kubeconfig()?,
                from: ours.to_owned(),
                to: endpoint.clone(),
                edits: kubelet.edits(paths, endpoint, false)?,
                forward: false,
            },
            (None, None) => {
                return refuse(
                    "this node was born with Cofferdam, so that no other runtime is known: name one by \
                     --endpoint unix:///run/containerd/containerd.sock",
                );
            }
        };
        super::pods::runtime_ready(&plan.to).await?;
        Switch { paths, machine: host, step: &|step| tracing::info!(step, "uninstall") }.run(&plan).await?;
        for edit in kept.iter().flat_map(|kept| &kept.edits).filter(|edit| edit.before.is_none()) {
            files::remove(&paths.host(&edit.path.to_string_lossy()))?;
        }
        let gate = if kept.is_none() { format!("; {GATE} is left as it is") } else { String::new() };
        Ok(format!("the kubelet uses {}{gate}", plan.to))
    }

    async fn remove(&self, host: &Host) -> Result<()> {
        let paths = &host.paths;
        host.stop(UNIT).await?;
        host.enable(&[UNIT, RECOVER_UNIT], false).await?;
        for unit in [UNIT, RECOVER_UNIT] {
            files::restore(&paths.unit(unit), None)?;
        }
        host.reload().await?;
        files::link(&paths.current(), None)?;
        remove_folder(paths, "/opt/cofferdam/versions")?;
        if self.purge {
            for folder in ["/var/lib/cofferdam", "/etc/cofferdam", "/run/cofferdam"] {
                remove_folder(paths, folder)?;
            }
        }
        Ok(())
    }
}

/// Whether two endpoints are one: `/var/run` is a link to `/run`, and a path alone is a unix
/// socket.
pub(crate) fn same(one: &str, other: &str) -> bool {
    let plain = |endpoint: &str| {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"))
    };
    plain(one) == plain(other)
}

fn remove_folder(paths: &Paths, folder: &str) -> Result<()> {
    let path = paths.host(folder);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).doing(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_compared_by_their_socket() {
        assert!(same("unix:///run/cofferdam/cofferdam.sock", "/var/run/cofferdam/cofferdam.sock"));
        assert!(!same("unix:///run/containerd/containerd.sock", "unix:///run/cofferdam/cofferdam.sock"));
    }
}

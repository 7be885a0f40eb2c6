//! What works change on a node beside files: units, pods of a runtime, the kubelet. Tests have one
//! of their own.

use std::time::Duration;

use super::{pods, ready};
use crate::error::{Doing, Result, refuse};
use crate::paths::{Paths, UNIT};
use crate::systemd::Systemd;

/// How long the new daemon may take until it is ready.
pub(crate) const DAEMON_LIMIT: Duration = Duration::from_secs(180);
/// How long the kubelet may take until the API server calls its node Ready.
pub(crate) const NODE_LIMIT: Duration = Duration::from_secs(300);
/// A daemon that was started again so often does not come up.
const MAX_RESTARTS: u32 = 5;

/// Which runtime the node has to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// `cofferdam://…`.
    Cofferdam,
    /// Anything else.
    Other,
}

/// A node, as works change it.
pub(crate) trait Machine {
    /// Has systemd read its unit files.
    async fn reload(&self) -> Result<()>;
    /// Enables units, or disables them.
    async fn enable(&self, units: &[&str], enabled: bool) -> Result<()>;
    /// Starts a unit.
    async fn start(&self, unit: &str) -> Result<()>;
    /// Starts a unit anew, so that it is of the files that are there now.
    async fn restart(&self, unit: &str) -> Result<()>;
    /// Stops a unit and waits for that. One that is not there is stopped.
    async fn stop(&self, unit: &str) -> Result<()>;
    /// Waits until Cofferdam's daemon says over CRI that it is ready.
    async fn daemon_ready(&self) -> Result<()>;
    /// Stops and removes all pods that a runtime has, without the kubelet.
    async fn stop_pods(&self, endpoint: &str) -> Result<()>;
    /// Waits until the API server says that node `name` is Ready with that runtime.
    async fn node_ready(&self, kubeconfig: &str, name: &str, expect: Expect) -> Result<()>;
}

/// This node.
pub(crate) struct Host {
    pub(crate) systemd: Systemd,
    pub(crate) paths: Paths,
}

impl Host {
    /// The endpoint that the daemon's configuration names.
    pub(crate) async fn endpoint(&self) -> Result<String> {
        let program = self.paths.current().join("bin/cofferdam");
        let step = || format!("run {} config", program.display());
        let output = tokio::process::Command::new(&program).arg("config").output().await.doing(step)?;
        if !output.status.success() {
            return refuse(format!(
                "{} config failed: {}",
                program.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            ));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let socket = text.lines().find_map(|line| line.strip_prefix("socket = \"")?.strip_suffix('"'));
        match socket {
            Some(socket) => Ok(format!("unix://{socket}")),
            None => refuse(format!("{} config names no socket", program.display())),
        }
    }

    /// Whether the node can run pods of `kind`: the daemon's own check tries it.
    pub(crate) async fn check(&self, kind: &str) -> (bool, String) {
        let program = self.paths.current().join("bin/cofferdam");
        match tokio::process::Command::new(&program).args(["check", kind]).output().await {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let line = text.lines().find(|line| line.starts_with(kind)).unwrap_or_default().to_owned();
                (output.status.success(), line)
            }
            Err(error) => (false, format!("cannot run {}: {error}", program.display())),
        }
    }
}

impl Machine for Host {
    async fn reload(&self) -> Result<()> {
        self.systemd.reload().await
    }

    async fn enable(&self, units: &[&str], enabled: bool) -> Result<()> {
        self.systemd.enable(units, enabled).await
    }

    async fn start(&self, unit: &str) -> Result<()> {
        self.systemd.begin("StartUnit", unit).await
    }

    async fn restart(&self, unit: &str) -> Result<()> {
        self.systemd.begin("RestartUnit", unit).await
    }

    async fn stop(&self, unit: &str) -> Result<()> {
        self.systemd.stop(unit).await
    }

    async fn daemon_ready(&self) -> Result<()> {
        let endpoint = self.endpoint().await?;
        let before = self.systemd.restarts(UNIT).await;
        let ready = async {
            loop {
                match pods::runtime_ready(&endpoint).await {
                    Ok(()) => return Ok(()),
                    Err(error) => tracing::info!(error = crate::error::chain(&error), "the daemon is not ready yet"),
                }
                if self.systemd.restarts(UNIT).await > before.saturating_add(MAX_RESTARTS) {
                    return refuse(format!("{UNIT} ends again and again; its journal says why"));
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        match tokio::time::timeout(DAEMON_LIMIT, ready).await {
            Ok(outcome) => outcome,
            Err(_) => refuse(format!(
                "the daemon did not become ready at {endpoint} within {} s; journalctl -u {UNIT} says why",
                DAEMON_LIMIT.as_secs()
            )),
        }
    }

    async fn stop_pods(&self, endpoint: &str) -> Result<()> {
        pods::stop_all(endpoint).await
    }

    async fn node_ready(&self, kubeconfig: &str, name: &str, expect: Expect) -> Result<()> {
        ready::wait(kubeconfig, name, expect, NODE_LIMIT).await
    }
}

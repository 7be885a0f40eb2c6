//! Makes a version that was placed the current one, or leaves the node as it was.
//!
//! ```text
//!  journal ─► configuration (if there is none) ─► units ─► link ─► reload, enable ─► restart ─► ready? ─► journal away
//!     └──────────────── any failure, or a crash at any point ─► all of it undone, and the old daemon restarted
//! ```
//!
//! Pods go on meanwhile: the daemon owns nothing that runs (docs/upgrade.md).

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use crate::error::{Doing, Result, chain, refuse};
use crate::files;
use crate::paths::{Paths, RECOVER_UNIT, UNIT};

/// The journal of an install that has begun.
pub(crate) const JOURNAL: &str = "install.json";

/// What there was before.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    version: String,
    previous: Option<String>,
    unit: Option<String>,
    recover_unit: Option<String>,
    config: bool,
}

/// An install on a node.
pub(crate) struct Install<'a, M> {
    pub(crate) paths: &'a Paths,
    pub(crate) machine: &'a M,
    /// Called before each step; tests end the work there.
    pub(crate) step: &'a dyn Fn(&str),
}

impl<M: Machine> Install<'_, M> {
    /// Makes `version` the current one. Idempotent: it also repairs units and restarts a daemon
    /// that is not ready.
    ///
    /// # Errors
    /// When a step failed; the node is then as it was, or the message says what is left.
    pub(crate) async fn run(&self, version: &str) -> Result<()> {
        self.recover().await?;
        self.may_install(version)?;
        let journal = Journal {
            version: version.to_owned(),
            previous: self.paths.installed(),
            unit: files::read(&self.paths.unit(UNIT))?,
            recover_unit: files::read(&self.paths.unit(RECOVER_UNIT))?,
            config: self.paths.config().exists(),
        };
        let text = serde_json::to_string(&journal).doing(|| "write the journal as JSON".into())?;
        files::write(&self.paths.state(JOURNAL), &text, 0o600)?;
        if let Err(error) = self.apply(&journal).await {
            return match self.undo(&journal).await {
                Ok(()) => Err(error),
                Err(undoing) => refuse(format!(
                    "{}; and undoing it failed, which is tried again at boot and by `cofferdam-installer node recover`: {}",
                    chain(&error),
                    chain(&undoing)
                )),
            };
        }
        (self.step)("commit");
        files::remove(&self.paths.state(JOURNAL))
    }

    /// Undoes an install that was interrupted. Nothing to do is no error.
    pub(crate) async fn recover(&self) -> Result<()> {
        let path = self.paths.state(JOURNAL);
        let Some(text) = files::read(&path)? else { return Ok(()) };
        let journal: Journal = serde_json::from_str(&text).doing(|| format!("read {}", path.display()))?;
        tracing::warn!(version = journal.version, "an install was interrupted; undoing it");
        self.undo(&journal).await
    }

    fn may_install(&self, version: &str) -> Result<()> {
        let folder = self.paths.version(version);
        if !folder.join("bin/cofferdam").is_file() {
            return refuse(format!("{} holds no version of Cofferdam", folder.display()));
        }
        let package = self.paths.host("/usr/lib/systemd/system").join(UNIT);
        if package.exists() && self.paths.installed().is_none() {
            return refuse(format!(
                "this node has Cofferdam from a package ({}); remove the package first, or upgrade it instead",
                package.display()
            ));
        }
        Ok(())
    }

    async fn apply(&self, journal: &Journal) -> Result<()> {
        let share = self.paths.version(&journal.version).join("share");
        if !journal.config {
            (self.step)("configuration");
            copy_text(&share.join("config.toml"), &self.paths.config())?;
        }
        (self.step)("units");
        for unit in [UNIT, RECOVER_UNIT] {
            copy_text(&share.join(unit), &self.paths.unit(unit))?;
        }
        (self.step)("link");
        self.lead_to(Some(&journal.version))?;
        (self.step)("reload");
        self.machine.reload().await?;
        (self.step)("enable");
        self.machine.enable(&[UNIT, RECOVER_UNIT], true).await?;
        (self.step)("restart");
        self.machine.restart(UNIT).await?;
        (self.step)("ready");
        self.machine.daemon_ready().await
    }

    async fn undo(&self, journal: &Journal) -> Result<()> {
        (self.step)("undo");
        if journal.previous.is_none() {
            self.machine.stop(UNIT).await?;
            self.machine.enable(&[UNIT, RECOVER_UNIT], false).await?;
        }
        self.lead_to(journal.previous.as_deref())?;
        files::restore(&self.paths.unit(UNIT), journal.unit.as_deref())?;
        files::restore(&self.paths.unit(RECOVER_UNIT), journal.recover_unit.as_deref())?;
        if !journal.config {
            files::restore(&self.paths.config(), None)?;
        }
        self.machine.reload().await?;
        if journal.previous.is_some() {
            self.machine.restart(UNIT).await?;
        }
        (self.step)("undone");
        files::remove(&self.paths.state(JOURNAL))
    }

    fn lead_to(&self, version: Option<&str>) -> Result<()> {
        let target = version.map(|version| Path::new("versions").join(version));
        files::link(&self.paths.current(), target.as_deref())
    }
}

fn copy_text(from: &Path, to: &Path) -> Result<()> {
    match files::read(from)? {
        Some(text) => files::write(to, &text, 0o644),
        None => refuse(format!("{} is missing: the version is not whole", from.display())),
    }
}

#[cfg(test)]
mod tests;

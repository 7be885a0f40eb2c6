//! Moves the kubelet from one runtime to another, or leaves it where it was.
//!
//! ```text
//!  journal ─► stop the kubelet ─► end the old runtime's pods ─► change its files ─► start it ─► node Ready? ─► kept for the way back
//!     └───── any failure, or a crash at any point ─► stop, end the new runtime's pods, files as before, start, journal away
//! ```
//!
//! The node has been drained before: what runs then are static pods and those of DaemonSets, which
//! the kubelet makes anew.

use serde::{Deserialize, Serialize};

use super::kubelet::Edit;
use super::machine::{Expect, Machine};
use crate::error::{Doing, Result, chain, refuse};
use crate::files;
use crate::paths::Paths;

/// The journal of a switch that has begun.
pub(crate) const JOURNAL: &str = "switch.json";
/// What there was before the node was switched to Cofferdam: how to go back.
pub(crate) const KEPT: &str = "switched.json";

/// A move from one runtime to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Move {
    /// The node's name.
    pub(crate) node: String,
    /// The kubelet's unit.
    pub(crate) unit: String,
    /// The kubelet's kubeconfig.
    pub(crate) kubeconfig: String,
    /// The endpoint that the kubelet had.
    pub(crate) from: String,
    /// The one that it gets.
    pub(crate) to: String,
    /// What changes of its files.
    pub(crate) edits: Vec<Edit>,
    /// Whether it is the way to Cofferdam, and not back.
    pub(crate) forward: bool,
}

/// A switch on a node.
pub(crate) struct Switch<'a, M> {
    pub(crate) paths: &'a Paths,
    pub(crate) machine: &'a M,
    /// Called before each step; tests end the work there.
    pub(crate) step: &'a dyn Fn(&str),
}

impl<M: Machine> Switch<'_, M> {
    /// Moves the kubelet.
    ///
    /// # Errors
    /// When a step failed; the kubelet then uses the old runtime again, or the message says what is
    /// left.
    pub(crate) async fn run(&self, plan: &Move) -> Result<()> {
        let text = serde_json::to_string_pretty(plan).doing(|| "write the journal as JSON".into())?;
        // It holds the kubelet's configuration.
        files::write(&self.paths.state(JOURNAL), &text, 0o600)?;
        if let Err(error) = self.apply(plan).await {
            let text = chain(&error);
            tracing::error!(error = text, "the switch failed; going back");
            return match self.undo(plan).await {
                Ok(()) => refuse(format!("{text}. The kubelet uses {} again", plan.from)),
                Err(undoing) => refuse(format!(
                    "{text}; and going back failed, which is tried again at boot and by `cofferdam-installer node recover`: {}",
                    chain(&undoing)
                )),
            };
        }
        (self.step)("commit");
        if plan.forward {
            files::write(&self.paths.state(KEPT), &text, 0o600)?;
        } else {
            files::remove(&self.paths.state(KEPT))?;
        }
        files::remove(&self.paths.state(JOURNAL))
    }

    /// Undoes a switch that was interrupted. Returns whether there was one.
    pub(crate) async fn recover(&self) -> Result<bool> {
        let path = self.paths.state(JOURNAL);
        let Some(text) = files::read(&path)? else { return Ok(false) };
        let plan: Move = serde_json::from_str(&text).doing(|| format!("read {}", path.display()))?;
        tracing::warn!(from = plan.from, to = plan.to, "a switch was interrupted; going back");
        self.undo(&plan).await?;
        Ok(true)
    }

    async fn apply(&self, plan: &Move) -> Result<()> {
        (self.step)("stop the kubelet");
        self.machine.stop(&plan.unit).await?;
        (self.step)("end the pods");
        self.machine.stop_pods(&plan.from).await?;
        for edit in &plan.edits {
            (self.step)("change a file");
            files::write(&self.file(edit), &edit.after, 0o644)?;
        }
        (self.step)("start the kubelet");
        self.machine.start(&plan.unit).await?;
        (self.step)("wait for the node");
        let expect = if plan.forward { Expect::Cofferdam } else { Expect::Other };
        self.machine.node_ready(&plan.kubeconfig, &plan.node, expect).await
    }

    async fn undo(&self, plan: &Move) -> Result<()> {
        (self.step)("go back");
        self.machine.stop(&plan.unit).await?;
        // A runtime that does not answer has started nothing since, or has no way to be asked.
        if let Err(error) = self.machine.stop_pods(&plan.to).await {
            tracing::warn!(error = chain(&error), "cannot end what the new runtime runs");
        }
        for edit in &plan.edits {
            files::restore(&self.file(edit), edit.before.as_deref())?;
        }
        (self.step)("start the kubelet again");
        self.machine.start(&plan.unit).await?;
        files::remove(&self.paths.state(JOURNAL))
    }

    fn file(&self, edit: &Edit) -> std::path::PathBuf {
        self.paths.host(&edit.path.to_string_lossy())
    }
}

/// How a kubelet goes back to what `kept` says: a file that has not changed since gets its old text
/// byte for byte; `anew` gives the change for one that has.
pub(crate) fn back(
    kept: &Move,
    read: impl Fn(&Edit) -> Result<Option<String>>,
    anew: impl FnOnce() -> Result<Vec<Edit>>,
) -> Result<Move> {
    let mut edits = Vec::new();
    let mut changed = false;
    for edit in &kept.edits {
        let now = read(edit)?;
        changed |= now.as_deref() != Some(edit.after.as_str());
        // A drop-in of the installer's own is emptied of its settings; the commit cannot remove
        // files.
        let after = edit.before.clone().unwrap_or_else(|| super::kubelet::yaml::drop_in(None, false));
        edits.push(Edit { path: edit.path.clone(), before: now, after });
    }
    if changed {
        edits = anew()?;
    }
    Ok(Move { from: kept.to.clone(), to: kept.from.clone(), edits, forward: false, ..kept.clone() })
}

#[cfg(test)]
mod tests;

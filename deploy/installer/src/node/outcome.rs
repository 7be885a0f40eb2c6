//! What became of a work, for the pods of the installer and for whoever looks at the node.

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Result};
use crate::files;
use crate::paths::Paths;

/// What was to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    /// A version was to become the current one.
    Install,
    /// The kubelet was to use Cofferdam.
    Switch,
    /// The kubelet was to use its old runtime, and the product was to go.
    Uninstall,
}

impl Work {
    fn file(self) -> &'static str {
        match self {
            Self::Install => "outcome-install.json",
            Self::Switch => "outcome-switch.json",
            Self::Uninstall => "outcome-uninstall.json",
        }
    }

    /// As in "the install failed".
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Switch => "switch",
            Self::Uninstall => "uninstall",
        }
    }
}

/// How it ended. Written last, so there is none of a work that was interrupted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The version that was installed, or whose installer did the work.
    pub(crate) version: String,
    /// Whether it was done; if not, the node is as it was before.
    pub(crate) done: bool,
    /// What failed, or what was done, for people.
    pub(crate) message: String,
    /// Whether vm pods can run; only an install knows.
    #[serde(default)]
    pub(crate) vm: bool,
    /// Whether host pods can run.
    #[serde(default)]
    pub(crate) host: bool,
}

/// The last outcome of a kind of work.
pub(crate) fn read(paths: &Paths, work: Work) -> Result<Option<Outcome>> {
    let path = paths.state(work.file());
    let Some(text) = files::read(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).doing(|| format!("read {}", path.display()))
}

/// Keeps an outcome.
pub(crate) fn write(paths: &Paths, work: Work, outcome: &Outcome) -> Result<()> {
    let text = serde_json::to_string_pretty(outcome).doing(|| "write an outcome as JSON".into())?;
    files::write(&paths.state(work.file()), &text, 0o644)
}

/// Forgets the last outcome: the work begins anew.
pub(crate) fn forget(paths: &Paths, work: Work) -> Result<()> {
    files::remove(&paths.state(work.file()))
}

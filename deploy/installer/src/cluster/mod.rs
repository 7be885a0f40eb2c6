//! The installer's side of the cluster: which node asks for what, and one node at a time.

pub(crate) mod api;
pub(crate) mod drain;
pub(crate) mod lease;
pub(crate) mod plan;
pub(crate) mod run;
pub(crate) mod uninstall;

/// A node on which Cofferdam is to be installed and kept up to date.
pub(crate) const INSTALL: &str = "cofferdam.dev/install";
/// A node whose kubelet is to use it, too.
pub(crate) const SWITCH: &str = "cofferdam.dev/switch";
/// Label: pods with handler `vm` run here.
pub(crate) const VM: &str = "cofferdam.dev/vm";
/// Label: pods with handler `host` run here.
pub(crate) const HOST: &str = "cofferdam.dev/host";
/// Annotation: the version that is installed.
pub(crate) const VERSION: &str = "cofferdam.dev/version";
/// Annotation: what the installer does or waits for, for people.
pub(crate) const STATE: &str = "cofferdam.dev/state";
/// Annotation: the installer has cordoned the node, so it uncordons it.
pub(crate) const CORDONED: &str = "cofferdam.dev/cordoned";
/// Annotation by an administrator: try again what has failed.
pub(crate) const RETRY: &str = "cofferdam.dev/retry";
/// Annotation: the host has begun to take Cofferdam off.
pub(crate) const UNINSTALLING: &str = "cofferdam.dev/uninstalling";

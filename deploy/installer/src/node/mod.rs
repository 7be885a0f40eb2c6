//! What is done on the host, as root, by a unit of systemd: `cofferdam-installer node …`.
//!
//! A pod of the installer starts it, and may be gone before it ends: each work keeps a journal with
//! which it is undone after a crash.

pub(crate) mod install;
pub(crate) mod kubelet;
pub(crate) mod machine;
pub(crate) mod outcome;
pub(crate) mod pods;
pub(crate) mod ready;
pub(crate) mod switch;
pub(crate) mod uninstall;
pub(crate) mod verbs;
pub(crate) mod versions;

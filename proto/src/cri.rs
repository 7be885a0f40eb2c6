//! CRI v1.
//!
//! Users name everything through this module, never `k8s_cri` itself: what that crate lacks of the
//! newest CRI is defined here, under the names the specification gives it, and its users do not change.

pub use k8s_cri::v1::*;

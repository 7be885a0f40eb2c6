//! What a pod shares with the node, and what it therefore runs in.
//!
//! ```text
//!  handler        asks for the node's network, IPC      asks for the node's PIDs
//!  "host"         host pod                              host pod
//!  "vm"           refused                               vm pod: the guest's own
//!  "" (vm)        refused, but in a namespace of `pods.host_namespaces_in`: host pod, and the log says so
//! ```

use cofferdam_proto::cri::{NamespaceMode, NamespaceOption};
use cofferdam_sandbox::Kind;

use crate::config::Config;
use crate::error::CriError;

/// What a pod runs in and shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    /// What it runs in.
    pub(crate) kind: Kind,
    /// It runs on the node though nobody named the handler: the configuration says so of its Kubernetes namespace.
    pub(crate) moved: bool,
    /// The node's network.
    pub(crate) node_network: bool,
    /// The node's processes; in a microVM the guest's, which are the pod's.
    pub(crate) node_pid: bool,
    /// The node's IPC.
    pub(crate) node_ipc: bool,
}

/// Decides for a pod of the Kubernetes namespace `namespace`.
pub(crate) fn place(
    config: &Config,
    handler: &str,
    namespace: &str,
    options: &NamespaceOption,
) -> Result<Placement, CriError> {
    let kind = config.kind(handler).ok_or_else(|| {
        CriError::invalid(format!(
            "unknown runtime handler {:?}: this node has \"vm\" and \"host\"",
            crate::node::shorten(handler)
        ))
    })?;
    let mode = |what: &str, value: i32| {
        NamespaceMode::try_from(value).map_err(|_| CriError::invalid(format!("unknown {what} namespace mode {value}")))
    };
    let (network, pid, ipc) = (mode("network", options.network)?, mode("pid", options.pid)?, mode("ipc", options.ipc)?);
    for (what, mode) in [("network", network), ("ipc", ipc)] {
        if !matches!(mode, NamespaceMode::Pod | NamespaceMode::Node) {
            return Err(CriError::invalid(format!("a pod's {what} namespace is its own or the node's, not {mode:?}")));
        }
    }
    let node = |mode| mode == NamespaceMode::Node;
    let mut placement =
        Placement { kind, moved: false, node_network: node(network), node_pid: node(pid), node_ipc: node(ipc) };
    if kind == Kind::Host {
        return Ok(placement);
    }
    // Who names "vm" means the guest's processes; who names nothing means what Kubernetes says: the node's.
    let asked_pid = node(pid) && handler.is_empty();
    let asked = [("network", node(network)), ("PID", asked_pid), ("IPC", node(ipc))];
    let asked: Vec<&str> = asked.iter().filter(|(_, asked)| *asked).map(|(what, _)| *what).collect();
    if asked.is_empty() {
        return Ok(placement);
    }
    if handler.is_empty() && config.host_namespaces_in.iter().any(|n| n == namespace) {
        placement.kind = Kind::Host;
        placement.moved = true;
        return Ok(placement);
    }
    Err(CriError::invalid(format!(
        "the pod asks for the node's {} namespace, which a microVM cannot share: use the runtime handler \"host\"{}",
        asked.join(" and "),
        if handler.is_empty() { ", or list its Kubernetes namespace in pods.host_namespaces_in" } else { "" }
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: i32 = NamespaceMode::Pod as i32;
    const CONTAINER: i32 = NamespaceMode::Container as i32;
    const NODE: i32 = NamespaceMode::Node as i32;

    fn placed(handler: &str, namespace: &str, (network, pid, ipc): (i32, i32, i32)) -> Result<Placement, CriError> {
        let options = NamespaceOption { network, pid, ipc, ..Default::default() };
        place(&crate::config::tests_config(), handler, namespace, &options)
    }

    #[test]
    fn every_handler_namespace_and_wish() {
        let system = "kube-system";
        let (vm, host) = (Some((Kind::Vm, false)), Some((Kind::Host, false)));
        let moved = Some((Kind::Host, true));
        for (handler, namespace, modes, expected) in [
            ("", "default", (POD, CONTAINER, POD), vm),
            ("", system, (POD, CONTAINER, POD), vm),
            ("", system, (POD, POD, POD), vm),
            ("", "default", (NODE, CONTAINER, POD), None),
            ("", "default", (POD, NODE, POD), None),
            ("", "default", (POD, CONTAINER, NODE), None),
            ("", "kube-system2", (NODE, CONTAINER, POD), None),
            ("", "", (NODE, CONTAINER, POD), None),
            ("", system, (NODE, CONTAINER, POD), moved),
            ("", system, (POD, NODE, POD), moved),
            ("", system, (POD, CONTAINER, NODE), moved),
            ("vm", system, (NODE, CONTAINER, POD), None),
            ("vm", system, (POD, CONTAINER, NODE), None),
            ("vm", "default", (POD, NODE, POD), vm),
            ("vm", "default", (NODE, NODE, NODE), None),
            ("host", "default", (NODE, NODE, NODE), host),
            ("host", "default", (POD, CONTAINER, POD), host),
            ("runc", "default", (POD, CONTAINER, POD), None),
            ("host", "default", (CONTAINER, POD, POD), None),
            ("host", "default", (POD, 9, POD), None),
        ] {
            let got = placed(handler, namespace, modes);
            let shown = format!("{handler:?} in {namespace:?}, {modes:?}: {got:?}");
            assert_eq!(got.ok().map(|p| (p.kind, p.moved)), expected, "{shown}");
        }
    }

    #[test]
    fn a_refusal_names_what_was_asked_and_the_handler_to_use() {
        let text = placed("", "default", (NODE, NODE, POD)).unwrap_err().to_string();
        for part in ["network and PID", "handler \"host\"", "pods.host_namespaces_in"] {
            assert!(text.contains(part), "{text}");
        }
        // With an explicit handler the list would not help.
        let text = placed("vm", "kube-system", (NODE, CONTAINER, NODE)).unwrap_err().to_string();
        assert!(text.contains("network and IPC") && !text.contains("host_namespaces_in"), "{text}");
    }

    #[test]
    fn a_node_whose_default_is_host_has_nothing_to_refuse() {
        let mut config = crate::config::tests_config();
        config.default_kind = Kind::Host;
        let options = NamespaceOption { network: NODE, ..Default::default() };
        let got = place(&config, "", "default", &options).unwrap();
        assert_eq!((got.kind, got.moved, got.node_network), (Kind::Host, false, true));
    }
}

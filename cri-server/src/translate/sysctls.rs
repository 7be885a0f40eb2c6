//! Sysctls of a pod: by allow-list of namespaced names, and by a grammar for values (runc's and CRI-O's escapes came through here).

use std::collections::{BTreeMap, HashMap};

use super::namespaces::Placement;
use crate::error::CriError;

/// What a pod's own network lets every user do, unless the pod's sysctls say otherwise: listen on ports below 1024, and send pings without
/// a capability. containerd does so since 2.0, and images without root rely on it.
const DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Names that belong to an ipc namespace; one ending in a dot covers what is below.
const IPC: [&str; 9] = [
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "fs.mqueue.",
];

const MAX_COUNT: usize = 128;
const MAX_NAME: usize = 256;
const MAX_VALUE: usize = 256;

/// The spelling with dots. sysctl(8) and the kubelet know one with slashes too, by the first separator; what separates in the one stands
/// for a dot within a component in the other (`net.ipv4.conf.eth0/100.forwarding` is of the interface `eth0.100`).
fn dotted(name: &str) -> String {
    let swapped = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    }
}

/// Whether it can be a folder or file of /proc/sys; one of dots alone would climb.
fn is_component(component: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-/".contains(&b);
    component.bytes().all(plain) && component.bytes().any(|b| b != b'/')
}

/// The sysctls of a pod: those that it asks for, and ours where it has a network of its own.
pub(crate) fn of_pod(
    asked: &HashMap<String, String>,
    placement: &Placement,
) -> Result<BTreeMap<String, String>, CriError> {
    let mut sysctls = check(asked, placement.node_ipc, placement.node_network)?;
    if !placement.node_network {
        for (name, value) in DEFAULTS {
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    Ok(sysctls)
}

/// Checks the sysctls of a pod that may share the node's ipc or network namespace.
fn check(
    asked: &HashMap<String, String>,
    node_ipc: bool,
    node_network: bool,
) -> Result<BTreeMap<String, String>, CriError> {
    if asked.len() > MAX_COUNT {
        return Err(CriError::invalid(format!("more than {MAX_COUNT} sysctls")));
    }
    let mut checked = BTreeMap::new();
    for (name, value) in asked {
        let name = dotted(name);
        let shown = crate::node::shorten(&name);
        let refuse = |why: &str| Err(CriError::invalid(format!("sysctl {shown:?} {why}")));
        if name.len() > MAX_NAME || !name.split('.').all(is_component) {
            return refuse("is not a name of plain words and dots");
        }
        let fits = |allowed: &str| name == allowed || (allowed.ends_with('.') && name.starts_with(allowed));
        if name.starts_with("net.") {
            if node_network {
                return refuse("would change the node's own network");
            }
        } else if IPC.iter().any(|a| fits(a)) {
            if node_ipc {
                return refuse("would change the node's own ipc namespace");
            }
        } else {
            return refuse("is not one that belongs to a pod alone");
        }
        let value_ok = |b: u8| b.is_ascii_alphanumeric() || b" \t_-.,:".contains(&b);
        if value.len() > MAX_VALUE || value.is_empty() || !value.bytes().all(value_ok) {
            return refuse(&format!("has a value that sysctls do not have: {:?}", super::super::node::shorten(value)));
        }
        checked.insert(name, value.clone());
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str, ipc: bool, net: bool) -> Result<BTreeMap<String, String>, CriError> {
        check(&HashMap::from([(name.to_owned(), value.to_owned())]), ipc, net)
    }

    #[test]
    fn namespaced_ones_pass() {
        for (name, value) in [
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.msg_max", "100"),
            ("net.ipv4.ip_local_port_range", "1024\t65535"),
            ("net.ipv4.tcp_congestion_control", "bbr"),
            ("net.ipv4.ip_local_reserved_ports", "8080,9000-9010"),
            ("kernel.sem", "250 32000 100 128"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
            // Safe since Kubernetes 1.37.
            ("net.ipv4.tcp_slow_start_after_idle", "0"),
            ("net.ipv4.tcp_notsent_lowat", "131072"),
            ("net.ipv4.conf.eth0/100.forwarding", "1"),
        ] {
            assert_eq!(one(name, value, false, false).unwrap()[name], value);
        }
        for (slashed, name) in [
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/conf/eth0.100/forwarding", "net.ipv4.conf.eth0/100.forwarding"),
        ] {
            assert!(one(slashed, "1", false, false).unwrap().contains_key(name), "{slashed}");
        }
    }

    #[test]
    fn a_network_of_its_own_is_for_every_user() {
        let placement = |node_network| Placement {
            kind: cofferdam_sandbox::Kind::Host,
            moved: false,
            node_network,
            node_pid: false,
            node_ipc: false,
        };
        let own = of_pod(&HashMap::new(), &placement(false)).unwrap();
        let expected = DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(own, BTreeMap::from(expected));
        // In either spelling the pod's word is the last.
        for name in ["net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"] {
            let asked = HashMap::from([(name.to_owned(), "1024".to_owned())]);
            let got = of_pod(&asked, &placement(false)).unwrap();
            assert_eq!((got.len(), got[DEFAULTS[0].0].as_str()), (2, "1024"), "{name}");
        }
        assert!(of_pod(&HashMap::new(), &placement(true)).unwrap().is_empty(), "the node's network stays as it is");
    }

    #[test]
    fn the_node_s_own_and_crooked_ones_are_refused() {
        for (name, value, ipc, net) in [
            ("kernel.core_pattern", "|/x", false, false),
            ("kernel.panic", "1", false, false),
            ("vm.overcommit_memory", "1", false, false),
            ("kernel.shm_rmid_forced.x", "1", false, false),
            ("kernel.shm_rmid_forced+kernel.core_pattern=|/x", "1", false, false),
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x #", false, false),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=x", false, false),
            ("kernel.shm_rmid_forced", "1=2", false, false),
            ("kernel.shm_rmid_forced", "", false, false),
            ("net..x", "1", false, false),
            ("net.ipv4.../../kernel/core_pattern", "1", false, false),
            ("net/../kernel/core_pattern", "x", false, false),
            ("net.//.kernel.core_pattern", "x", false, false),
            ("fs.mqueue.//.//.kernel.panic", "1", false, false),
            ("net./.x", "1", false, false),
            ("", "1", false, false),
            ("net.ipv4.ip_forward", "1", false, true),
            ("kernel.sem", "1", true, false),
        ] {
            assert!(one(name, value, ipc, net).is_err(), "{name} = {value}");
        }
    }
}

//! Values for the capabilities that plugins may declare: the same names and forms as containerd passes.

use serde_json::{Map, Value, json};

use crate::spec::{Bandwidth, NetworkSpec};

/// Bytes that may pass at once beyond the rate: as many as the field holds, so that the rate alone limits.
const BURST: u32 = u32::MAX;

/// What a pod has for each capability. A plugin is passed those that its configuration declares.
pub(super) fn of(spec: &NetworkSpec, resolv_conf: &str, cgroup: &str) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("io.kubernetes.cri.pod-annotations".into(), json!(spec.annotations));
    let ports: Vec<Value> = spec
        .port_mappings
        .iter()
        .map(|port| {
            json!({"hostPort": port.host_port, "containerPort": port.container_port,
                   "protocol": port.protocol, "hostIP": port.host_ip})
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), Value::Array(ports));
    }
    if let Some(limits) = spec.bandwidth {
        all.insert("bandwidth".into(), bandwidth(limits));
    }
    if let Some(dns) = dns(resolv_conf) {
        all.insert("dns".into(), dns);
    }
    if !cgroup.is_empty() {
        all.insert("cgroupPath".into(), cgroup.into());
    }
    all
}

/// A rate of 0 is no limit to the plugin.
fn bandwidth(limits: Bandwidth) -> Value {
    let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST);
    json!({
        "ingressRate": limits.ingress.unwrap_or(0), "ingressBurst": burst(limits.ingress),
        "egressRate": limits.egress.unwrap_or(0), "egressBurst": burst(limits.egress),
    })
}

/// The servers, domains and options of a resolv.conf; nothing when it has none.
fn dns(resolv_conf: &str) -> Option<Value> {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => servers.extend(words.next()),
            Some("search") => searches = words.collect(),
            Some("options") => options.extend(words),
            _ => {}
        }
    }
    let empty = servers.is_empty() && searches.is_empty() && options.is_empty();
    (!empty).then(|| json!({"servers": servers, "searches": searches, "options": options}))
}

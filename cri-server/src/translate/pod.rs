//! RunPodSandbox's configuration, checked whole before anything is done.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cofferdam_proto::cri::{PodSandboxConfig, PortMapping, Protocol};
use cofferdam_sandbox::{Kind, NetworkSpec, PodSpec};

use super::{bandwidth, dns, inspect, namespaces, oom, resources, selinux, sysctls, text, users};
use crate::config::{CgroupParent, Config, node_cpus};
use crate::error::CriError;
use crate::node::names::Name;
use crate::records::{NamespacesRecord, PodPhase, PodRecord};

/// Longest host name that Linux takes.
const MAX_HOSTNAME: usize = 64;
const MAX_PORTS: usize = 1024;

/// What a checked request leads to.
#[derive(Debug)]
pub(crate) struct PodPlan {
    /// The name that is reserved.
    pub(crate) name: Name,
    /// The record, phase `Creating`.
    pub(crate) record: PodRecord,
    /// What the sandbox is asked. An empty `resolv_conf` with `node_dns` set means the node's own file.
    pub(crate) spec: PodSpec,
    /// The request has no DNS configuration, or an empty one.
    pub(crate) node_dns: bool,
    /// It runs on the node because the configuration lets its Kubernetes namespace have the node's namespaces.
    pub(crate) moved: bool,
}

/// Checks the configuration of a pod that gets `id`.
pub(crate) fn plan(
    config: &Config,
    id: &str,
    handler: &str,
    asked: &PodSandboxConfig,
    now: i64,
) -> Result<PodPlan, CriError> {
    let metadata = asked.metadata.as_ref().ok_or_else(|| CriError::invalid("pod sandbox config has no metadata"))?;
    for (what, value) in
        [("pod name", &metadata.name), ("pod namespace", &metadata.namespace), ("pod uid", &metadata.uid)]
    {
        text::name(what, value, 253)?;
        // These are CNI_ARGS' own separators.
        if value.contains([';', '=']) {
            return Err(CriError::invalid(format!("{what} {value:?} has ; or =")));
        }
    }
    let linux = asked.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    let options = context.namespace_options.clone().unwrap_or_default();
    let shared = namespaces::place(config, handler, &metadata.namespace, &options)?;
    let kind = shared.kind;
    let users = users::of_pod(options.userns_options.as_ref(), &shared)?;
    let kernel = selinux::Kernel::default();
    selinux::check("the pod sandbox", context.selinux_options.as_ref(), context.privileged, &kernel)?;
    hostname(&asked.hostname)?;
    log_directory(&asked.log_directory)?;
    let cgroup_parent = match linux.cgroup_parent.as_str() {
        "" => config.cgroup_parent.clone(),
        path => CgroupParent::parse(config.cgroup_driver, path)
            .map_err(|why| CriError::invalid(format!("cgroup_parent {path:?} {why}")))?,
    };
    let resolv_conf = dns::resolv_conf(asked.dns_config.as_ref())?;
    let spec = PodSpec {
        id: id.to_owned(),
        kind,
        vm: resources::vm_size(config.vm_size, linux.resources.as_ref(), linux.overhead.as_ref(), node_cpus()),
        vm_max: config.vm_max,
        oom_score_adj: oom::by_class(cgroup_parent.as_str()),
        cgroup_parent: cgroup_parent.as_str().to_owned(),
        hostname: asked.hostname.clone(),
        resolv_conf: resolv_conf.clone().unwrap_or_default(),
        network: if shared.node_network { None } else { Some(network(id, asked)?) },
        sysctls: sysctls::of_pod(&linux.sysctls, &shared)?,
        users,
        node_pid: shared.node_pid && kind == Kind::Host,
        node_ipc: shared.node_ipc,
    };
    let record = PodRecord {
        id: id.to_owned(),
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        attempt: metadata.attempt,
        handler: handler.to_owned(),
        kind,
        phase: PodPhase::Creating,
        created_at: now,
        labels: asked.labels.clone(),
        annotations: asked.annotations.clone(),
        log_directory: asked.log_directory.clone(),
        hostname: asked.hostname.clone(),
        namespaces: NamespacesRecord {
            network: options.network,
            pid: options.pid,
            ipc: options.ipc,
            target_id: options.target_id.clone(),
            users,
        },
        privileged: context.privileged,
        addresses: Vec::new(),
        freed: false,
        ended: String::new(),
        resources: linux.resources.as_ref().map(resources::record),
        info: inspect::pod(asked, &spec.sysctls),
        overhead: linux.overhead.as_ref().map(resources::record),
    };
    let name = Name::Pod {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        uid: metadata.uid.clone(),
        attempt: metadata.attempt,
    };
    Ok(PodPlan { name, record, spec, node_dns: resolv_conf.is_none(), moved: shared.moved })
}

/// The pod as a container that is created now is to be judged: by the configuration that was sent with it, where one was. The kubelet
/// computes it anew for each container: a pod becomes privileged when it gets a privileged ephemeral container (`kubectl debug`).
pub(crate) fn as_sent(pod: PodRecord, sent: Option<&PodSandboxConfig>) -> Result<PodRecord, CriError> {
    let Some(sent) = sent else { return Ok(pod) };
    let context = sent.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    log_directory(&sent.log_directory)?;
    Ok(PodRecord {
        privileged: context.is_some_and(|context| context.privileged),
        log_directory: if sent.log_directory.is_empty() { pod.log_directory } else { sent.log_directory.clone() },
        ..pod
    })
}

fn hostname(name: &str) -> Result<(), CriError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if name.len() > MAX_HOSTNAME || !plain {
        return Err(CriError::invalid(format!(
            "host name {:?} is longer than {MAX_HOSTNAME} bytes or has a character that host names do not have",
            crate::node::shorten(name)
        )));
    }
    Ok(())
}

fn log_directory(path: &str) -> Result<(), CriError> {
    text::line("log_directory", path, 2048)?;
    let path = std::path::Path::new(path);
    let climbs = path.components().any(|c| c == std::path::Component::ParentDir);
    if !path.as_os_str().is_empty() && (!path.is_absolute() || climbs) {
        return Err(CriError::invalid(format!("log_directory {path:?} is not an absolute path without ..")));
    }
    Ok(())
}

fn network(id: &str, asked: &PodSandboxConfig) -> Result<NetworkSpec, CriError> {
    if asked.port_mappings.len() > MAX_PORTS {
        return Err(CriError::invalid(format!("more than {MAX_PORTS} port mappings")));
    }
    let metadata = asked.metadata.clone().unwrap_or_default();
    let args = BTreeMap::from([
        ("IgnoreUnknown".to_owned(), "1".to_owned()),
        ("K8S_POD_NAMESPACE".to_owned(), metadata.namespace),
        ("K8S_POD_NAME".to_owned(), metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID".to_owned(), id.to_owned()),
        ("K8S_POD_UID".to_owned(), metadata.uid),
    ]);
    let mut port_mappings = Vec::new();
    for port in asked.port_mappings.iter().filter(|p| p.host_port != 0) {
        port_mappings.push(port_mapping(port)?);
    }
    let annotations = asked.annotations.clone().into_iter().collect();
    let bandwidth = bandwidth::of_pod(&asked.annotations)?;
    Ok(NetworkSpec { args, port_mappings, annotations, bandwidth })
}

fn port_mapping(port: &PortMapping) -> Result<cofferdam_sandbox::PortMapping, CriError> {
    let number = |what: &str, value: i32| {
        u16::try_from(value)
            .ok()
            .filter(|n| *n != 0)
            .ok_or_else(|| CriError::invalid(format!("{what} {value} is not within 1 and 65535")))
    };
    if !port.host_ip.is_empty() && port.host_ip.parse::<IpAddr>().is_err() {
        return Err(CriError::invalid(format!("host_ip {:?} is not an address", port.host_ip)));
    }
    Ok(cofferdam_sandbox::PortMapping {
        protocol: match Protocol::try_from(port.protocol) {
            Ok(Protocol::Tcp) => cofferdam_sandbox::Protocol::Tcp,
            Ok(Protocol::Udp) => cofferdam_sandbox::Protocol::Udp,
            Ok(Protocol::Sctp) => cofferdam_sandbox::Protocol::Sctp,
            Err(_) => return Err(CriError::invalid(format!("unknown protocol {}", port.protocol))),
        },
        container_port: number("container_port", port.container_port)?,
        host_port: number("host_port", port.host_port)?,
        host_ip: port.host_ip.clone(),
    })
}

#[cfg(test)]
mod tests;

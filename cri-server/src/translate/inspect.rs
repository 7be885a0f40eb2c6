//! What `crictl inspect` and `inspectp` show as `info` (the verbose statuses), by the names that containerd gives it: tools read
//! `info.pid`, `info.config` and `info.runtimeSpec`. The specification is written from what the agent was asked; no runtime reads it.
//!
//! Cofferdam's own: `kind`, of a pod `versions` (of the programs that it runs in, and of the daemon), and of a container in a microVM `guestPid`, since none of the node's processes is its. `runtimeSpec` says of a
//! namespace that is shared where the node has it; one without a path is the container's own.

use cofferdam_proto::agent::namespaces::Pid;
use cofferdam_proto::agent::seccomp::Kind as SeccompKind;
use cofferdam_proto::agent::{CreateContainerRequest, Mount, Process, Resources};
use cofferdam_proto::cri::{ContainerConfig, NamespaceMode, PodSandboxConfig};
use cofferdam_sandbox::{Kind, NetworkStatus, Programs};
use serde_json::{Map, Value, json};

use crate::records::{ContainerPhase, ContainerRecord, Info, PodPhase, PodRecord};

/// Longest seccomp profile that is shown, bytes.
const MAX_PROFILE: usize = 64 << 10;

/// What is kept of a pod's configuration.
pub(crate) fn pod(asked: &PodSandboxConfig, sysctls: &impl serde::Serialize) -> Info {
    Info::new(&json!({"config": brief(json!(asked)), "runtimeSpec": {"linux": {"sysctl": sysctls}}}))
}

/// What is kept of a container's configuration and of what its agent was asked.
pub(crate) fn container(asked: &ContainerConfig, request: &CreateContainerRequest) -> Info {
    Info::new(&json!({"config": brief(json!(asked)), "runtimeSpec": brief(spec(request))}))
}

fn spec(request: &CreateContainerRequest) -> Value {
    let own = |pid: i32| pid == i32::from(Pid::Container);
    let pid = request.namespaces.as_ref().map_or(0, |n| n.pid);
    let shares_ipc = request.namespaces.as_ref().is_some_and(|n| n.ipc_node);
    let mut namespaces = vec!["mount"];
    namespaces.extend((!request.privileged).then_some("cgroup"));
    namespaces.extend(own(pid).then_some("pid"));
    let devices: Vec<Value> = request
        .devices
        .iter()
        .map(|d| json!({"path": d.path, "hostPath": d.source, "access": d.permissions}))
        .collect();
    json!({
        "ociVersion": "1.2.0",
        "process": request.process.as_ref().map(process),
        "root": {"readonly": request.readonly_rootfs},
        "mounts": request.mounts.iter().map(mount).collect::<Vec<_>>(),
        "linux": {
            "namespaces": namespaces.into_iter().map(|kind| json!({"type": kind})).collect::<Vec<_>>(),
            // Completed when it is shown: where the pod's are depends on its processes.
            "shared": {"pid": !own(pid) && pid != i32::from(Pid::Node), "ipc": !shares_ipc},
            "cgroupsPath": if request.cgroup_parent.is_empty() { String::new() } else { format!("{}/{}", request.cgroup_parent, request.id) },
            "resources": request.resources.as_ref().map(resources),
            "devices": devices,
            "seccomp": request.process.as_ref().and_then(seccomp),
            "maskedPaths": request.masked_paths,
            "readonlyPaths": request.readonly_paths,
        },
    })
}

fn process(p: &Process) -> Value {
    let env: Vec<_> = p.env.iter().map(|e| String::from_utf8_lossy(e)).collect();
    let capabilities = p.capabilities.as_ref().map(|c| {
        json!({
            "bounding": c.bounding, "permitted": c.permitted, "effective": c.effective,
            "inheritable": c.inheritable, "ambient": c.ambient,
        })
    });
    let rlimits: Vec<Value> =
        p.rlimits.iter().map(|r| json!({"type": r.r#type, "soft": r.soft, "hard": r.hard})).collect();
    json!({
        "terminal": p.terminal,
        "args": p.args,
        "env": env,
        "cwd": p.cwd,
        "capabilities": capabilities,
        "rlimits": rlimits,
        "noNewPrivileges": p.no_new_privileges,
        "oomScoreAdj": p.oom_score_adj,
        "apparmorProfile": p.apparmor_profile,
    })
}

fn mount(m: &Mount) -> Value {
    let mut options: Vec<&str> = Vec::new();
    if m.r#type == "bind" {
        options.push(if m.recursive { "rbind" } else { "bind" });
        options.push(match m.propagation.as_str() {
            "slave" => "rslave",
            "shared" => "rshared",
            _ => "rprivate",
        });
    }
    let read_only = m.readonly || m.recursive_readonly || m.r#type == "image";
    options.push(match (m.recursive_readonly, read_only) {
        (true, _) => "rro",
        (false, true) => "ro",
        (false, false) => "rw",
    });
    options.extend(m.options.iter().map(String::as_str));
    json!({"destination": m.destination, "type": m.r#type, "source": m.source, "options": options})
}

fn resources(r: &Resources) -> Value {
    json!({
        "memory": {"limit": r.memory_limit_bytes, "swap": r.memory_swap_bytes},
        "cpu": {
            "shares": r.cpu_shares, "quota": r.cpu_quota_us, "period": r.cpu_period_us,
            "cpus": r.cpuset_cpus, "mems": r.cpuset_mems,
        },
        "pids": {"limit": r.pids_limit},
        "unified": r.unified,
    })
}

fn seccomp(p: &Process) -> Option<Value> {
    let asked = p.seccomp.as_ref()?;
    match asked.kind() {
        SeccompKind::Unconfined => None,
        SeccompKind::RuntimeDefault => Some(json!({"defaultAction": "SCMP_ACT_ERRNO"})),
        SeccompKind::Profile if asked.profile.len() > MAX_PROFILE => Some(json!({"bytes": asked.profile.len()})),
        SeccompKind::Profile => serde_json::from_slice(&asked.profile).ok(),
    }
}

/// Processes by the node's numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pids {
    /// The pod's supervisor or monitor.
    pub(crate) sandbox: Option<u32>,
    /// The container's first process, if it is one of the node's.
    pub(crate) container: Option<u32>,
}

/// The `info` of a container's verbose status.
pub(crate) fn container_info(r: &ContainerRecord, pod: &PodRecord, pids: Pids) -> Value {
    let Value::Object(mut info) = r.info.value() else { return Value::Null };
    let running = r.phase == ContainerPhase::Running;
    info.insert("sandboxID".into(), json!(r.pod));
    info.insert("kind".into(), json!(pod.kind));
    info.insert("removing".into(), json!(r.phase == ContainerPhase::Removing));
    info.insert("snapshotter".into(), json!("overlayfs"));
    info.insert("snapshotKey".into(), json!(r.id));
    info.insert("runtimeType".into(), json!(runtime_type(pod.kind)));
    match pod.kind {
        Kind::Host => drop(info.insert("pid".into(), json!(pids.container.unwrap_or(0)))),
        Kind::Vm => {
            info.insert("guestPid".into(), json!(if running { r.agent_pid } else { 0 }));
            info.insert("monitorPid".into(), json!(pids.sandbox.unwrap_or(0)));
        }
    }
    if let Some(Value::Object(spec)) = info.get_mut("runtimeSpec") {
        complete(spec, r, pod, pids);
    }
    Value::Object(info)
}

fn complete(spec: &mut Map<String, Value>, r: &ContainerRecord, pod: &PodRecord, pids: Pids) {
    spec.insert("hostname".into(), json!(pod.hostname));
    spec.insert(
        "annotations".into(),
        annotations(pod, &[("type", "container"), ("name", &r.name), ("image", r.image_name())]),
    );
    let user = json!({"uid": r.user.uid, "gid": r.user.gid, "additionalGids": r.user.groups});
    if let Some(Value::Object(process)) = spec.get_mut("process") {
        process.insert("user".into(), user);
    }
    let in_node = pids.container.filter(|_| pod.kind == Kind::Host);
    if let Some(pid) = in_node {
        let read_only = spec.get("root").is_some_and(|root| root["readonly"] == true);
        spec.insert("root".into(), json!({"path": format!("/proc/{pid}/root"), "readonly": read_only}));
    }
    let Some(Value::Object(linux)) = spec.get_mut("linux") else { return };
    let shared = linux.remove("shared").unwrap_or_default();
    let Some(Value::Array(namespaces)) = linux.get_mut("namespaces") else { return };
    let node = i32::from(NamespaceMode::Node);
    let wanted = [
        ("pid", shared["pid"] == true),
        ("ipc", shared["ipc"] == true),
        ("uts", pod.namespaces.network != node),
        ("network", pod.namespaces.network != node),
        ("user", pod.namespaces.users.is_some()),
    ];
    for (kind, _) in wanted.into_iter().filter(|(_, shared)| *shared) {
        let mut namespace = json!({"type": kind});
        if let Some(pid) = in_node {
            namespace["path"] = json!(namespace_path(pid, kind));
        }
        namespaces.push(namespace);
    }
}

fn namespace_path(pid: u32, kind: &str) -> String {
    format!("/proc/{pid}/ns/{}", if kind == "network" { "net" } else { kind })
}

/// By the keys that node agents look for.
fn annotations(pod: &PodRecord, more: &[(&str, &str)]) -> Value {
    let mut all = Map::new();
    let pairs = [
        ("sandbox-id", &pod.id),
        ("sandbox-name", &pod.name),
        ("sandbox-namespace", &pod.namespace),
        ("sandbox-uid", &pod.uid),
    ];
    for (key, value) in pairs {
        all.insert(format!("io.kubernetes.cri.{key}"), json!(value));
    }
    for (key, value) in more {
        let key = if *key == "type" {
            "container-type".to_owned()
        } else {
            format!("{}-name", if *key == "name" { "container" } else { key })
        };
        all.insert(format!("io.kubernetes.cri.{key}"), json!(value));
    }
    Value::Object(all)
}

fn runtime_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "cofferdam.host",
        Kind::Vm => "cofferdam.vm",
    }
}

/// The `info` of a pod's verbose status. `pid` is in the pod's network namespace, and for a host pod in its others.
pub(crate) fn pod_info(
    r: &PodRecord,
    pid: Option<u32>,
    network: Option<&NetworkStatus>,
    programs: Option<&Programs>,
) -> Value {
    let Value::Object(mut info) = r.info.value() else { return Value::Null };
    info.insert("kind".into(), json!(r.kind));
    info.insert("pid".into(), json!(pid.unwrap_or(0)));
    info.insert("processStatus".into(), json!(if pid.is_some() { "running" } else { "deleted" }));
    info.insert("netNamespaceClosed".into(), json!(pid.is_none() && r.phase != PodPhase::Creating));
    info.insert("ended".into(), json!(r.ended));
    info.insert("runtimeHandler".into(), json!(r.handler));
    info.insert("runtimeType".into(), json!(runtime_type(r.kind)));
    if let Some(network) = network {
        let addresses: Vec<Value> = network.addresses.iter().map(|ip| json!({"IP": ip})).collect();
        info.insert("cniResult".into(), json!({"Interfaces": {"eth0": {"IPConfigs": addresses}}}));
    }
    if let Some(programs) = programs {
        let mut versions = json!(programs);
        versions["daemon"] = json!({"version": env!("CARGO_PKG_VERSION")});
        info.insert("versions".into(), versions);
    }
    let own_network = r.namespaces.network != i32::from(NamespaceMode::Node);
    if let Some(Value::Object(spec)) = info.get_mut("runtimeSpec") {
        spec.insert("ociVersion".into(), json!("1.2.0"));
        spec.insert("hostname".into(), json!(r.hostname));
        spec.insert("annotations".into(), annotations(r, &[("type", "sandbox")]));
        let namespace = |(kind, pid): (&str, u32)| json!({"type": kind, "path": namespace_path(pid, kind)});
        let network: Vec<Value> =
            pid.filter(|_| own_network).map(|pid| namespace(("network", pid))).into_iter().collect();
        if let Some(Value::Object(linux)) = spec.get_mut("linux") {
            linux.insert("namespaces".into(), json!(network));
        }
    }
    Value::Object(info)
}

/// Without what is empty, as Go's encoder leaves it out.
fn brief(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(k, v)| (k, brief(v))).filter(|(_, v)| !is_empty(v)).collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(brief).collect()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

#[cfg(test)]
mod tests;

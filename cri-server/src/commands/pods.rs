//! `cofferdam pods`: what runs on this node, and what it costs the node.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cofferdam_proto::cri::{
    Container, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest, PodSandbox,
    PodSandboxMetadata, PodSandboxState, PodSandboxStats,
};
use cofferdam_sandbox::VmSize;
use serde_json::{Value, json};

use super::client::{Daemon, with_daemon};
use super::table::{Table, bytes, plain, span};
use super::{Format, Outcome, print};

pub(crate) fn run(path: Option<&Path>, format: Format) -> Outcome {
    with_daemon(path, |mut daemon| async move {
        let pods = read(&mut daemon).await?;
        print(&match format {
            Format::Json => format!("{:#}\n", Value::from(pods.iter().map(Pod::object).collect::<Vec<_>>())),
            Format::Table => table(&pods).text(),
        })
    })
}

/// The only pod that `name` means: its id or the beginning of it, its name, or `NAMESPACE/NAME`.
pub(super) async fn find(daemon: &mut Daemon, name: &str) -> Result<String, String> {
    let listed = daemon.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
    let pods = listed.map_err(|status| format!("cannot list the pods: {}", status.message()))?.into_inner().items;
    let is = |pod: &PodSandbox| {
        let metadata = pod.metadata.clone().unwrap_or_default();
        pod.id.starts_with(name) || metadata.name == name || format!("{}/{}", metadata.namespace, metadata.name) == name
    };
    let mut found = pods.into_iter().filter(is);
    match (found.next(), found.next()) {
        (Some(pod), None) => Ok(pod.id),
        (None, _) => Err(format!("no pod is called {name:?}; `cofferdam pods` lists them")),
        (Some(one), Some(other)) => {
            Err(format!("{name:?} means several pods, among them {} and {}; give more of the id", one.id, other.id))
        }
    }
}

struct Pod {
    sandbox: PodSandbox,
    metadata: PodSandboxMetadata,
    running: usize,
    containers: usize,
    restarts: u32,
    stats: Option<PodSandboxStats>,
    /// What its guest has now.
    guest: Option<VmSize>,
}

async fn read(daemon: &mut Daemon) -> Result<Vec<Pod>, tonic::Status> {
    let sandboxes = daemon.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await?.into_inner().items;
    let containers = daemon.runtime.list_containers(ListContainersRequest::default()).await?.into_inner().containers;
    let stats = daemon.runtime.list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await?.into_inner().stats;
    let config = daemon.config.sandbox();
    let mut pods = Vec::new();
    for sandbox in sandboxes {
        let own: Vec<&Container> = containers.iter().filter(|c| c.pod_sandbox_id == sandbox.id).collect();
        let stats = stats.iter().find(|s| s.attributes.as_ref().is_some_and(|a| a.id == sandbox.id)).cloned();
        pods.push(Pod {
            metadata: sandbox.metadata.clone().unwrap_or_default(),
            running: own.iter().filter(|c| c.state().as_str_name() == "CONTAINER_RUNNING").count(),
            containers: own.len(),
            restarts: restarts(&own),
            stats,
            // A guest that does not answer is shown without a size.
            guest: cofferdam_sandbox::guest_size(&config, &sandbox.id).await.ok().flatten(),
            sandbox,
        });
    }
    pods.sort_by_key(|pod| (pod.metadata.namespace.clone(), pod.metadata.name.clone(), pod.sandbox.created_at));
    Ok(pods)
}

/// The kubelet counts the lives of a container by its attempt, and removes old ones.
fn restarts(containers: &[&Container]) -> u32 {
    let mut last = std::collections::BTreeMap::new();
    for metadata in containers.iter().filter_map(|c| c.metadata.as_ref()) {
        let attempt: &mut u32 = last.entry(&metadata.name).or_default();
        *attempt = metadata.attempt.max(*attempt);
    }
    last.values().sum()
}

impl Pod {
    fn memory(&self) -> Option<u64> {
        Some(self.stats.as_ref()?.linux.as_ref()?.memory.as_ref()?.working_set_bytes.as_ref()?.value)
    }

    /// CPU that it uses now, in thousandths of one.
    fn millicores(&self) -> Option<u64> {
        let cpu = self.stats.as_ref()?.linux.as_ref()?.cpu.as_ref()?;
        Some(cpu.usage_nano_cores.as_ref()?.value / 1_000_000)
    }

    fn state(&self) -> &'static str {
        match self.sandbox.state() {
            PodSandboxState::SandboxReady => "ready",
            PodSandboxState::SandboxNotready => "not ready",
        }
    }

    fn uptime(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(Duration::from_nanos(u64::try_from(self.sandbox.created_at).unwrap_or(0)))
    }

    fn object(&self) -> Value {
        json!({
            "id": self.sandbox.id,
            "namespace": self.metadata.namespace,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
            "handler": self.sandbox.runtime_handler,
            "state": self.state(),
            "containers": self.containers,
            "running": self.running,
            "restarts": self.restarts,
            "memoryBytes": self.memory(),
            "cpuMillicores": self.millicores(),
            "guest": self.guest.map(|guest| json!({"memoryMib": guest.memory_mib, "vcpus": guest.vcpus})),
            "createdAtUnixNanos": self.sandbox.created_at,
        })
    }
}

fn table(pods: &[Pod]) -> Table {
    const COLUMNS: [&str; 11] =
        ["NAMESPACE", "NAME", "HANDLER", "STATE", "RUNNING", "RESTARTS", "MEMORY", "CPU", "GUEST", "UPTIME", "ID"];
    let mut table = Table::new(&COLUMNS);
    for pod in pods {
        let guest = pod.guest.map(|guest| format!("{} {} vCPU", bytes(u64::from(guest.memory_mib) << 20), guest.vcpus));
        let ready = pod.sandbox.state() == PodSandboxState::SandboxReady;
        table.row(vec![
            plain(&pod.metadata.namespace),
            plain(&pod.metadata.name),
            plain(&pod.sandbox.runtime_handler),
            pod.state().into(),
            format!("{}/{}", pod.running, pod.containers),
            pod.restarts.to_string(),
            pod.memory().map_or("-".into(), bytes),
            pod.millicores().map_or("-".into(), |cpu| format!("{cpu}m")),
            guest.unwrap_or_else(|| "-".into()),
            if ready { span(pod.uptime()) } else { "-".into() },
            pod.sandbox.id.chars().take(13).collect(),
        ]);
    }
    table
}

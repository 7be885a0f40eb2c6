//! Asks the pods, many at once, none for long: who does not answer is left out, so that one pod cannot blind the kubelet to the others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::{ContainerStatsReply, PodStatsRequest};
use cofferdam_sandbox::{Kind, Pod as Sandbox, PodUsage};
use futures::{StreamExt, stream};

use super::bounds::Bounds;
use crate::error::{CriError, During, message};
use crate::ids::now_nanos;
use crate::node::{Container, Node, Pod};
use crate::records::{PodPhase, PodRecord};

/// How long one pod may take. A guest whose CPUs are taken by others still answers in that.
const LIMIT: Duration = Duration::from_secs(4);
/// How many are asked at once.
const AT_ONCE: usize = 32;

/// What one pod uses.
pub(crate) struct Measured {
    pub(crate) pod: Arc<Pod>,
    pub(crate) record: PodRecord,
    /// When, nanoseconds since the epoch.
    pub(crate) at: i64,
    pub(crate) usage: PodUsage,
    /// Its containers as its agent tells, within bounds; ended ones too.
    pub(crate) containers: Vec<(Arc<Container>, ContainerStatsReply)>,
    /// The pod's cgroup below the root.
    pub(crate) cgroup: String,
    /// Where its writable layers are, on the node.
    pub(crate) backing: String,
}

/// Measures the pods that are ready and that `wanted` picks.
pub(crate) async fn pods(node: &Arc<Node>, wanted: impl Fn(&PodRecord) -> bool, processes: bool) -> Vec<Measured> {
    let ready = |pod: &Arc<Pod>| pod.with(|r| r.phase == PodPhase::Ready && wanted(r));
    let chosen: Vec<_> = node.pods().into_iter().filter(ready).collect();
    some(node, chosen, processes).await
}

/// Measures the pods of these containers.
pub(crate) async fn containers(node: &Arc<Node>, chosen: &[Arc<Container>]) -> Vec<Measured> {
    let mut seen = HashSet::new();
    let pods = chosen.iter().map(|c| c.pod.clone()).filter(|pod| seen.insert(pod.id.clone())).collect();
    some(node, pods, false).await
}

async fn some(node: &Arc<Node>, pods: Vec<Arc<Pod>>, processes: bool) -> Vec<Measured> {
    let asked = pods.into_iter().map(|pod| {
        let node = node.clone();
        async move {
            let answer = one(&node, &pod, processes).await;
            answer.inspect_err(|e| tracing::warn!(pod = %pod.id, error = message(e), "no statistics of a pod")).ok()
        }
    });
    stream::iter(asked).buffer_unordered(AT_ONCE).filter_map(|m| async { m }).collect().await
}

/// Measures one pod; with `processes`, open files and sockets too.
pub(crate) async fn one(node: &Node, pod: &Arc<Pod>, processes: bool) -> Result<Measured, CriError> {
    let sandbox = pod.sandbox()?;
    let of_node = async { sandbox.usage().await.during(|| format!("measure pod {}", pod.id)) };
    let of_agent = pod.ask("measure the containers of a pod", LIMIT, |mut agent| async move {
        agent.pod_stats(PodStatsRequest { processes }).await
    });
    let (usage, told) = futures::try_join!(of_node, of_agent)?;
    let (at, record) = (now_nanos(), pod.record());
    let bounds = bounds(&sandbox, &record, at).await;
    let mut told = told.containers;
    // A guest names ids freely: what it says of unknown ones, or twice, is dropped.
    let containers = node.containers_of(&pod.id).into_iter().filter_map(|container| {
        let place = told.iter().position(|reply| reply.id == container.id)?;
        let mut reply = told.swap_remove(place);
        bounds.apply(&mut reply);
        Some((container, reply))
    });
    let containers = containers.collect();
    let (cgroup, backing) = (sandbox.cgroup().to_owned(), sandbox.backing().to_string_lossy().into_owned());
    Ok(Measured { pod: pod.clone(), record, at, usage, containers, cgroup, backing })
}

async fn bounds(sandbox: &Sandbox, record: &PodRecord, at: i64) -> Bounds {
    if sandbox.kind() == Kind::Host {
        return Bounds::NODE;
    }
    let most = sandbox.most();
    let age = u64::try_from(at.saturating_sub(record.created_at)).unwrap_or(0);
    Bounds {
        cpu_nanos: age.saturating_mul(most.vcpus.into()),
        memory: u64::from(most.memory_mib) << 20,
        disk: sandbox.disk_size().await.unwrap_or(0),
    }
}

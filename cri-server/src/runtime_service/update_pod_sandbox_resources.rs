//! UpdatePodSandboxResources: the kubelet asks before it changes the pod's cgroup, and gives the resize up when the answer is an error.
//!
//! A host pod's limits are that cgroup, so nothing is left to do. A microVM's vCPUs and memory follow, together or not at all.

use std::sync::Arc;

use cofferdam_proto::cri;
use cofferdam_sandbox::{Pod as Sandbox, VmSize, guest_mib};
use futures::FutureExt;

use super::detached;
use crate::config::node_cpus;
use crate::error::{CriError, During};
use crate::node::{Node, Pod};
use crate::records::ResourcesRecord;
use crate::translate::resources::{self, pod_memory_mib, status, vm_size};

pub(super) async fn call(
    node: &Arc<Node>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, CriError> {
    let pod = node.known_pod(&request.pod_sandbox_id)?;
    let node = node.clone();
    // The guest's size and the record change together, whether the caller waits or not.
    let work = async move { update(&node, &pod, &request).await };
    detached::run("update a pod sandbox", work, |()| async {}.boxed()).await?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}

async fn update(
    node: &Arc<Node>,
    pod: &Arc<Pod>,
    request: &cri::UpdatePodSandboxResourcesRequest,
) -> Result<(), CriError> {
    let _working = pod.work.lock().await;
    let sandbox = pod.sandbox()?;
    let new = |asked: &Option<cri::LinuxContainerResources>, before: Option<ResourcesRecord>| match asked {
        Some(asked) => Some(resources::merge(&before.unwrap_or_default(), asked)),
        None => before,
    };
    let before = pod.with(|r| (r.resources.clone(), r.overhead.clone()));
    let after = (new(&request.resources, before.0.clone()), new(&request.overhead, before.1.clone()));
    if let Some(started) = sandbox.vm_size() {
        let size = size(node.config.vm_size, started, &before, &after, node_cpus());
        // What the limits of the whole pod leave open, those of its containers say.
        let size = size.at_least(pod.least_for_containers(node, &sandbox, after.0.as_ref()));
        tokio::select! {
            done = sandbox.resize(size) => done.during(|| title(&sandbox))?,
            () = pod.stopping.cancelled() => return Err(CriError::State(format!("pod {} is being stopped", pod.id))),
        }
    }
    pod.change(|r| (r.resources, r.overhead) = after);
    pod.save_or_later(node).await;
    Ok(())
}

fn title(sandbox: &Sandbox) -> String {
    format!("change the size of pod {}", sandbox.id())
}

/// What a pod's containers may use together, and its overhead.
type Limits = (Option<ResourcesRecord>, Option<ResourcesRecord>);

/// The size that a guest which `started` so is to have now. Whether it can, the sandbox knows.
fn size(least: VmSize, started: VmSize, before: &Limits, after: &Limits, node_cpus: u8) -> VmSize {
    let limits = |(limits, overhead): &Limits| (limits.as_ref().map(status), overhead.as_ref().map(status));
    let pod_mib = |(limits, overhead): &Limits| {
        let (limits, overhead) = (limits.as_ref().map(status), overhead.as_ref().map(status));
        pod_memory_mib(limits.as_ref(), overhead.as_ref())
    };
    // The configuration's least may have been another when the pod started.
    let least = VmSize { vcpus: least.vcpus.min(started.vcpus), memory_mib: least.memory_mib.min(started.memory_mib) };
    let (resources, overhead) = limits(after);
    let size = vm_size(least, resources.as_ref(), overhead.as_ref(), node_cpus);
    match (pod_mib(before), pod_mib(after)) {
        // The pod's cgroup is about to become smaller than the guest would be with the configured least: that has to be refused.
        (before, Some(now)) if before.is_none_or(|before| now < before) => {
            VmSize { memory_mib: guest_mib(now), ..size }
        }
        _ => size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_follows_its_pod_down_to_the_configured_least() {
        let limits = |mib: i64, quota| ResourcesRecord {
            memory_limit: mib << 20,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let least = VmSize { vcpus: 1, memory_mib: 256 };
        let started = VmSize { vcpus: 2, memory_mib: 512 };
        let size = |limits: ResourcesRecord, overhead: Option<ResourcesRecord>| {
            let before = (Some(limits.clone()), None);
            let VmSize { vcpus, memory_mib } = size(least, started, &before, &(Some(limits), overhead), 4);
            (vcpus, memory_mib)
        };
        assert_eq!(size(limits(1024, 200_000), None), (2, 1004));
        assert_eq!(size(limits(1024, 250_000), None), (3, 1004));
        assert_eq!(size(limits(300, 50_000), None), (1, 285), "fewer than it started with");
        assert_eq!(size(limits(1024, 200_000), Some(limits(64, 100_000))), (3, 1067));
        assert_eq!(size(limits(1024, 900_000), None), (4, 1004), "no more than the node has");
        assert_eq!(size(limits(0, -1), None), (1, 256), "no limits any more");
    }

    #[test]
    fn a_limit_that_becomes_less_than_the_guest_is_not_hidden_by_the_configured_least() {
        let limits = |mib: i64| (Some(ResourcesRecord { memory_limit: mib << 20, ..Default::default() }), None);
        let started = VmSize { vcpus: 1, memory_mib: 256 };
        let memory = |before, after| size(started, started, &before, &after, 1).memory_mib;
        assert_eq!(memory((None, None), limits(128)), 115);
        assert_eq!(memory(limits(512), limits(128)), 115);
        assert_eq!(memory(limits(64), limits(128)), 256, "a pod that grows keeps at least what it has");
        assert_eq!(memory(limits(512), limits(1024)), 1004);
    }

    #[test]
    fn a_least_that_was_raised_since_the_start_grows_nothing() {
        let (least, started) = (VmSize { vcpus: 4, memory_mib: 4096 }, VmSize { vcpus: 1, memory_mib: 256 });
        assert_eq!(size(least, started, &(None, None), &(None, None), 8), started);
    }
}

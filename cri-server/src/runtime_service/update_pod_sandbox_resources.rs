//! UpdatePodSandboxResources: the kubelet asks before it changes the pod's cgroup, and gives the resize up when the answer is an error.
//!
//! A host pod's limits are that cgroup, so nothing is left to do. A microVM's vCPUs and memory follow, together or not at all.

use std::sync::Arc;

use cofferdam_proto::cri;
use cofferdam_sandbox::{Pod as Sandbox, VmSize};
use futures::FutureExt;

use super::detached;
use crate::config::node_cpus;
use crate::error::{CriError, During};
use crate::node::{Node, Pod};
use crate::records::ResourcesRecord;
use crate::translate::resources;

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
    let (limits, overhead) = (new(&request.resources, before.0), new(&request.overhead, before.1));
    if let Some(started) = sandbox.vm_size() {
        let size = size(node.config.vm_size, started, limits.as_ref(), overhead.as_ref(), node_cpus());
        tokio::select! {
            done = sandbox.resize(size) => done.during(|| title(&sandbox))?,
            () = pod.stopping.cancelled() => return Err(CriError::State(format!("pod {} is being stopped", pod.id))),
        }
    }
    pod.change(|r| (r.resources, r.overhead) = (limits, overhead));
    pod.save_or_later(node).await;
    Ok(())
}

fn title(sandbox: &Sandbox) -> String {
    format!("change the size of pod {}", sandbox.id())
}

/// The size that a guest which `started` so is to have now. Whether it can, the sandbox knows.
fn size(
    least: VmSize,
    started: VmSize,
    limits: Option<&ResourcesRecord>,
    overhead: Option<&ResourcesRecord>,
    node_cpus: u8,
) -> VmSize {
    // The configuration's least may have been another when the pod started.
    let least = VmSize { vcpus: least.vcpus.min(started.vcpus), memory_mib: least.memory_mib.min(started.memory_mib) };
    let (limits, overhead) = (limits.map(resources::status), overhead.map(resources::status));
    resources::vm_size(least, limits.as_ref(), overhead.as_ref(), node_cpus)
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
            let VmSize { vcpus, memory_mib } = size(least, started, Some(&limits), overhead.as_ref(), 4);
            (vcpus, memory_mib)
        };
        assert_eq!(size(limits(1024, 200_000), None), (2, 1024));
        assert_eq!(size(limits(1024, 250_000), None), (3, 1024));
        assert_eq!(size(limits(300, 50_000), None), (1, 300), "fewer than it started with");
        assert_eq!(size(limits(1024, 200_000), Some(limits(64, 100_000))), (3, 1088));
        assert_eq!(size(limits(1024, 900_000), None), (4, 1024), "no more than the node has");
        assert_eq!(size(limits(0, -1), None), (1, 256), "no limits any more");
    }

    #[test]
    fn a_least_that_was_raised_since_the_start_grows_nothing() {
        let (least, started) = (VmSize { vcpus: 4, memory_mib: 4096 }, VmSize { vcpus: 1, memory_mib: 256 });
        assert_eq!(size(least, started, None, None, 8), started);
    }
}

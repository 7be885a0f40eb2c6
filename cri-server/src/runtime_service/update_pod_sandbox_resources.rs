//! UpdatePodSandboxResources: the kubelet asks before it changes the pod's cgroup, and gives the resize up when the answer is an error.
//!
//! A host pod's limits are that cgroup, so nothing is left to do. A microVM's memory follows; its vCPUs stay, and the cgroup's
//! quota holds them.

use std::sync::Arc;

use cofferdam_proto::cri;
use cofferdam_sandbox::{Pod as Sandbox, VmSize};
use futures::FutureExt;

use super::detached;
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
        let size = size(node.config.vm_size, started, limits.as_ref(), overhead.as_ref())?;
        tokio::select! {
            done = sandbox.resize_memory(size.memory_mib) => done.during(|| title(&sandbox))?,
            () = pod.stopping.cancelled() => return Err(CriError::State(format!("pod {} is being stopped", pod.id))),
        }
    }
    pod.change(|r| (r.resources, r.overhead) = (limits, overhead));
    pod.save(node).await
}

fn title(sandbox: &Sandbox) -> String {
    format!("change the memory of pod {}", sandbox.id())
}

/// The size that a guest which `started` so is to have now.
fn size(
    least: VmSize,
    started: VmSize,
    limits: Option<&ResourcesRecord>,
    overhead: Option<&ResourcesRecord>,
) -> Result<VmSize, CriError> {
    // The configuration's least may have been another when the pod started.
    let least = VmSize { vcpus: least.vcpus.min(started.vcpus), memory_mib: least.memory_mib.min(started.memory_mib) };
    let (limits, overhead) = (limits.map(resources::status), overhead.map(resources::status));
    let node_cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let size = resources::vm_size(least, limits.as_ref(), overhead.as_ref(), node_cpus);
    if size.vcpus > started.vcpus {
        return Err(CriError::State(format!(
            "the pod's guest has {} vCPUs since it started and cannot have {}: start it anew, or raise vm.vcpus for pods that start later",
            started.vcpus, size.vcpus
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_keeps_its_processors_and_its_memory_follows() {
        let limits = |mib: i64, quota| ResourcesRecord {
            memory_limit: mib << 20,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let (least, started) = (VmSize { vcpus: 1, memory_mib: 256 }, VmSize { vcpus: 1, memory_mib: 512 });
        let memory = |r: &ResourcesRecord| size(least, started, Some(r), None).map(|s| s.memory_mib);
        assert_eq!(memory(&limits(1024, 50_000)).unwrap(), 1024);
        assert_eq!(memory(&limits(300, 100_000)).unwrap(), 300);
        assert_eq!(size(least, started, Some(&limits(1024, 0)), Some(&limits(64, 0))).unwrap().memory_mib, 1088);
        if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
            let error = memory(&limits(512, 150_000)).unwrap_err().to_string();
            assert!(error.contains("has 1 vCPUs") && error.contains("cannot have 2"), "{error}");
        }
    }
}

//! A microVM grows with the containers that it gets, where nobody said before what all of them may use.
//!
//! RunPodSandbox tells the sums of a pod's limits only if each of its containers has one. Otherwise the limits are known one by one, with
//! each CreateContainer, and a container without one counts as the configured share of the node.

use cofferdam_proto::cri::LinuxContainerResources;
use cofferdam_sandbox::{Pod as Sandbox, VmSize};

use super::{Container, Node, Pod};
use crate::config::{node_cpus, node_memory_mib};
use crate::error::chain;
use crate::records::{ContainerPhase, ResourcesRecord};
use crate::translate::resources::{cpu_millis, pod_memory_mib, status};

/// What the guest's kernel and agent take of its memory, MiB.
const GUEST_OWN_MIB: u32 = 48;

/// What a container without a limit counts as, and what no guest exceeds.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Zero of both where such a container adds nothing.
    unlimited: VmSize,
    most: VmSize,
}

/// The share of a node with `node_mib` and `node_cpus` that a container without limits counts as. Two vCPUs at least: with one, a
/// program that spins would keep all others of its pod waiting.
fn share(percent: u8, most_mib: u32, node_mib: u32, node_cpus: u8) -> VmSize {
    if percent == 0 {
        return VmSize::default();
    }
    let mib = u64::from(node_mib) * u64::from(percent) / 100;
    let vcpus = (u32::from(node_cpus) * u32::from(percent)).div_ceil(100);
    VmSize {
        memory_mib: u32::try_from(mib).unwrap_or(u32::MAX).min(most_mib),
        vcpus: u8::try_from(vcpus).unwrap_or(u8::MAX).max(2).min(node_cpus),
    }
}

impl Bounds {
    fn of(node: &Node, sandbox: &Sandbox) -> Self {
        let config = &node.config;
        let (percent, most_mib) = (config.unlimited_memory_percent, config.unlimited_memory_max_mib);
        let unlimited = share(percent, most_mib, node_memory_mib(), node_cpus());
        let most = sandbox.most();
        Self { unlimited, most: VmSize { vcpus: most.vcpus.min(node_cpus()), ..most } }
    }
}

/// The least that the guest of a pod with these containers has to have; zero of what the limits of the whole pod decide.
fn least(whole: Option<&ResourcesRecord>, containers: &[ResourcesRecord], bounds: Bounds) -> VmSize {
    let limits: Vec<LinuxContainerResources> = containers.iter().map(status).collect();
    let whole = whole.map(status);
    let mut least = VmSize::default();
    if limits.is_empty() {
        return least;
    }
    if pod_memory_mib(whole.as_ref(), None).is_none() {
        let mib =
            |limit: &LinuxContainerResources| pod_memory_mib(Some(limit), None).unwrap_or(bounds.unlimited.memory_mib);
        let sum = limits.iter().map(mib).fold(GUEST_OWN_MIB, u32::saturating_add);
        least.memory_mib = sum.min(bounds.most.memory_mib);
    }
    if whole.as_ref().and_then(cpu_millis).is_none() {
        let unlimited = i64::from(bounds.unlimited.vcpus.max(1)) * 1000;
        let millis = |limit: &LinuxContainerResources| cpu_millis(limit).unwrap_or(unlimited);
        let sum = limits.iter().map(millis).fold(0, i64::saturating_add);
        let vcpus = u8::try_from(sum.saturating_add(999) / 1000).unwrap_or(u8::MAX);
        // Without any limit there is nothing to add up, and one is what it has.
        let limited = bounds.unlimited.vcpus > 0 || limits.iter().any(|limit| cpu_millis(limit).is_some());
        least.vcpus = if limited { vcpus.min(bounds.most.vcpus) } else { 0 };
    }
    least
}

impl Pod {
    /// The least that the pod's guest has to have for its containers, where the limits of the `whole` pod do not say.
    pub(crate) fn least_for_containers(
        &self,
        node: &Node,
        sandbox: &Sandbox,
        whole: Option<&ResourcesRecord>,
    ) -> VmSize {
        let there = |c: &Container| c.with(|r| r.is_live() || r.phase == ContainerPhase::Creating);
        let containers = node.containers_of(&self.id);
        let limits: Vec<ResourcesRecord> = containers
            .iter()
            .filter(|c| there(c))
            .map(|c| c.with(|r| r.resources.clone().unwrap_or_default()))
            .collect();
        least(whole, &limits, Bounds::of(node, sandbox))
    }

    /// Has the guest grow to what its containers need. Best effort: what it cannot have, its containers do without.
    pub(crate) async fn grow(&self, node: &Node, sandbox: &Sandbox) {
        let whole = self.with(|r| r.resources.clone());
        let least = self.least_for_containers(node, sandbox, whole.as_ref());
        if let Err(error) = sandbox.grow(least).await {
            tracing::warn!(pod = %self.id, ?least, error = chain(&error), "the guest did not grow with its containers");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const BOUNDS: Bounds =
        Bounds { unlimited: VmSize { vcpus: 2, memory_mib: 500 }, most: VmSize { vcpus: 4, memory_mib: 2000 } };

    fn limits(mib: i64, millis: i64) -> ResourcesRecord {
        ResourcesRecord { memory_limit: mib << 20, cpu_quota: millis * 100, cpu_period: 100_000, ..Default::default() }
    }

    fn of(whole: Option<ResourcesRecord>, containers: &[ResourcesRecord]) -> (u8, u32) {
        let VmSize { vcpus, memory_mib } = least(whole.as_ref(), containers, BOUNDS);
        (vcpus, memory_mib)
    }

    #[test]
    fn limits_add_up_and_a_container_without_one_counts_as_a_share() {
        assert_eq!(of(None, &[]), (0, 0));
        assert_eq!(of(None, &[limits(600, 500), limits(100, 700)]), (2, 748));
        assert_eq!(of(None, &[limits(600, 500), limits(0, 0)]), (3, 1148), "a sidecar without limits");
        assert_eq!(of(None, &[limits(0, 0)]), (2, 548), "BestEffort");
        assert_eq!(of(None, &[limits(-1, -1)]), (2, 548));
        assert_eq!(of(None, &[limits(1500, 9000), limits(0, 100)]), (4, 2000), "no more than it can have");
        assert_eq!(of(None, &[limits(i64::MAX >> 20, i64::MAX / 100)]), (4, 2000));
    }

    #[test]
    fn a_share_is_of_the_node_and_bounded() {
        let of = |percent, mib, cpus| {
            let VmSize { vcpus, memory_mib } = share(percent, 2048, mib, cpus);
            (vcpus, memory_mib)
        };
        assert_eq!(of(25, 4000, 4), (2, 1000));
        assert_eq!(of(25, 64_000, 16), (4, 2048));
        assert_eq!(of(25, 4000, 1), (1, 1000), "no more than the node has");
        assert_eq!(of(100, u32::MAX, u8::MAX), (u8::MAX, 2048));
        assert_eq!(of(0, 4000, 4), (0, 0));
    }

    #[test]
    fn without_a_share_a_container_without_limits_takes_nothing_from_the_others() {
        let bounds = Bounds { unlimited: VmSize::default(), ..BOUNDS };
        let of = |containers: &[ResourcesRecord]| least(None, containers, bounds);
        assert_eq!(of(&[limits(0, 0), limits(0, 0)]), VmSize { vcpus: 0, memory_mib: 48 });
        assert_eq!(of(&[limits(600, 1500), limits(0, 0)]), VmSize { vcpus: 3, memory_mib: 648 });
    }

    #[test]
    fn what_was_said_of_the_whole_pod_counts() {
        assert_eq!(of(Some(limits(64, 500)), &[limits(600, 3000)]), (0, 0));
        assert_eq!(of(Some(limits(0, 500)), &[limits(600, 3000)]), (0, 648));
        assert_eq!(of(Some(limits(64, 0)), &[limits(600, 3000)]), (3, 0));
    }
}

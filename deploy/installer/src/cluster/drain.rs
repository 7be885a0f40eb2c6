//! Cordons and drains a node as `kubectl drain --ignore-daemonsets --delete-emptydir-data` does:
//! through the eviction API, which keeps PodDisruptionBudgets; but within a time, and with a cordon
//! that is undone only if it is the installer's own.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{EvictParams, ListParams};
use serde_json::{Value, json};

use super::CORDONED;
use super::api::{Cluster, said};
use crate::error::{Result, refuse};

/// What becomes of a pod when its node is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It stays: the kubelet makes it anew on the other runtime, or it has ended.
    Stays,
    /// It is evicted, and its controller makes it anew elsewhere.
    Evicted,
    /// Nobody would make it anew.
    Blocks,
}

/// Keeps new pods away, unless an administrator has done so already.
pub(crate) async fn cordon(cluster: &Cluster, node: &Node) -> Result<()> {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Ok(());
    }
    cluster.patch(json!({"metadata": {"annotations": {CORDONED: "true"}}, "spec": {"unschedulable": true}})).await
}

/// Lets new pods in again, if the installer keeps them away.
pub(crate) async fn uncordon(cluster: &Cluster, node: &Node) -> Result<()> {
    if !node.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(CORDONED)) {
        return Ok(());
    }
    cluster
        .patch(json!({"metadata": {"annotations": {CORDONED: Value::Null}}, "spec": {"unschedulable": Value::Null}}))
        .await
}

/// Evicts what can be evicted, and waits until it is gone. `own` is the pod of this program, where
/// it is no DaemonSet's.
///
/// # Errors
/// When a pod stands in the way: one without a controller, at once, or one that is there after
/// `limit`.
pub(crate) async fn drain(cluster: &Cluster, own: Option<&str>, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let selector = ListParams::default().fields(&format!("spec.nodeName={}", cluster.node));
    loop {
        let all = Api::<Pod>::all(cluster.client.clone());
        let pods = said(all.list(&selector).await, || format!("list the pods of node {}", cluster.node))?.items;
        let is_own = |pod: &Pod| {
            own.is_some()
                && pod.metadata.name.as_deref() == own
                && pod.metadata.namespace.as_deref() == Some(cluster.namespace.as_str())
        };
        let of = |fate| pods.iter().filter(move |pod| !is_own(pod) && fate_of(pod) == fate).collect::<Vec<_>>();
        if let Some(pod) = of(Fate::Blocks).first() {
            return refuse(format!(
                "pod {} has no controller that would make it anew elsewhere; delete it, or move it, first",
                name_of(pod)
            ));
        }
        let left = of(Fate::Evicted);
        let Some(first) = left.first() else { return Ok(()) };
        if Instant::now() > deadline {
            return refuse(format!(
                "{} pods are still there after {} s, {} among them; is there a PodDisruptionBudget that allows no eviction?",
                left.len(),
                limit.as_secs(),
                name_of(first)
            ));
        }
        for pod in &left {
            evict(cluster, pod).await?;
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn evict(cluster: &Cluster, pod: &Pod) -> Result<()> {
    let (Some(name), Some(namespace)) = (&pod.metadata.name, &pod.metadata.namespace) else { return Ok(()) };
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    match pods.evict(name, &EvictParams::default()).await {
        // 429: a budget allows none now. 404: it is gone.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 429) => Ok(()),
        other => said(other, || format!("evict pod {namespace}/{name}")).map(drop),
    }
}

fn fate_of(pod: &Pod) -> Fate {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|map| map.contains_key("kubernetes.io/config.mirror"));
    if mirror || matches!(phase, "Succeeded" | "Failed") {
        return Fate::Stays;
    }
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    match owners.iter().find(|owner| owner.controller == Some(true)) {
        Some(owner) if owner.kind == "DaemonSet" => Fate::Stays,
        Some(_) => Fate::Evicted,
        // Somebody deletes it already.
        None if pod.metadata.deletion_timestamp.is_some() => Fate::Evicted,
        None => Fate::Blocks,
    }
}

fn name_of(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    format!("{}/{name}", pod.metadata.namespace.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_made_anew_is_evicted() {
        let owner =
            |kind: &str| json!([{"apiVersion": "apps/v1", "kind": kind, "name": "x", "uid": "1", "controller": true}]);
        for (pod, fate) in [
            (json!({"metadata": {"ownerReferences": owner("ReplicaSet")}}), Fate::Evicted),
            (json!({"metadata": {"ownerReferences": owner("DaemonSet")}}), Fate::Stays),
            (
                json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "a"}, "ownerReferences": owner("Node")}}),
                Fate::Stays,
            ),
            (json!({"metadata": {}, "status": {"phase": "Succeeded"}}), Fate::Stays),
            (json!({"metadata": {}, "status": {"phase": "Running"}}), Fate::Blocks),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), Fate::Evicted),
        ] {
            let text = pod.to_string();
            assert_eq!(fate_of(&serde_json::from_value(pod).unwrap()), fate, "{text}");
        }
    }
}

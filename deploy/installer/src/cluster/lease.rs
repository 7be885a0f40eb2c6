//! One node at a time: a Lease whose holder is a node.
//!
//! It does not run out. A node whose switch failed keeps it, so that a switch which fails
//! everywhere stops at its first node; it is free again when an administrator takes the label off
//! that node, has it try again with success, or removes the node.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::api::{Cluster, said};
use super::{CORDONED, SWITCH};
use crate::error::{Doing, Result};

const NAME: &str = "cofferdam-switch";

/// Takes the lease for this node. Returns the node that has it, if that is another one.
pub(crate) async fn take(cluster: &Cluster) -> Result<Option<String>> {
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), &cluster.namespace);
    let found = said(leases.get_opt(NAME).await, || format!("get the lease {NAME}"))?;
    let holder = found.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone()).unwrap_or_default();
    if holder == cluster.node {
        return Ok(None);
    }
    if !holder.is_empty() {
        let node = Api::<Node>::all(cluster.client.clone()).get_opt(&holder).await;
        if needs_it(said(node, || format!("get node {holder}, which has the lease {NAME}"))?.as_ref()) {
            return Ok(Some(holder));
        }
    }
    // The version of what was read goes along, so of two that write one is told of a conflict.
    let version = found.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
    let lease = lease(cluster, &cluster.node, version)?;
    let written = match found {
        None => leases.create(&PostParams::default(), &lease).await,
        Some(_) => leases.replace(NAME, &PostParams::default(), &lease).await,
    };
    match written {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some("another node, since a moment".into())),
        other => said(other, || format!("take the lease {NAME}")).map(|_| None),
    }
}

/// Gives the lease back, if this node has it.
pub(crate) async fn release(cluster: &Cluster) -> Result<()> {
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), &cluster.namespace);
    let Some(found) = said(leases.get_opt(NAME).await, || format!("get the lease {NAME}"))? else { return Ok(()) };
    if found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()) != Some(cluster.node.as_str()) {
        return Ok(());
    }
    let lease = lease(cluster, "", found.metadata.resource_version)?;
    said(leases.replace(NAME, &PostParams::default(), &lease).await, || format!("give the lease {NAME} back")).map(drop)
}

fn lease(cluster: &Cluster, holder: &str, version: Option<String>) -> Result<Lease> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
    serde_json::from_value(json!({
        "metadata": {"name": NAME, "namespace": cluster.namespace, "resourceVersion": version},
        "spec": {"holderIdentity": holder, "acquireTime": now, "renewTime": now},
    }))
    .doing(|| "write a lease".into())
}

/// Whether a node that has the lease still has a use for it.
fn needs_it(node: Option<&Node>) -> bool {
    let Some(node) = node else { return false };
    let labelled = node.metadata.labels.as_ref().and_then(|labels| labels.get(SWITCH)).is_some_and(|v| v == "true");
    // A node that is being uninstalled has no label any more.
    labelled || node.metadata.annotations.as_ref().is_some_and(|map| map.contains_key(CORDONED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_free_when_its_node_has_no_use_for_it() {
        let node = |labels: serde_json::Value, annotations: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": labels, "annotations": annotations}})).unwrap()
        };
        assert!(!needs_it(None));
        assert!(needs_it(Some(&node(json!({SWITCH: "true"}), json!({})))));
        assert!(!needs_it(Some(&node(json!({SWITCH: "false"}), json!({})))));
        assert!(needs_it(Some(&node(json!({}), json!({CORDONED: "true"})))));
    }
}

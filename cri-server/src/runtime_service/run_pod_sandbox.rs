//! RunPodSandbox.

use std::sync::Arc;
use std::time::Instant;

use cofferdam_proto::cri;
use cofferdam_sandbox::{Kind, Timeline};
use futures::FutureExt;

use super::detached;
use crate::error::{CriError, During, chain, message};
use crate::ids::{new_id, now_nanos};
use crate::node::{Node, Pod, watch};
use crate::telemetry;
use crate::translate::pod::{PodPlan, plan};

/// Longest `/etc/resolv.conf` of the node that is taken over.
const MAX_RESOLV_CONF: usize = 64 << 10;

pub(super) async fn call(
    node: &Arc<Node>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, CriError> {
    let began = Instant::now();
    let config = request.config.ok_or_else(|| CriError::invalid("there is no pod sandbox config"))?;
    let id = new_id()?;
    let planned = {
        let (node, id) = (node.clone(), id.clone());
        move || plan(&node.config, &id, &request.runtime_handler, &config, now_nanos())
    };
    let planned = tokio::task::spawn_blocking(planned).await;
    let mut plan = planned.map_err(|e| CriError::internal("check a pod's configuration", e))??;
    telemetry::of_pod(&plan.record);
    if plan.moved {
        let name = format!("{}/{}", plan.record.namespace, plan.record.name);
        tracing::info!(
            pod = %id,
            name,
            namespaces = ?plan.record.namespaces,
            "pod asks for the node's namespaces and runs as a host pod: pods.host_namespaces_in lists its Kubernetes namespace"
        );
    }
    node.probe(plan.spec.kind).await?;
    if plan.node_dns {
        plan.spec.resolv_conf = node_resolv_conf().await;
    }
    node.names.reserve(plan.name.clone(), &id)?;
    let (worker, undoer) = (node.clone(), node.clone());
    let undo = move |pod: Arc<Pod>| {
        async move {
            if let Err(error) = pod.remove(&undoer).await {
                tracing::error!(pod = %pod.id, error = message(&error), "abandoned pod not removed");
            }
        }
        .boxed()
    };
    let pod = detached::run("run a pod sandbox", async move { run(&worker, plan, began).await }, undo).await?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: pod.id.clone() })
}

async fn run(node: &Arc<Node>, plan: PodPlan, began: Instant) -> Result<Arc<Pod>, CriError> {
    let title = plan.record.title();
    let pod = Pod::new(plan.record, None);
    if let Err(error) = pod.save(node).await {
        node.names.release(&pod.id);
        return Err(error);
    }
    let launched = node.runtime.launch(&plan.spec).await;
    let sandbox = match launched {
        Ok(sandbox) => sandbox,
        Err(error) => {
            node.telemetry.failed(plan.spec.kind, &error);
            undo_launch(node, &pod).await;
            return Err(error).during(|| format!("run {title}"));
        }
    };
    node.telemetry.came_up(plan.spec.kind, sandbox.timeline());
    pod.attach(sandbox.clone());
    pod.change(|r| r.launched(sandbox.network().map(|n| n.addresses.clone()).unwrap_or_default()));
    node.add_pod(pod.clone());
    if let Err(error) = pod.save(node).await {
        pod.remove(node).await.ok();
        return Err(error);
    }
    watch::start(node.clone(), pod.clone(), sandbox.clone());
    tell(&pod, plan.spec.kind, sandbox.timeline(), began);
    Ok(pod)
}

/// The sandbox undid its own work; what it could not undo stays as a pod that is not ready, for the kubelet to remove.
async fn undo_launch(node: &Arc<Node>, pod: &Arc<Pod>) {
    if let Err(error) = node.runtime.remove(&pod.id).await {
        tracing::error!(pod = %pod.id, error = chain(&error), "failed pod not cleaned up");
        pod.change(|r| r.not_ready(&chain(&error)));
        node.add_pod(pod.clone());
        pod.save_or_later(node).await;
        return;
    }
    pod.forget(node).await;
}

/// Says where the time went, in one event; `make bench` reads it for docs/benchmarks.md.
fn tell(pod: &Pod, kind: Kind, timeline: &Timeline, began: Instant) {
    let handler = if kind == Kind::Vm { "vm" } else { "host" };
    let elapsed_ms = began.elapsed().as_millis() as u64;
    let name = pod.with(|r| format!("{}/{}", r.namespace, r.name));
    tracing::info!(pod = %pod.id, name, %handler, elapsed_ms, ?timeline, "pod started");
}

async fn node_resolv_conf() -> String {
    match tokio::fs::read_to_string("/etc/resolv.conf").await {
        Ok(text) if text.len() <= MAX_RESOLV_CONF => text,
        _ => String::new(),
    }
}

//! CreateContainer.

mod disks;
mod volumes;

use std::sync::Arc;
use std::time::Instant;

use cofferdam_proto::agent::{CreateContainerRequest, IMAGE_VOLUMES_SINCE};
use cofferdam_proto::cri;
use cofferdam_sandbox::{Kind, Pod as Sandbox, SPANS, step};
use futures::FutureExt;
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use super::detached;
use crate::error::{CriError, During, chain, message};
use crate::ids::{new_id, now_nanos};
use crate::node::agent::WORK;
use crate::node::names::Name;
use crate::node::{Container, Node, Pod, shorten};
use crate::records::{ContainerRecord, PodRecord, UserRecord};
use crate::telemetry;
use crate::translate::container::{ContainerPlan, plan};
use crate::translate::pod::as_sent;
use crate::translate::{inspect, oom};

pub(super) async fn call(
    node: &Arc<Node>,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, CriError> {
    let began = Instant::now();
    let pod = node.known_pod(&request.pod_sandbox_id)?;
    pod.with(telemetry::of_pod);
    pod.sandbox()?;
    let config = request.config.ok_or_else(|| CriError::invalid("there is no container config"))?;
    let id = new_id()?;
    let config = Arc::new(config);
    let plan = {
        let (node, id, config) = (node.clone(), id.clone(), config.clone());
        let pod = as_sent(pod.record(), request.sandbox_config.as_ref())?;
        let planned = tokio::task::spawn_blocking(move || check(&node, &pod, &id, &config));
        planned.await.map_err(|e| CriError::internal("check a container's configuration", e))??
    };
    telemetry::of_container(&plan.record);
    let name = Name::Container { pod: pod.id.clone(), name: plan.record.name.clone(), attempt: plan.record.attempt };
    node.names.reserve(name, &id)?;
    let (worker, undoer) = (node.clone(), node.clone());
    let undo = move |container: Arc<Container>| {
        async move {
            let _working = container.pod.work.lock().await;
            if let Err(error) = container.remove_locked(&undoer).await {
                tracing::error!(container = %container.id, error = message(&error), "abandoned container not removed");
            }
        }
        .boxed()
    };
    let work = async move { create(&worker, pod, plan, &config, began).await };
    let container = detached::run("create a container", work, undo).await?;
    Ok(cri::CreateContainerResponse { container_id: container.id.clone() })
}

fn check(node: &Node, pod: &PodRecord, id: &str, config: &cri::ContainerConfig) -> Result<ContainerPlan, CriError> {
    let reference = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
    if reference.is_empty() {
        return Err(CriError::invalid("container config names no image"));
    }
    let image =
        node.store.status(reference)?.ok_or_else(|| CriError::NotFound(format!("image {:?}", shorten(reference))))?;
    let mut plan = plan(id, pod, config, &image, now_nanos())?;
    volumes::find_images(node, &mut plan)?;
    Ok(plan)
}

async fn create(
    node: &Arc<Node>,
    pod: Arc<Pod>,
    plan: ContainerPlan,
    asked: &cri::ContainerConfig,
    began: Instant,
) -> Result<Arc<Container>, CriError> {
    let _working = pod.work.lock().await;
    let container = Container::new(plan.record.clone(), pod.clone());
    let saved = async {
        let sandbox = pod.sandbox()?;
        container.save(node).await?;
        Ok::<_, CriError>(sandbox)
    };
    let sandbox = match saved.await {
        Ok(sandbox) => sandbox,
        Err(error) => {
            node.names.release(&container.id);
            return Err(error);
        }
    };
    // From here on the watcher and a removal of the pod find it; list calls leave it out while it
    // is being made.
    node.add_container(container.clone());
    let _quota = pod.without_quota(node, &sandbox).await;
    match build(node, &container, &sandbox, plan, asked, began).await {
        Ok(()) => Ok(container),
        Err(error) => {
            match container.undo(node).await {
                Ok(()) => container.forget(node).await,
                Err(second) => {
                    // The record stays: a removal of the pod, or the next start-up, tries again.
                    let second = message(&second);
                    tracing::error!(container = %container.id, error = second, "failed container not cleaned up");
                    node.names.release(&container.id);
                }
            }
            Err(error)
        }
    }
}

/// Has a microVM's monitor rated as its containers are: what the kubelet says of them tells more
/// than the name of the pod's cgroup did.
async fn rate(node: &Node, pod: &Pod, sandbox: &Sandbox) {
    let live = node.containers_of(&pod.id).into_iter().filter(|c| c.with(|r| r.is_live()));
    let scores = live.map(|c| c.with(|r| r.resources.as_ref().map_or(0, |r| r.oom_score_adj)));
    let Some(score) = oom::of_containers(scores) else { return };
    if let Err(error) = sandbox.set_oom_score_adj(score).await {
        tracing::warn!(pod = %pod.id, score, error = chain(&error), "the monitor keeps its oom_score_adj");
    }
}

/// Says what an agent of an older version leaves out of `request`. The container is made all the
/// same, as it was before the upgrade.
async fn warn_of_older_agent(container: &Container, sandbox: &Sandbox, request: &CreateContainerRequest) {
    if !request.image_volumes.is_empty() && matches!(sandbox.agent_api().await, Ok(api) if api < IMAGE_VOLUMES_SINCE) {
        let (pod, container) = (&container.pod.id, &container.id);
        tracing::warn!(%pod, %container, "no volumes as the image declares them: the pod's agent is of a version that has none");
    }
}

/// Has the store keep the layers of the container's image, and the pod see them: their names there,
/// topmost first.
async fn show_layers(
    node: &Node,
    id: &str,
    sandbox: &Sandbox,
    record: &ContainerRecord,
) -> Result<Vec<String>, CriError> {
    let (store, image, holder) = (node.store.clone(), record.image_id.clone(), id.to_owned());
    let leased = tokio::task::spawn_blocking(move || store.lease(&image, &holder)).await;
    let layers = leased
        .map_err(|e| CriError::internal("lease image layers", e))?
        .during(|| format!("use the layers of image {}", record.image))?;
    let mut lower = Vec::new();
    for dir in &layers.dirs {
        let seen = sandbox.export_layer(id, dir, true).await;
        lower.push(seen.during(|| format!("show layer {} to the pod", dir.display()))?);
    }
    Ok(lower)
}

async fn build(
    node: &Arc<Node>,
    container: &Arc<Container>,
    sandbox: &Sandbox,
    plan: ContainerPlan,
    asked: &cri::ContainerConfig,
    began: Instant,
) -> Result<(), CriError> {
    let id = &container.id;
    let mut request = plan.request;
    container.pod.grow(node, sandbox).instrument(info_span!(target: SPANS, "guest grow")).await;
    let span = info_span!(target: SPANS, "layers show", otel.status_code = Empty);
    request.lower = step(span, show_layers(node, id, sandbox, &plan.record)).await?;
    let span = info_span!(target: SPANS, "volumes show", otel.status_code = Empty);
    let uid = container.pod.with(|record| record.uid.clone());
    let shown = async {
        let mut swapped = Vec::new();
        for volume in plan.volumes {
            let mut shown = volumes::show(node, sandbox, (id, &uid), volume).await?;
            request.mounts.append(&mut shown.mounts);
            swapped.extend(shown.swapped);
        }
        Ok::<_, CriError>(swapped)
    };
    let swapped = step(span, shown).await?;
    let span = info_span!(target: SPANS, "disks plug", otel.status_code = Empty);
    request.devices.append(&mut step(span, disks::plug(node, container, sandbox, plan.disks)).await?);
    super::reopen_container_log::open(container, sandbox).await?;
    warn_of_older_agent(container, sandbox, &request).await;
    request.cgroup_parent = sandbox.container_cgroup_parent();
    let info = inspect::container(asked, &request);
    let exported = began.elapsed();
    let span = info_span!(target: SPANS, "agent create container", otel.status_code = Empty);
    let what = format!("create container {}", plan.record.name);
    let asked = container.pod.ask(&what, WORK, |mut agent| async move { agent.create_container(request).await });
    let reply = step(span, asked).await?;
    let user = reply.user.unwrap_or_default();
    let groups = user.groups.into_iter().take(65_536).collect();
    container.change(|r| {
        (r.agent_pid, r.info) = (reply.pid, info);
        r.made(UserRecord { uid: user.uid, gid: user.gid, groups })
    });
    // A pod that died before this line did not end a container that was only being made.
    container.pod.sandbox()?;
    container.save(node).await?;
    container.follow_volumes(node, swapped);
    rate(node, &container.pod, sandbox).await;
    let handler = if container.pod.with(|r| r.kind) == Kind::Vm { "vm" } else { "host" };
    let ms = |d: std::time::Duration| d.as_micros() as f64 / 1000.0;
    tracing::info!(
        pod = %container.pod.id,
        container = %id,
        image = plan.record.image,
        %handler,
        elapsed_ms = ms(began.elapsed()),
        exported_ms = ms(exported),
        "container created"
    );
    Ok(())
}

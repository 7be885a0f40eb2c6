//! Start-up: what the records say was begun is finished or undone, what runs is found again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::{ListContainersRequest, RemoveContainerRequest};
use cofferdam_sandbox::{Adopted, Pod as Sandbox};

use super::names::Name;
use super::{Container, Node, Pod, watch};
use crate::error::{CriError, chain, message};
use crate::ids::now_nanos;
use crate::records::{CONTAINERS, ContainerPhase, ContainerRecord, PODS, PodPhase, PodRecord};

/// How long the start-up waits for one agent; later the watcher learns the same.
const AGENT_TIME: Duration = Duration::from_secs(20);

/// How long the start-up waits for all pods together.
const START_TIME: Duration = Duration::from_secs(45);

/// Restores everything. Fails only when the records cannot be read; what fails in one pod does not keep others back.
pub(crate) async fn all(node: &Arc<Node>) -> Result<(), CriError> {
    let unread = |e| CriError::internal("read the records", e);
    let pods: Vec<PodRecord> = node.records.all(PODS).map_err(unread)?;
    let containers: Vec<ContainerRecord> = node.records.all(CONTAINERS).map_err(unread)?;
    let known: HashSet<String> = pods.iter().map(|p| p.id.clone()).collect();
    for id in node.runtime.known() {
        if !known.contains(&id) {
            tracing::warn!(pod = %id, "pod without a record is removed");
            if let Err(error) = node.runtime.remove(&id).await {
                tracing::error!(pod = %id, error = chain(&error), "pod without a record not removed");
            }
        }
    }
    for record in &pods {
        let name = Name::Pod {
            name: record.name.clone(),
            namespace: record.namespace.clone(),
            uid: record.uid.clone(),
            attempt: record.attempt,
        };
        node.names.reserve(name, &record.id).ok();
        node.add_pod(Pod::new(record.clone(), None));
    }
    for record in containers {
        match node.pod(&record.pod) {
            Ok(Some(pod)) => {
                let name = Name::Container { pod: pod.id.clone(), name: record.name.clone(), attempt: record.attempt };
                node.names.reserve(name, &record.id).ok();
                node.add_container(Container::new(record, pod));
            }
            _ => {
                let id = record.id;
                node.records.write(CONTAINERS, &id, || None).await.map_err(unread)?;
            }
        }
    }
    let pods: Vec<_> = node.pods().into_iter().map(|pod| tokio::spawn(restore(node.clone(), pod))).collect();
    // A pod that hangs keeps neither the others nor the daemon back: its task goes on.
    if tokio::time::timeout(START_TIME, futures::future::join_all(pods)).await.is_err() {
        tracing::warn!("pods are still being restored");
    }
    release_leases(node).await;
    Ok(())
}

async fn restore(node: Arc<Node>, pod: Arc<Pod>) {
    let node = &node;
    let phase = pod.with(|r| r.phase);
    let done = match phase {
        PodPhase::Creating | PodPhase::Removing => pod.remove(node).await,
        PodPhase::Ready => {
            adopt(node, &pod).await;
            Ok(())
        }
        PodPhase::NotReady => {
            let _working = pod.work.lock().await;
            pod.died(node, "the pod was stopped", now_nanos()).await;
            half_done(node, &pod).await
        }
    };
    if let Err(error) = done {
        tracing::error!(pod = %pod.id, error = message(&error), "pod not restored whole");
    }
}

async fn adopt(node: &Arc<Node>, pod: &Arc<Pod>) {
    let _working = pod.work.lock().await;
    match node.runtime.adopt(&pod.id).await {
        Ok(Adopted::Running(sandbox)) => {
            pod.attach(sandbox.clone());
            if let Err(error) = catch_up(node, pod, &sandbox).await {
                tracing::error!(pod = %pod.id, error = message(&error), "containers not all restored");
                for container in node.containers_of(&pod.id) {
                    let why = format!("the daemon ended in the middle of the start, and: {}", message(&error));
                    if container.change(|r| r.unanswered.is_empty() && r.start_unanswered(&why)) {
                        container.save_or_log(node).await;
                    }
                }
            }
            node.containers_of(&pod.id).iter().filter(|c| c.with(|r| r.is_unanswered())).for_each(Container::take_back);
            watch::start(node.clone(), pod.clone(), sandbox);
            tracing::info!(pod = %pod.id, "pod found running");
        }
        Ok(Adopted::Ended(end)) => {
            pod.died(node, &end.detail, end.at_unix_nanos).await;
            half_done(node, pod).await.ok();
        }
        Err(error) => {
            // After a reboot of the node there is nothing of it; its address may still be reserved.
            let why = format!("nothing of the pod was found when the daemon started: {}", chain(&error));
            pod.died(node, &why, now_nanos()).await;
            half_done(node, pod).await.ok();
            if let Err(error) = node.runtime.remove(&pod.id).await {
                tracing::warn!(pod = %pod.id, error = chain(&error), "remains of a pod not removed");
            }
        }
    }
}

/// What the agent of a running pod says of its containers.
async fn catch_up(node: &Arc<Node>, pod: &Arc<Pod>, sandbox: &Sandbox) -> Result<(), CriError> {
    // What cannot be undone now stays in the records, for a removal of the pod or the next start.
    if let Err(error) = half_done(node, pod).await {
        tracing::error!(pod = %pod.id, error = message(&error), "half-done work not undone");
    }
    let listed = pod
        .ask("list the containers of a pod", AGENT_TIME, |mut agent| async move {
            agent.list_containers(ListContainersRequest {}).await
        })
        .await?;
    for state in &listed.containers {
        watch::take(node, pod, state).await;
    }
    for container in node.containers_of(&pod.id) {
        let lost = !listed.containers.iter().any(|s| s.id == container.id);
        let changed = container.change(|r| {
            if lost && r.is_live() {
                r.end(255, "Unknown", "the agent does not know the container any more", now_nanos());
                return true;
            }
            // Neither running nor ended by what the agent said: the start had not been asked for.
            r.start_was_not_asked()
        });
        if changed {
            container.save_or_log(node).await;
        }
        container.follow_volumes_again(node);
    }
    for state in &listed.containers {
        if !matches!(node.container(&state.id), Ok(Some(c)) if c.pod.id == pod.id) {
            let request = RemoveContainerRequest { id: state.id.clone() };
            let _ = tokio::time::timeout(AGENT_TIME, sandbox.agent().remove_container(request)).await;
        }
    }
    Ok(())
}

/// Undoes creations and finishes removals that the last daemon did not end.
async fn half_done(node: &Node, pod: &Arc<Pod>) -> Result<(), CriError> {
    for container in node.containers_of(&pod.id) {
        if container.with(|r| matches!(r.phase, ContainerPhase::Creating | ContainerPhase::Removing)) {
            container.remove_locked(node).await?;
        }
    }
    Ok(())
}

/// Leases of containers that there are no longer.
async fn release_leases(node: &Node) {
    let known: HashSet<String> = node.containers().iter().map(|c| c.id.clone()).collect();
    let store = node.store.clone();
    let released = tokio::task::spawn_blocking(move || {
        for holder in store.leases().into_iter().filter(|h| !known.contains(super::container_of(h))) {
            if let Err(error) = store.release(&holder) {
                tracing::warn!(container = %holder, error = error.chain(), "lease not released");
            }
        }
    });
    if let Err(error) = released.await {
        tracing::error!(%error, "leases not released");
    }
}

#[cfg(test)]
mod tests;

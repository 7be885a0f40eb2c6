//! Start-up: what the records say was begun is finished or undone, what runs is found again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::{ContainerState, ListContainersReply, ListContainersRequest, RemoveContainerRequest};
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
            let listed = ask_for_containers(pod).await;
            match &listed {
                Ok(listed) => catch_up(node, pod, &listed.containers).await,
                Err(error) => tracing::error!(pod = %pod.id, error = message(error), "containers not restored"),
            }
            doubt_starts(node, pod, listed.as_ref().err()).await;
            // What is not tidied up now stays for a removal of the pod or the next start.
            if let Ok(listed) = &listed {
                tidy(node, pod, &sandbox, &listed.containers).await;
            }
            node.containers_of(&pod.id).iter().for_each(|container| container.follow_volumes_again(node));
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

async fn ask_for_containers(pod: &Pod) -> Result<ListContainersReply, CriError> {
    pod.ask("list the containers of a pod", AGENT_TIME, |mut agent| async move {
        agent.list_containers(ListContainersRequest {}).await
    })
    .await
}

/// Takes what the agent of a running pod says of its containers.
async fn catch_up(node: &Node, pod: &Arc<Pod>, listed: &[ContainerState]) {
    for state in listed {
        watch::take(node, pod, state).await;
    }
    for container in node.containers_of(&pod.id) {
        let known = listed.iter().any(|s| s.id == container.id);
        let lost = container.change(|r| {
            let lost = !known && r.is_live();
            if lost {
                r.end(255, "Unknown", "the agent does not know the container any more", now_nanos());
            }
            lost
        });
        if lost {
            container.save_or_log(node).await;
        }
    }
}

/// Starts that the last daemon asked for without hearing what came of them, and of which the agent did not say that they run or ended,
/// are taken back. It may say "created" and start them yet: what was asked may lie unread in the last daemon's connection.
async fn doubt_starts(node: &Node, pod: &Arc<Pod>, silence: Option<&CriError>) {
    let mut why = "the daemon ended in the middle of the start".to_owned();
    if let Some(error) = silence {
        why = format!("{why}, and: {}", message(error));
    }
    for container in node.containers_of(&pod.id) {
        if container.change(|r| r.start_unanswered(&why)) {
            container.save_or_log(node).await;
        }
        if container.with(|r| r.is_unanswered()) {
            container.take_back();
        }
    }
}

/// Ends what the last daemon did not, and removes from the pod what no record tells of.
async fn tidy(node: &Node, pod: &Arc<Pod>, sandbox: &Sandbox, listed: &[ContainerState]) {
    if let Err(error) = half_done(node, pod).await {
        tracing::error!(pod = %pod.id, error = message(&error), "half-done work not undone");
    }
    for state in listed {
        if !matches!(node.container(&state.id), Ok(Some(c)) if c.pod.id == pod.id) {
            let request = RemoveContainerRequest { id: state.id.clone() };
            let _ = tokio::time::timeout(AGENT_TIME, sandbox.agent().remove_container(request)).await;
        }
    }
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

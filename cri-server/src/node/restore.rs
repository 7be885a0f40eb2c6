//! Start-up: what the records say was begun is finished or undone, what runs is found again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::{ContainerState, ListContainersReply, ListContainersRequest, RemoveContainerRequest};
use cofferdam_sandbox::{Adopted, Pod as Sandbox};
use serde::Serialize;

use super::names::Name;
use super::{Container, Node, Pod, disks, watch};
use crate::error::{CriError, chain, message};
use crate::ids::now_nanos;
use crate::records::{
    self, CONTAINERS, ContainerPhase, ContainerRecord, PODS, PodPhase, PodRecord, RecordError, Records, Table,
    Unreadable, salvage,
};

/// How long the start-up waits for one agent; later the watcher learns the same.
const AGENT_TIME: Duration = Duration::from_secs(20);

/// How long the start-up waits for all pods together.
const START_TIME: Duration = Duration::from_secs(45);

/// Restores everything. Fails only when the records cannot be read; what fails in one pod does not keep others back.
pub(crate) async fn all(node: &Arc<Node>) -> Result<(), CriError> {
    let kept = read(node).await?;
    let known: HashSet<String> = kept.pods.iter().map(|p| p.id.clone()).collect();
    let runtime = node.runtime.clone();
    let there = tokio::task::spawn_blocking(move || runtime.known()).await;
    for id in there.map_err(|e| CriError::internal("look for pods", e))? {
        if !known.contains(&id) {
            tracing::warn!(pod = %id, "pod without a record is removed");
            if let Err(error) = node.runtime.remove(&id).await {
                tracing::error!(pod = %id, error = chain(&error), "pod without a record not removed");
            }
        }
    }
    for record in &kept.pods {
        let name = Name::Pod {
            name: record.name.clone(),
            namespace: record.namespace.clone(),
            uid: record.uid.clone(),
            attempt: record.attempt,
        };
        node.names.reserve(name, &record.id).ok();
        node.add_pod(Pod::new(record.clone(), None));
    }
    for record in kept.containers {
        match node.pod(&record.pod) {
            Ok(Some(pod)) => {
                let name = Name::Container { pod: pod.id.clone(), name: record.name.clone(), attempt: record.attempt };
                node.names.reserve(name, &record.id).ok();
                node.add_container(Container::new(record, pod));
            }
            _ => node.records.write_or_later(CONTAINERS, &record.id, || Ok(None)).await,
        }
    }
    let pods: Vec<_> = node
        .pods()
        .into_iter()
        .map(|pod| {
            let unreadable = kept.unreadable.contains(&pod.id);
            tokio::spawn(restore(node.clone(), pod, unreadable))
        })
        .collect();
    // A pod that hangs keeps neither the others nor the daemon back: its task goes on.
    if tokio::time::timeout(START_TIME, futures::future::join_all(pods)).await.is_err() {
        tracing::warn!("pods are still being restored");
    }
    release_leases(node).await;
    Ok(())
}

/// What the records say.
struct Kept {
    pods: Vec<PodRecord>,
    containers: Vec<ContainerRecord>,
    /// Pods whose record could not be read.
    unreadable: HashSet<String>,
}

/// Reads all records. A row that cannot be read costs what it tells of, and nothing else.
async fn read(node: &Arc<Node>) -> Result<Kept, CriError> {
    let records = node.records.clone();
    let read = move || -> Result<Kept, RecordError> {
        let (mut pods, bad_pods) = records.all::<PodRecord>(PODS)?;
        let (mut containers, bad_containers) = records.all::<ContainerRecord>(CONTAINERS)?;
        let mut unreadable = HashSet::new();
        let now = now_nanos();
        for row in bad_pods {
            tracing::error!(pod = %row.id, why = row.why, "record set aside: the pod is ended");
            let stand_in = salvage::pod(&row, now);
            set_aside(&records, PODS, &row, stand_in.as_ref());
            unreadable.insert(row.id);
            pods.extend(stand_in);
        }
        for row in bad_containers {
            tracing::error!(container = %row.id, why = row.why, "record set aside: the container is ended");
            let stand_in = salvage::container(&row, now);
            set_aside(&records, CONTAINERS, &row, stand_in.as_ref());
            containers.extend(stand_in);
        }
        Ok(Kept { pods, containers, unreadable })
    };
    let read = tokio::task::spawn_blocking(read).await.map_err(|e| CriError::internal("read the records", e))?;
    read.map_err(|e| CriError::internal("read the records", e))
}

/// When that cannot be written, the next start finds the row as it is and does the same.
fn set_aside<T: Serialize>(records: &Records, table: Table, row: &Unreadable, stand_in: Option<&T>) {
    let kept =
        stand_in.map(records::encode).transpose().and_then(|bytes| records.set_aside(table, row, bytes.as_deref()));
    if let Err(error) = kept {
        tracing::error!(id = %row.id, error = chain(&error), "unreadable record not set aside");
    }
}

async fn restore(node: Arc<Node>, pod: Arc<Pod>, unreadable: bool) {
    let node = &node;
    let phase = pod.with(|r| r.phase);
    let done = match phase {
        // It is shown as not ready, and so it must not run.
        _ if unreadable => pod.stop(node).await,
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
            let reason = if end.out_of_memory { "OOMKilled" } else { "Error" };
            pod.died_of(node, reason, &end.detail, end.at_unix_nanos).await;
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
            container.save_or_later(node).await;
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
            container.save_or_later(node).await;
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
    // A container that has ended by its record was given up when the record could not be read.
    let given_up =
        |c: &Container, state: &ContainerState| state.phase() == Phase::Running && !c.with(ContainerRecord::is_live);
    for state in listed {
        if !matches!(node.container(&state.id), Ok(Some(c)) if c.pod.id == pod.id && !given_up(&c, state)) {
            let request = RemoveContainerRequest { id: state.id.clone() };
            let _ = tokio::time::timeout(AGENT_TIME, sandbox.agent().remove_container(request)).await;
        }
    }
    disks::unplug_forgotten(node, pod, sandbox).await;
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
            store.release(&holder);
        }
    });
    if let Err(error) = released.await {
        tracing::error!(%error, "leases not released");
    }
}

#[cfg(test)]
mod tests;

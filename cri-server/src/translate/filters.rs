//! Records, as lists and statuses show them, and the filters of list calls.

use std::collections::HashMap;

use cofferdam_proto::cri;

use super::{mounts, resources, signal};
use crate::records::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};

/// Whether an object has every label that a selector names.
pub(crate) fn selects(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A pod's state, or nothing while it is not to be seen.
pub(crate) fn pod_state(phase: PodPhase) -> Option<cri::PodSandboxState> {
    match phase {
        PodPhase::Creating => None,
        PodPhase::Ready => Some(cri::PodSandboxState::SandboxReady),
        PodPhase::NotReady | PodPhase::Removing => Some(cri::PodSandboxState::SandboxNotready),
    }
}

/// A container's state, or nothing while it is not to be seen. Of one that may run or not the kubelet is told so: it stops it before it
/// starts another.
pub(crate) fn container_state(r: &ContainerRecord) -> Option<cri::ContainerState> {
    match r.phase {
        ContainerPhase::Creating => None,
        ContainerPhase::Starting if r.is_unanswered() => Some(cri::ContainerState::ContainerUnknown),
        ContainerPhase::Created | ContainerPhase::Starting => Some(cri::ContainerState::ContainerCreated),
        ContainerPhase::Running => Some(cri::ContainerState::ContainerRunning),
        ContainerPhase::Exited | ContainerPhase::Removing => Some(cri::ContainerState::ContainerExited),
    }
}

/// A pod's name.
pub(crate) fn pod_metadata(r: &PodRecord) -> Option<cri::PodSandboxMetadata> {
    Some(cri::PodSandboxMetadata {
        name: r.name.clone(),
        uid: r.uid.clone(),
        namespace: r.namespace.clone(),
        attempt: r.attempt,
    })
}

/// Whether a filter, whose id is resolved, wants a pod.
pub(crate) fn wants_pod(filter: &cri::PodSandboxFilter, r: &PodRecord) -> bool {
    (filter.id.is_empty() || filter.id == r.id)
        && filter.state.as_ref().is_none_or(|s| pod_state(r.phase).is_some_and(|state| s.state == i32::from(state)))
        && selects(&filter.label_selector, &r.labels)
}

/// A pod in a list, if it is to be seen.
pub(crate) fn pod_item(r: &PodRecord) -> Option<cri::PodSandbox> {
    Some(cri::PodSandbox {
        id: r.id.clone(),
        metadata: pod_metadata(r),
        state: pod_state(r.phase)?.into(),
        created_at: r.created_at,
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
        runtime_handler: r.handler.clone(),
    })
}

/// Whether a filter, whose ids are resolved, wants a container.
pub(crate) fn wants_container(filter: &cri::ContainerFilter, r: &ContainerRecord) -> bool {
    (filter.id.is_empty() || filter.id == r.id)
        && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == r.pod)
        && filter.state.as_ref().is_none_or(|s| container_state(r).is_some_and(|state| s.state == i32::from(state)))
        && selects(&filter.label_selector, &r.labels)
}

/// A container in a list, if it is to be seen.
pub(crate) fn container_item(r: &ContainerRecord) -> Option<cri::Container> {
    Some(cri::Container {
        id: r.id.clone(),
        pod_sandbox_id: r.pod.clone(),
        metadata: Some(cri::ContainerMetadata { name: r.name.clone(), attempt: r.attempt }),
        image: Some(image(r)),
        image_ref: image_ref(r),
        state: container_state(r)?.into(),
        created_at: r.created_at,
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
        image_id: r.image_id.clone(),
    })
}

/// The digested reference, which the kubelet publishes as `imageID` and scanners look up; the id of an image that has none.
fn image_ref(r: &ContainerRecord) -> String {
    if r.image_digest.is_empty() { r.image_id.clone() } else { r.image_digest.clone() }
}

fn image(r: &ContainerRecord) -> cri::ImageSpec {
    cri::ImageSpec {
        image: r.image.clone(),
        annotations: r.image_annotations.clone(),
        user_specified_image: r.user_image.clone(),
        ..Default::default()
    }
}

/// A pod's status. A pod that is not ready has no address: it was given back.
pub(crate) fn pod_status(r: &PodRecord) -> Option<cri::PodSandboxStatus> {
    let state = pod_state(r.phase)?;
    let mut addresses = r.addresses.iter().map(ToString::to_string);
    let network = (state == cri::PodSandboxState::SandboxReady).then(|| cri::PodSandboxNetworkStatus {
        ip: addresses.next().unwrap_or_default(),
        additional_ips: addresses.map(|ip| cri::PodIp { ip }).collect(),
    });
    let options = cri::NamespaceOption {
        network: r.namespaces.network,
        pid: r.namespaces.pid,
        ipc: r.namespaces.ipc,
        target_id: r.namespaces.target_id.clone(),
        userns_options: r.namespaces.users.map(super::users::status),
        cgroupns_options: None,
    };
    Some(cri::PodSandboxStatus {
        id: r.id.clone(),
        metadata: pod_metadata(r),
        state: state.into(),
        created_at: r.created_at,
        network,
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options: Some(options) }) }),
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
        runtime_handler: r.handler.clone(),
    })
}

/// A container's status; `log_directory` is its pod's.
pub(crate) fn container_status(r: &ContainerRecord, log_directory: &str) -> Option<cri::ContainerStatus> {
    let state = container_state(r)?;
    let log = r.log(log_directory).map(|(directory, path)| format!("{}/{path}", directory.trim_end_matches('/')));
    let user = cri::LinuxContainerUser {
        uid: r.user.uid.into(),
        gid: r.user.gid.into(),
        supplemental_groups: r.user.groups.iter().map(|g| i64::from(*g)).collect(),
    };
    Some(cri::ContainerStatus {
        id: r.id.clone(),
        metadata: Some(cri::ContainerMetadata { name: r.name.clone(), attempt: r.attempt }),
        state: state.into(),
        created_at: r.created_at,
        started_at: r.started_at,
        finished_at: r.finished_at,
        exit_code: r.exit_code,
        image: Some(cri::ImageSpec { image: r.image_name().to_owned(), ..image(r) }),
        image_ref: image_ref(r),
        reason: r.reason.clone(),
        message: r.message.clone(),
        labels: r.labels.clone(),
        annotations: r.annotations.clone(),
        mounts: r.mounts.iter().map(mounts::status).collect(),
        log_path: log.unwrap_or_default(),
        resources: Some(cri::ContainerResources {
            linux: Some(r.resources.as_ref().map(resources::status).unwrap_or_default()),
            windows: None,
        }),
        image_id: r.image_id.clone(),
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal: signal::to_cri(r.stop_signal).into(),
    })
}

#[cfg(test)]
mod tests;

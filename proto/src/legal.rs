//! What a runtime may tell the kubelet of a container: the rules that statuses, lists and what comes after what obey, written down once for
//! the property tests of the daemon's records and for the suite that drives the real daemon.
//!
//! ```text
//!  (nothing) → CREATED → UNKNOWN → RUNNING → EXITED → (nothing)      each arrow once, any may be skipped, none is taken back
//! ```
//!
//! UNKNOWN is a container whose start got no answer, until it is known what came of it; never for good.

use crate::cri::{Container, ContainerState, ContainerStatus, PodSandbox, PodSandboxStatus};

/// What a container's end may be called.
const REASONS: [&str; 5] = ["Completed", "Error", "OOMKilled", "StartError", "Unknown"];

/// Checks one status by itself.
///
/// # Errors
/// Says which rule is broken.
pub fn container(s: &ContainerStatus) -> Result<(), String> {
    let broken = |rule: &str| {
        Err(format!(
            "container {} breaks \"{rule}\": {:?}, created {}, started {}, finished {}, exit code {}, reason {:?}",
            s.id,
            s.state(),
            s.created_at,
            s.started_at,
            s.finished_at,
            s.exit_code,
            s.reason
        ))
    };
    if s.created_at <= 0 {
        return broken("a container has a time of creation");
    }
    let no_end = s.finished_at == 0 && s.exit_code == 0 && s.reason.is_empty() && s.message.is_empty();
    match s.state() {
        ContainerState::ContainerCreated | ContainerState::ContainerUnknown if s.started_at != 0 => {
            broken("created means not started, unknown means not known to be started")
        }
        ContainerState::ContainerRunning if s.started_at < s.created_at => {
            broken("running means started, after it was created")
        }
        ContainerState::ContainerCreated | ContainerState::ContainerUnknown | ContainerState::ContainerRunning
            if !no_end =>
        {
            broken("what has not exited has no end, code or reason")
        }
        ContainerState::ContainerExited if s.started_at < s.created_at => {
            // The kubelet takes a start of 0 for "never started" and waits for it.
            broken("exited means started, after it was created")
        }
        ContainerState::ContainerExited if s.finished_at < s.started_at => broken("the end is not before the start"),
        ContainerState::ContainerExited if !REASONS.contains(&s.reason.as_str()) => broken("an end has a known reason"),
        ContainerState::ContainerExited if !(0..=255).contains(&s.exit_code) => broken("exit codes are 0 to 255"),
        ContainerState::ContainerExited if s.reason == "Completed" && s.exit_code != 0 => broken("completed means 0"),
        ContainerState::ContainerExited
            if s.exit_code == 0 && !["Completed", "OOMKilled"].contains(&s.reason.as_str()) =>
        {
            broken("an error has a code")
        }
        _ => Ok(()),
    }
}

fn how_far(s: &ContainerStatus) -> u8 {
    match s.state() {
        ContainerState::ContainerCreated => 0,
        ContainerState::ContainerUnknown => 1,
        ContainerState::ContainerRunning => 2,
        ContainerState::ContainerExited => 3,
    }
}

/// Checks what one observer sees of a container, first `before`, then `after`.
///
/// # Errors
/// Says which rule is broken.
pub fn container_step(before: &ContainerStatus, after: &ContainerStatus) -> Result<(), String> {
    let broken = |rule: &str| Err(format!("container {}: {rule}; first {before:?}, then {after:?}", after.id));
    if (&before.id, before.created_at, &before.metadata) != (&after.id, after.created_at, &after.metadata) {
        return broken("who it is and when it was created changed");
    }
    if how_far(after) < how_far(before) {
        return broken("its state went back");
    }
    if before.started_at != 0 && before.started_at != after.started_at {
        return broken("it started a second time");
    }
    let end = |s: &ContainerStatus| (s.finished_at, s.exit_code, s.reason.clone(), s.message.clone());
    if before.state() == ContainerState::ContainerExited && end(before) != end(after) {
        return broken("it ended a second time");
    }
    Ok(())
}

/// Checks a pod's status by itself.
///
/// # Errors
/// Says which rule is broken.
pub fn pod(s: &PodSandboxStatus) -> Result<(), String> {
    if s.created_at <= 0 || s.metadata.is_none() {
        return Err(format!("pod {} has no time of creation or no name: {s:?}", s.id));
    }
    Ok(())
}

/// Checks what one observer sees of a pod, first `before`, then `after`.
///
/// # Errors
/// Says which rule is broken.
pub fn pod_step(before: &PodSandboxStatus, after: &PodSandboxStatus) -> Result<(), String> {
    let who = |s: &PodSandboxStatus| (s.id.clone(), s.metadata.clone(), s.created_at);
    if who(before) != who(after) {
        return Err(format!("pod {} became another: first {before:?}, then {after:?}", before.id));
    }
    if after.state < before.state {
        return Err(format!("pod {} was not ready and is again", before.id));
    }
    Ok(())
}

/// Checks that a pod's place in a list says what its status says.
///
/// # Errors
/// Shows both.
pub fn pod_listed(item: &PodSandbox, s: &PodSandboxStatus) -> Result<(), String> {
    let same = (&item.id, item.state, item.created_at, &item.metadata, &item.labels, &item.annotations)
        == (&s.id, s.state, s.created_at, &s.metadata, &s.labels, &s.annotations);
    if same { Ok(()) } else { Err(format!("list and status of a pod differ: {item:?}, {s:?}")) }
}

/// Checks that a container's place in a list says what its status says.
///
/// # Errors
/// Shows both.
pub fn container_listed(item: &Container, s: &ContainerStatus) -> Result<(), String> {
    let same = (&item.id, item.state, item.created_at, &item.metadata, &item.labels, &item.image_ref)
        == (&s.id, s.state, s.created_at, &s.metadata, &s.labels, &s.image_ref);
    if same { Ok(()) } else { Err(format!("list and status of a container differ: {item:?}, {s:?}")) }
}

/// Checks a pod together with its containers, when nothing is at work on it: none outlives it, and none is in a state unknown.
///
/// # Errors
/// Names the container.
pub fn at_rest(pod: &PodSandboxStatus, containers: &[ContainerStatus]) -> Result<(), String> {
    let ready = pod.state() == crate::cri::PodSandboxState::SandboxReady;
    let good = |s: ContainerState| match s {
        ContainerState::ContainerUnknown => false,
        state => ready || state == ContainerState::ContainerExited,
    };
    match containers.iter().find(|c| !good(c.state())) {
        Some(c) => Err(format!("pod {} is {:?}, its container {} is {:?}", pod.id, pod.state(), c.id, c.state())),
        None => Ok(()),
    }
}

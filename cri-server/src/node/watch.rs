//! One task per pod: hears from the agent how containers fare, and from the sandbox when the pod ends.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::{ContainerState, EventsRequest};
use cofferdam_sandbox::Pod as Sandbox;

use super::{Container, Node, Pod};
use crate::ids::now_nanos;
use crate::records::ContainerPhase;

/// First and longest pause before the stream of events is opened again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Watches a running pod until it ends.
pub(crate) fn start(node: Arc<Node>, pod: Arc<Pod>, sandbox: Sandbox) {
    tokio::spawn(async move {
        let end = tokio::select! {
            end = sandbox.ended() => end,
            () = follow(&node, &pod, &sandbox) => return,
        };
        if pod.stopping.is_cancelled() {
            // Pod::stop waits for the end itself and says how the containers ended.
            return;
        }
        let why = pod.condemned.get().unwrap_or(&end.detail);
        let reason = if end.out_of_memory { "OOMKilled" } else { "Error" };
        pod.died_of(&node, reason, why, end.at_unix_nanos).await;
    });
}

/// Takes events; never returns while the pod is ready.
async fn follow(node: &Node, pod: &Arc<Pod>, sandbox: &Sandbox) {
    let mut pause = RETRY.0;
    loop {
        match sandbox.agent().events(EventsRequest {}).await {
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(state)) => {
                            pause = RETRY.0;
                            take(node, pod, &state).await;
                        }
                        Ok(None) => break,
                        Err(status) => {
                            tracing::debug!(pod = %pod.id, error = status.message(), "events ended");
                            break;
                        }
                    }
                }
            }
            Err(status) => tracing::debug!(pod = %pod.id, error = status.message(), "no events"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Applies one state that the agent told.
pub(crate) async fn take(node: &Node, pod: &Arc<Pod>, state: &ContainerState) {
    // A guest names ids freely: only containers of its own pod count.
    let Ok(Some(container)) = node.container(&state.id) else { return };
    if !Arc::ptr_eq(&container.pod, pod) || container.id != state.id {
        return;
    }
    if apply(&container, state, now_nanos()) {
        let record = container.record();
        if record.phase == ContainerPhase::Exited {
            tracing::info!(
                pod = %pod.id,
                container = %container.id,
                exit_code = record.exit_code,
                reason = record.reason,
                "container exited"
            );
        }
        container.save_or_later(node).await;
    }
}

/// Longest message of a guest that is kept.
const MAX_MESSAGE: usize = 1024;

/// Moves the record forward, never back; answers whether it changed.
pub(super) fn apply(container: &Container, state: &ContainerState, now: i64) -> bool {
    container.change(|record| match state.phase() {
        Phase::Running => record.running(now),
        Phase::Exited if record.is_live() => {
            let ago = i64::try_from(state.exited_ago_nanos).unwrap_or(0);
            // A guest that says "before it was created" is not believed.
            let at = now.saturating_sub(ago).clamp(record.created_at, now.max(record.created_at));
            let message: String = state.message.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
            if message.is_empty() {
                let code = state.exit_code & 0xff;
                let reason = match (state.oom_killed, code) {
                    (true, _) => "OOMKilled",
                    (false, 0) => "Completed",
                    (false, _) => "Error",
                };
                record.end(code, reason, "", at);
            } else {
                record.end(128, "StartError", &message, at);
            }
            true
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests;

//! GetContainerEvents tells a pod's whole life in its order, and each event carries what is true at that moment.

use std::time::Duration;

use cofferdam_proto::cri;
use cri::ContainerEventType as Event;
use tonic::Streaming;

use super::{Test, with_both};
use crate::crictl::{self, BUSYBOX};
use crate::failure::{Doing, Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

pub(super) const TESTS: &[Test] = &[("events_follow_a_pod", || with_both(follow))];

/// How long one event may take in an emulated node.
const PATIENCE: Duration = Duration::from_secs(120);
/// How the container ends.
const CODE: i32 = 7;

fn follow(handler: &'static str) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing("start tokio")?.block_on(one_life(handler))
}

/// The next event of these, which must be `wanted` of `id`.
async fn expect(
    stream: &mut Streaming<cri::ContainerEventResponse>,
    (id, what): (&str, &str),
    wanted: Event,
) -> Outcome<cri::ContainerEventResponse> {
    let next = tokio::time::timeout(PATIENCE, stream.message()).await;
    let next = next.map_err(|_| format!("no event within {PATIENCE:?}, where {wanted:?} of the {what} should be"))?;
    let event = next.doing("read an event")?.ok_or("the stream of events ended")?;
    ensure!(
        event.container_id == id && event.container_event_type() == wanted,
        "{wanted:?} of the {what} {id} should be next, not {event:?}"
    );
    let pod = event.pod_sandbox_status.as_ref();
    ensure!(event.created_at > 0 && pod.is_some_and(|p| !p.id.is_empty()), "an event without time or pod: {event:?}");
    Ok(event)
}

async fn one_life(handler: &'static str) -> Outcome {
    let mut client = Client::connect("events", crictl::SOCKET).await?;
    let events = client.runtime.get_container_events(cri::GetEventsRequest {}).await;
    let mut events = events.map_err(|s| client.failed("GetContainerEvents", &s))?.into_inner();

    let (pod, config) = client.run_pod(handler, Net::Cni).await?;
    let of_pod = (pod.as_str(), "pod");
    expect(&mut events, of_pod, Event::ContainerCreatedEvent).await?;
    let event = expect(&mut events, of_pod, Event::ContainerStartedEvent).await?;
    let status = event.pod_sandbox_status.unwrap_or_default();
    ensure!(status.state() == cri::PodSandboxState::SandboxReady, "a pod that was started is {status:?}");

    let ends = container_config("ends", BUSYBOX, &["sh", "-c", &format!("sleep 1; exit {CODE}")]);
    let container = client.create(&pod, config, ends).await?;
    let of_container = (container.as_str(), "container");
    expect(&mut events, of_container, Event::ContainerCreatedEvent).await?;
    client.start_container(&container).await?;
    expect(&mut events, of_container, Event::ContainerStartedEvent).await?;
    let event = expect(&mut events, of_container, Event::ContainerStoppedEvent).await?;
    let asked = cri::ContainerStatusRequest { container_id: container.clone(), verbose: false };
    let asked = client.runtime.container_status(asked).await.map_err(|s| client.failed("ContainerStatus", &s))?;
    let told = event.containers_statuses.iter().find(|s| s.id == container).cloned();
    for (status, of) in [(asked.into_inner().status, "asked for"), (told, "in the event")] {
        let status = status.ok_or(format!("the ended container has no status {of}"))?;
        let ended = status.state() == cri::ContainerState::ContainerExited && status.exit_code == CODE;
        ensure!(ended && status.finished_at > 0, "the ended container's status {of}: {status:?}");
    }

    client.remove(&pod).await?;
    let event = expect(&mut events, of_pod, Event::ContainerStoppedEvent).await?;
    let status = event.pod_sandbox_status.unwrap_or_default();
    ensure!(status.state() == cri::PodSandboxState::SandboxNotready, "a pod that was stopped is {status:?}");
    expect(&mut events, of_container, Event::ContainerDeletedEvent).await?;
    expect(&mut events, of_pod, Event::ContainerDeletedEvent).await?;
    Ok(())
}

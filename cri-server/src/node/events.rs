//! Who follows GetContainerEvents, and what they are told.
//!
//! An event leaves after the record of what it tells was kept, so whoever asks upon it finds at least that. Every stage is told once,
//! in its order, however many calls see it; what the daemon found at its start was told by the last one.

use std::sync::{Arc, Mutex};

use cofferdam_proto::cri;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{Container, Node, Pod, lock};
use crate::ids::now_nanos;
use crate::records::{ContainerPhase, ContainerRecord, PodPhase, PodRecord};
use crate::translate::filters::{container_status, pod_status};

/// Events that a client may be behind.
const BEHIND: usize = 512;

/// How much of a life has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Nothing,
    Created,
    Started,
    Stopped,
    Deleted,
}

/// How much of one pod or container has been told.
#[derive(Debug)]
pub(crate) struct Told(Mutex<Stage>);

impl Told {
    /// With all up to `stage` told.
    pub(crate) fn new(stage: Stage) -> Self {
        Self(Mutex::new(stage))
    }

    /// Tells what is missing up to `now`; the lock keeps the order among callers.
    fn advance(&self, now: Stage, ran: bool, tell: impl Fn(cri::ContainerEventType)) {
        let mut told = lock(&self.0);
        // What could not be made is no news.
        if now == Stage::Deleted && *told == Stage::Nothing {
            return;
        }
        for (stage, event) in [
            (Stage::Created, cri::ContainerEventType::ContainerCreatedEvent),
            (Stage::Started, cri::ContainerEventType::ContainerStartedEvent),
            (Stage::Stopped, cri::ContainerEventType::ContainerStoppedEvent),
            (Stage::Deleted, cri::ContainerEventType::ContainerDeletedEvent),
        ] {
            if *told < stage && stage <= now {
                if ran || stage != Stage::Started {
                    tell(event);
                }
                *told = stage;
            }
        }
    }
}

/// What of a pod's life is behind it.
pub(super) fn pod_stage(r: &PodRecord) -> Stage {
    match r.phase {
        PodPhase::Creating => Stage::Nothing,
        PodPhase::Ready => Stage::Started,
        PodPhase::NotReady | PodPhase::Removing => Stage::Stopped,
    }
}

/// What of a container's life is behind it.
pub(super) fn container_stage(r: &ContainerRecord) -> Stage {
    match r.phase {
        ContainerPhase::Creating => Stage::Nothing,
        ContainerPhase::Created | ContainerPhase::Starting => Stage::Created,
        ContainerPhase::Running => Stage::Started,
        ContainerPhase::Exited | ContainerPhase::Removing => Stage::Stopped,
    }
}

/// The followers.
pub(crate) struct Events(broadcast::Sender<Arc<cri::ContainerEventResponse>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }
}

impl Events {
    /// Events from now on. A client that does not take them is cut off with an error: it lists, and follows anew.
    pub(crate) fn follow(&self) -> BoxStream<'static, Result<cri::ContainerEventResponse, Status>> {
        stream::unfold(Some(self.0.subscribe()), |receiver| async {
            let mut receiver = receiver?;
            match receiver.recv().await {
                Ok(event) => Some((Ok(Arc::unwrap_or_clone(event)), Some(receiver))),
                Err(RecvError::Closed) => None,
                Err(RecvError::Lagged(lost)) => {
                    let why = format!("{lost} events were lost since the client took none: list, and follow anew");
                    Some((Err(Status::resource_exhausted(why)), None))
                }
            }
        })
        .boxed()
    }

    /// A pod whose record was kept, or deleted.
    pub(super) fn pod(&self, node: &Node, pod: &Arc<Pod>, deleted: bool) {
        let now = if deleted { Stage::Deleted } else { pod.with(pod_stage) };
        // A pod that is seen ran: RunPodSandbox starts it.
        pod.told.advance(now, true, |event| self.tell(node, pod, &pod.id, event));
    }

    /// A container whose record was kept, or deleted.
    pub(super) fn container(&self, node: &Node, container: &Arc<Container>, deleted: bool) {
        let (stage, ran) = container.with(|r| (container_stage(r), r.ran()));
        let now = if deleted { Stage::Deleted } else { stage };
        container.told.advance(now, ran, |event| self.tell(node, &container.pod, &container.id, event));
    }

    fn tell(&self, node: &Node, pod: &Arc<Pod>, id: &str, event: cri::ContainerEventType) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let record = pod.record();
        let statuses = node.containers_of(&pod.id).into_iter();
        let containers_statuses =
            statuses.filter_map(|c| c.with(|r| container_status(r, &record.log_directory))).collect();
        let event = cri::ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: event.into(),
            created_at: now_nanos(),
            pod_sandbox_status: pod_status(&record),
            containers_statuses,
        };
        // The last follower may just have left.
        let _ = self.0.send(Arc::new(event));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn event(id: usize) -> Arc<cri::ContainerEventResponse> {
        Arc::new(cri::ContainerEventResponse { container_id: id.to_string(), ..Default::default() })
    }

    #[test]
    fn every_stage_is_told_once_and_in_order() {
        use cri::ContainerEventType as E;
        let (told, heard) = (Told::new(Stage::Nothing), RefCell::new(Vec::new()));
        let advance = |stage, ran| told.advance(stage, ran, |e| heard.borrow_mut().push(e));
        advance(Stage::Created, false);
        advance(Stage::Created, false);
        // The start was never seen by itself: it and the end came together.
        advance(Stage::Stopped, true);
        advance(Stage::Started, true);
        advance(Stage::Deleted, true);
        let expected =
            [E::ContainerCreatedEvent, E::ContainerStartedEvent, E::ContainerStoppedEvent, E::ContainerDeletedEvent];
        assert_eq!(*heard.borrow(), expected);
    }

    #[test]
    fn what_never_ran_did_not_start_and_what_was_never_made_is_no_news() {
        use cri::ContainerEventType as E;
        let (told, heard) = (Told::new(Stage::Created), RefCell::new(Vec::new()));
        told.advance(Stage::Deleted, false, |e| heard.borrow_mut().push(e));
        assert_eq!(*heard.borrow(), [E::ContainerStoppedEvent, E::ContainerDeletedEvent]);
        Told::new(Stage::Nothing).advance(Stage::Deleted, false, |e| panic!("{e:?}"));
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_off_and_holds_nobody_up() {
        let events = Events::default();
        let (mut slow, mut quick) = (events.follow(), events.follow());
        for id in 0..=BEHIND {
            events.0.send(event(id)).unwrap();
            assert_eq!(quick.next().await.unwrap().unwrap().container_id, id.to_string());
        }
        let error = slow.next().await.unwrap().unwrap_err();
        assert!(error.code() == tonic::Code::ResourceExhausted && error.message().contains("1 events"), "{error}");
        assert!(slow.next().await.is_none());
    }
}

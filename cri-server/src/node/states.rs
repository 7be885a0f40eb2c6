//! Any order of calls, events, deaths, cancellations and restarts leaves records that the kubelet may be told of.
//!
//! The machine below is one pod as the verbs work it: who holds the pod's `work` is in a call to its agent, meanwhile events and the
//! pod's death come as they like. The transitions are the daemon's own; the rules are `cofferdam_proto::legal`.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_proto::agent::ContainerState;
use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::{cri, legal};
use proptest::prelude::*;

use super::watch::apply;
use super::{Container, Pod};
use crate::records::{self, ContainerPhase, ContainerRecord, PodPhase, PodRecord, UserRecord};
use crate::translate::filters;

/// How a call to the agent ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reply {
    Done,
    Refused,
    /// It took too long, or was cancelled, or the connection broke.
    Nothing,
}

/// One thing that happens; containers by number, taken modulo how many there are.
#[derive(Debug, Clone)]
enum Happens {
    Create,
    Start(usize),
    RemoveContainer(usize),
    /// The call that is at work ends.
    Answer(Reply),
    Told(usize, Phase, i32, bool, bool, u64),
    PodDies,
    StopPod,
    RemovePod,
    /// The daemon is killed and starts again; whether the agent still knows the containers.
    Restart(bool),
}

fn happens() -> impl Strategy<Value = Happens> {
    let phase = prop::sample::select(vec![Phase::Created, Phase::Running, Phase::Exited, Phase::Removed]);
    prop_oneof![
        3 => Just(Happens::Create),
        4 => any::<usize>().prop_map(Happens::Start),
        2 => any::<usize>().prop_map(Happens::RemoveContainer),
        5 => Just(Happens::Answer(Reply::Done)),
        1 => Just(Happens::Answer(Reply::Refused)),
        1 => Just(Happens::Answer(Reply::Nothing)),
        6 => (any::<usize>(), phase, any::<i32>(), any::<bool>(), prop::bool::weighted(0.2), any::<u64>())
            .prop_map(|(n, p, code, oom, failed, ago)| Happens::Told(n, p, code, oom, failed, ago)),
        1 => Just(Happens::PodDies),
        1 => Just(Happens::StopPod),
        1 => Just(Happens::RemovePod),
        1 => any::<bool>().prop_map(Happens::Restart),
    ]
}

/// What the holder of the pod's `work` waits for.
#[derive(Clone, Copy, PartialEq)]
enum Work {
    Create(usize),
    Start(usize),
    RemoveContainer(usize),
    RemovePod,
}

struct Machine {
    pod: Option<Arc<Pod>>,
    containers: Vec<Arc<Container>>,
    work: Option<Work>,
    made: usize,
    seen: HashMap<String, cri::ContainerStatus>,
    pod_seen: Option<cri::PodSandboxStatus>,
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(record: &T) -> T {
    records::reread(record)
}

fn decoded<M: prost::Message + Default>(item: bytes::Bytes) -> M {
    M::decode(item).expect("an item of a list can be read")
}

impl Machine {
    fn new() -> Self {
        let record = PodRecord { phase: PodPhase::Creating, ..records::tests::pod("p") };
        let pod = Pod::new(record, None);
        pod.change(|r| r.launched(Vec::new()));
        Self { pod: Some(pod), containers: vec![], work: None, made: 0, seen: HashMap::new(), pod_seen: None }
    }

    fn ready(&self) -> bool {
        self.pod.as_ref().is_some_and(|p| p.with(|r| r.phase == PodPhase::Ready))
    }

    fn pick(&self, number: usize) -> Option<usize> {
        (!self.containers.is_empty()).then(|| number % self.containers.len())
    }

    fn end_containers(&self, now: i64) {
        for c in &self.containers {
            c.change(|r| {
                let live = r.is_live();
                if live {
                    r.end(137, "Error", "the pod was stopped", now);
                }
                live
            });
        }
    }

    /// A verb that wants the pod's `work`: a stop cancels the call that holds it, others wait until it is answered.
    fn take_work(&mut self, cancels: bool, now: i64) {
        while let Some(work) = self.work {
            let removal = matches!(work, Work::RemoveContainer(_) | Work::RemovePod);
            self.answer(if removal || !cancels { Reply::Done } else { Reply::Nothing }, now);
        }
    }

    fn answer(&mut self, reply: Reply, now: i64) {
        let ok = reply == Reply::Done;
        match self.work.take() {
            Some(Work::Create(n)) => {
                let made = ok && self.containers[n].change(|r| r.made(UserRecord::default()));
                if !made || !self.ready() {
                    self.containers.remove(n);
                }
            }
            Some(Work::Start(n)) => match reply {
                Reply::Done => drop(self.containers[n].change(|r| r.running(now))),
                Reply::Nothing => drop(self.containers[n].change(|r| r.start_unanswered("no answer"))),
                Reply::Refused => {
                    let mut state = ContainerState { exit_code: 128, message: "no".into(), ..Default::default() };
                    state.set_phase(Phase::Exited);
                    apply(&self.containers[n], &state, now);
                }
            },
            // An agent that cannot be asked: the container stays half removed until the next try.
            Some(Work::RemoveContainer(n)) if ok => drop(self.containers.remove(n)),
            Some(Work::RemovePod) if ok => {
                self.containers.clear();
                self.pod = None;
            }
            _ => {}
        }
    }

    fn step(&mut self, what: &Happens, now: i64) {
        let Some(pod) = self.pod.clone() else { return };
        match *what {
            Happens::Create => {
                self.take_work(false, now);
                if self.ready() {
                    self.made += 1;
                    let record = records::tests::container(&format!("c{}", self.made), ContainerPhase::Creating);
                    self.containers.push(Container::new(ContainerRecord { created_at: now, ..record }, pod));
                    self.work = Some(Work::Create(self.containers.len() - 1));
                }
            }
            Happens::Start(n) => {
                self.take_work(false, now);
                if let Some(n) = self.pick(n).filter(|_| self.ready())
                    && self.containers[n].change(ContainerRecord::begin_start)
                {
                    self.work = Some(Work::Start(n));
                }
            }
            Happens::RemoveContainer(n) => {
                self.take_work(false, now);
                if let Some(n) = self.pick(n) {
                    self.containers[n].change(|r| {
                        r.begin_removal(now);
                        true
                    });
                    self.work = Some(Work::RemoveContainer(n));
                }
            }
            Happens::Answer(reply) => self.answer(reply, now),
            Happens::Told(n, phase, exit_code, oom_killed, failed, exited_ago_nanos) => {
                if let Some(n) = self.pick(n) {
                    let message = if failed { "exec: no\nsuch file".into() } else { String::new() };
                    let id = self.containers[n].id.clone();
                    let mut state =
                        ContainerState { id, exit_code, oom_killed, exited_ago_nanos, message, ..Default::default() };
                    state.set_phase(phase);
                    apply(&self.containers[n], &state, now);
                }
            }
            Happens::PodDies => {
                pod.change(|r| r.not_ready("died"));
                self.end_containers(now);
            }
            Happens::StopPod | Happens::RemovePod => {
                self.take_work(true, now);
                let Some(pod) = self.pod.clone() else { return };
                pod.change(|r| r.not_ready(""));
                self.end_containers(now);
                if matches!(what, Happens::RemovePod) {
                    pod.change(|r| r.phase = PodPhase::Removing);
                    self.containers.iter().for_each(|c| {
                        c.change(|r| {
                            r.begin_removal(now);
                            true
                        });
                    });
                    self.work = Some(Work::RemovePod);
                }
            }
            Happens::Restart(known) => self.restart(&pod, known, now),
        }
    }

    /// What `restore` does with what the disk has.
    fn restart(&mut self, pod: &Arc<Pod>, known: bool, now: i64) {
        self.work = None;
        let record = again(&pod.record());
        if matches!(record.phase, PodPhase::Creating | PodPhase::Removing) {
            self.containers.clear();
            self.pod = None;
            return;
        }
        let pod = Pod::new(record, None);
        let half = |r: &ContainerRecord| matches!(r.phase, ContainerPhase::Creating | ContainerPhase::Removing);
        let kept = self.containers.iter().map(|c| again(&c.record())).filter(|r| !half(r));
        self.containers = kept.map(|r| Container::new(r, pod.clone())).collect();
        self.pod = Some(pod);
        if !self.ready() {
            self.end_containers(now);
        }
        for c in &self.containers {
            c.change(|r| {
                if !known && r.is_live() {
                    r.end(255, "Unknown", "lost", now);
                }
                r.start_unanswered("the daemon ended")
            });
        }
    }

    /// All that can be seen is legal, and follows from what was seen before.
    fn check(&mut self) -> Result<(), String> {
        let Some(pod) = &self.pod else { return Ok(()) };
        let listed = pod.listed(&cri::PodSandboxFilter::default()).map(decoded::<cri::PodSandbox>);
        if listed != pod.with(filters::pod_item) {
            return Err("the pod is listed as it was before a change".into());
        }
        let Some(pod_status) = pod.with(filters::pod_status) else { return Ok(()) };
        legal::pod(&pod_status)?;
        if let Some(before) = &self.pod_seen {
            legal::pod_step(before, &pod_status)?;
        }
        let shown: Vec<_> =
            self.containers.iter().filter_map(|c| c.with(|r| filters::container_status(r, "/var/log"))).collect();
        for status in &shown {
            legal::container(status)?;
            if let Some(before) = self.seen.get(&status.id) {
                legal::container_step(before, status)?;
            }
            self.seen.insert(status.id.clone(), status.clone());
        }
        for c in &self.containers {
            let listed = c.with(filters::container_item);
            if c.listed(&cri::ContainerFilter::default()).map(decoded::<cri::Container>) != listed {
                return Err(format!("container {} is listed as it was before a change", c.id));
            }
            let status = shown.iter().find(|s| s.id == c.id);
            match (listed, status) {
                (Some(listed), Some(status)) => legal::container_listed(&listed, status)?,
                (None, None) => {}
                _ => return Err(format!("container {} is in one of list and status", c.id)),
            }
        }
        let taking_back = self.containers.iter().any(|c| c.with(|r| r.is_unanswered()));
        if self.work.is_none() && !taking_back {
            legal::at_rest(&pod_status, &shown)?;
        }
        self.pod_seen = Some(pod_status);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The clock may be set back at any moment, too.
    #[test]
    fn any_order_ends_in_a_legal_state(program in prop::collection::vec((happens(), 1i64..1_000_000), 1..60)) {
        let mut machine = Machine::new();
        for (number, (what, now)) in program.iter().enumerate() {
            machine.step(what, *now);
            let checked = machine.check();
            prop_assert!(checked.is_ok(), "step {number}, {what:?}: {}", checked.unwrap_err());
        }
        machine.step(&Happens::RemovePod, 1_000_000);
        machine.answer(Reply::Done, 1_000_000);
        prop_assert!(machine.pod.is_none() && machine.containers.is_empty());
    }
}

use super::*;
use crate::records::tests::{container, pod};

fn state(phase: Phase, code: i32) -> ContainerState {
    ContainerState { id: "c".into(), phase: phase.into(), exit_code: code, ..Default::default() }
}

fn with(phase: ContainerPhase) -> Arc<Container> {
    Container::new(container("c", phase), Pod::new(pod("p"), None))
}

/// Applies and gives phase, exit code, reason.
fn after(c: &Container, state: &ContainerState) -> (ContainerPhase, i32, String) {
    apply(c, state, 1000);
    c.with(|r| (r.phase, r.exit_code, r.reason.clone()))
}

#[test]
fn ends_get_their_reasons() {
    let oom = ContainerState { oom_killed: true, ..state(Phase::Exited, 137) };
    let oom_zero = ContainerState { oom_killed: true, ..state(Phase::Exited, 0) };
    let failed = ContainerState { message: "exec /x: not\nfound".into(), ..state(Phase::Exited, 128) };
    for (state, code, reason) in [
        (state(Phase::Exited, 0), 0, "Completed"),
        (state(Phase::Exited, 7), 7, "Error"),
        (state(Phase::Exited, -1), 255, "Error"),
        (oom, 137, "OOMKilled"),
        (oom_zero, 0, "OOMKilled"),
        (failed, 128, "StartError"),
    ] {
        let c = with(ContainerPhase::Running);
        assert_eq!(after(&c, &state), (ContainerPhase::Exited, code, reason.to_owned()));
        assert!(c.with(|r| !r.message.contains('\n') && r.started_at > 0 && r.finished_at > 0));
    }
}

#[test]
fn states_only_move_forward() {
    for (from, told, to) in [
        (ContainerPhase::Created, Phase::Created, ContainerPhase::Created),
        (ContainerPhase::Starting, Phase::Created, ContainerPhase::Starting),
        (ContainerPhase::Starting, Phase::Running, ContainerPhase::Running),
        (ContainerPhase::Created, Phase::Running, ContainerPhase::Running),
        (ContainerPhase::Running, Phase::Created, ContainerPhase::Running),
        (ContainerPhase::Exited, Phase::Running, ContainerPhase::Exited),
        (ContainerPhase::Removing, Phase::Running, ContainerPhase::Removing),
        (ContainerPhase::Removing, Phase::Exited, ContainerPhase::Removing),
        (ContainerPhase::Creating, Phase::Exited, ContainerPhase::Creating),
        (ContainerPhase::Running, Phase::Removed, ContainerPhase::Running),
    ] {
        assert_eq!(after(&with(from), &state(told, 0)).0, to, "{from:?} told {told:?}");
    }
}

#[test]
fn a_start_without_an_answer_is_unknown_until_the_agent_tells() {
    use cofferdam_proto::cri::ContainerState::{ContainerExited, ContainerRunning, ContainerUnknown};
    let shown = |c: &Container| c.with(crate::translate::filters::container_state);
    for (told, code, reason, message) in [
        (state(Phase::Exited, 137), 137, "StartError", "no answer"),
        (ContainerState { message: "exec: no".into(), ..state(Phase::Exited, 128) }, 128, "StartError", "exec: no"),
        (ContainerState { oom_killed: true, ..state(Phase::Exited, 137) }, 137, "OOMKilled", ""),
        (state(Phase::Exited, 0), 0, "Completed", ""),
    ] {
        let c = with(ContainerPhase::Starting);
        assert!(c.change(|r| r.start_unanswered("no answer")));
        assert_eq!(shown(&c), Some(ContainerUnknown));
        apply(&c, &state(Phase::Created, 0), 1000);
        assert!(!c.change(|r| r.start_unanswered("again") || r.begin_start()), "it can be started again");
        assert_eq!(shown(&c), Some(ContainerUnknown));
        apply(&c, &state(Phase::Running, 0), 1000);
        assert_eq!((shown(&c), c.with(|r| r.is_unanswered())), (Some(ContainerRunning), true));
        assert_eq!(after(&c, &told), (ContainerPhase::Exited, code, reason.to_owned()));
        assert_eq!((shown(&c), c.with(|r| r.message.clone())), (Some(ContainerExited), message.to_owned()));
        assert!(!c.with(|r| r.is_unanswered()));
    }
    assert!(!with(ContainerPhase::Running).change(|r| r.start_unanswered("no answer")), "what runs is known to run");
}

#[test]
fn times_are_the_node_s_and_bounded() {
    for (ago, finished) in [(0, 1000), (300, 700), (5000, 100), (u64::MAX, 1000)] {
        let c = with(ContainerPhase::Running);
        apply(&c, &ContainerState { exited_ago_nanos: ago, ..state(Phase::Exited, 0) }, 1000);
        assert_eq!(c.with(|r| r.finished_at), finished, "{ago} ago");
    }
}

#[tokio::test]
async fn who_waits_for_the_end_hears_of_it() {
    let c = with(ContainerPhase::Running);
    let waiting = tokio::spawn({
        let c = c.clone();
        async move { c.exited().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    apply(&c, &state(Phase::Exited, 0), 1000);
    waiting.await.unwrap();
}

mod guest;

use guest::Guest;

use super::*;

const STARTED: VmSize = VmSize { vcpus: 2, memory_mib: 256 };

#[test]
fn vcpus_go_down_to_one_and_up_to_what_the_guest_was_told_of() {
    let now = Vcpus { most: 4, made: 2 };
    for wanted in 1..=4 {
        assert_eq!(vcpus_change(STARTED, Some(now), wanted).unwrap(), Some(now));
    }
    for (now, wanted, most) in [(Some(now), 5, "4 vCPUs at most, not 5"), (None, 3, "2 vCPUs at most, not 3")] {
        let error = vcpus_change(STARTED, now, wanted).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, SandboxError::Refused(_)), "{text}");
        assert!(text.contains(most) && text.contains("vm.vcpus_max"), "{text}");
    }
    assert!(vcpus_change(STARTED, Some(now), 0).is_err());
    assert_eq!(vcpus_change(STARTED, None, 1).unwrap(), None, "a guest that keeps them is held by its cgroup");
}

#[test]
fn memory_stays_between_what_it_started_with_and_what_was_reserved() {
    let now = Memory { most_mib: 512, requested_mib: 64, plugged_mib: 64 };
    let change = |wanted| memory_change(STARTED, Some(now), wanted).map(|change| change.map(|(_, wanted)| wanted));
    assert_eq!(change(256).unwrap(), Some(0));
    assert_eq!(change(320).unwrap(), None);
    assert_eq!(change(321).unwrap(), Some(66), "in steps of 2 MiB");
    assert_eq!(change(768).unwrap(), Some(512));
    assert!(change(255).unwrap_err().to_string().contains("cannot shrink to 255 MiB"));
    assert!(change(769).unwrap_err().to_string().contains("vm.memory_max_mib"));
    let on_its_way = Memory { plugged_mib: 32, ..now };
    assert!(memory_change(STARTED, Some(on_its_way), 320).unwrap().is_some());
    assert_eq!(memory_change(STARTED, None, 256).unwrap(), None);
    assert!(memory_change(STARTED, None, 258).is_err());
}

fn size(vcpus: u8, memory_mib: u32) -> VmSize {
    VmSize { vcpus, memory_mib }
}

#[tokio::test]
async fn a_growth_that_failed_is_tried_again_by_the_next_one_and_keeps_nothing_else_from_growing() {
    let running = Guest::start(true).await;
    let (pod, guest) = (&running.pod, &running.guest);
    guest.state().failures.push_back((Code::Internal, 1));
    let error = pod.grow(size(3, 400)).await.unwrap_err().chain();
    assert_eq!(error, "cannot have 3 vCPUs online in the guest: as told");
    assert_eq!(guest.state().made, 3);
    assert_eq!(guest.has(), (1, 272), "the memory has grown all the same");
    pod.grow(size(3, 400)).await.unwrap();
    assert_eq!(guest.has(), (3, 272));
    pod.grow(size(2, 400)).await.unwrap();
    pod.grow(size(3, 400)).await.unwrap();
    assert_eq!(guest.state().asked, [3, 3], "it has what it needs");
}

#[tokio::test]
async fn less_is_tried_after_more_could_not_be_had() {
    let running = Guest::start(true).await;
    running.guest.state().failures.push_back((Code::Internal, 1));
    running.pod.grow(size(4, 0)).await.unwrap_err();
    running.pod.grow(size(2, 0)).await.unwrap();
    assert_eq!(running.guest.has(), (2, 0));
    assert_eq!(running.guest.state().asked, [4, 2]);
}

#[tokio::test]
async fn after_a_lost_answer_the_guest_is_asked_again() {
    let running = Guest::start(true).await;
    // It has them all, but the answer did not come.
    running.guest.state().failures.push_back((Code::Unavailable, 3));
    running.pod.grow(size(3, 0)).await.unwrap_err();
    running.pod.grow(size(2, 0)).await.unwrap();
    assert_eq!(running.guest.has(), (3, 0), "nothing shrinks");
    assert_eq!(running.guest.state().asked, [3, 3]);
}

#[tokio::test]
async fn vcpus_that_went_offline_do_not_come_back_with_memory() {
    let running = Guest::start(true).await;
    let (pod, guest) = (&running.pod, &running.guest);
    pod.resize(size(3, 128)).await.unwrap();
    pod.resize(size(1, 128)).await.unwrap();
    assert_eq!(guest.state().made, 3);
    assert_eq!(guest.has(), (1, 0));
    pod.grow(size(0, 600)).await.unwrap();
    assert_eq!(guest.has(), (1, 472));
}

#[tokio::test]
async fn a_daemon_that_finds_a_pod_shrinks_nothing() {
    let running = Guest::start(false).await;
    {
        let mut state = running.guest.state();
        (state.made, state.online) = (4, 4);
    }
    running.pod.grow(size(2, 0)).await.unwrap();
    assert_eq!(running.guest.has(), (4, 0));
}

#[tokio::test]
async fn a_refused_change_of_the_whole_pod_leaves_the_guest_as_it_was() {
    let running = Guest::start(true).await;
    let (pod, guest) = (&running.pod, &running.guest);
    guest.state().failures.push_back((Code::FailedPrecondition, 1));
    let error = pod.resize(size(3, 400)).await.unwrap_err();
    assert!(matches!(&error, SandboxError::Refused(why) if why.contains("3 vCPUs: as told")), "{error}");
    assert_eq!(guest.has(), (1, 0));
    pod.resize(size(3, 400)).await.unwrap();
    assert_eq!(guest.has(), (3, 272));
}

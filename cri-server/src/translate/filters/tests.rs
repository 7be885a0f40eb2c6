use super::*;
use crate::records::tests::{container, pod};

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn pods_are_listed_by_id_state_and_labels() {
    let mut p = pod("p");
    p.labels = labels(&[("a", "1"), ("b", "2")]);
    let ready = cri::PodSandboxState::SandboxReady.into();
    let not_ready = cri::PodSandboxState::SandboxNotready.into();
    type Filter = cri::PodSandboxFilter;
    let state = |state| Filter { state: Some(cri::PodSandboxStateValue { state }), ..Default::default() };
    let selector = |pairs: &[(&str, &str)]| Filter { label_selector: labels(pairs), ..Default::default() };
    for (filter, wanted) in [
        (Filter::default(), true),
        (Filter { id: "p".into(), ..Default::default() }, true),
        (Filter { id: "q".into(), ..Default::default() }, false),
        (state(ready), true),
        (state(not_ready), false),
        (selector(&[("a", "1")]), true),
        (selector(&[("a", "1"), ("b", "2")]), true),
        (selector(&[("a", "2")]), false),
        (selector(&[("c", "")]), false),
        (Filter { id: "p".into(), ..state(not_ready) }, false),
    ] {
        assert_eq!(wants_pod(&filter, &p), wanted, "{filter:?}");
    }
    p.phase = PodPhase::Creating;
    assert!(pod_item(&p).is_none(), "half a pod is not shown");
    p.phase = PodPhase::Removing;
    assert_eq!(pod_item(&p).unwrap().state, not_ready);
}

#[test]
fn containers_are_listed_by_id_pod_state_and_labels() {
    let mut c = container("c", ContainerPhase::Running);
    c.labels = labels(&[("a", "1")]);
    type Filter = cri::ContainerFilter;
    let state = |s: cri::ContainerState| Filter {
        state: Some(cri::ContainerStateValue { state: s.into() }),
        ..Default::default()
    };
    for (filter, wanted) in [
        (Filter::default(), true),
        (Filter { id: "c".into(), pod_sandbox_id: "p".into(), ..Default::default() }, true),
        (Filter { pod_sandbox_id: "q".into(), ..Default::default() }, false),
        (state(cri::ContainerState::ContainerRunning), true),
        (state(cri::ContainerState::ContainerExited), false),
        (Filter { label_selector: labels(&[("a", "1")]), ..Default::default() }, true),
        (Filter { label_selector: labels(&[("a", "")]), ..Default::default() }, false),
    ] {
        assert_eq!(wants_container(&filter, &c), wanted, "{filter:?}");
    }
    for (phase, shown) in [
        (ContainerPhase::Creating, None),
        (ContainerPhase::Created, Some(cri::ContainerState::ContainerCreated)),
        (ContainerPhase::Starting, Some(cri::ContainerState::ContainerCreated)),
        (ContainerPhase::Running, Some(cri::ContainerState::ContainerRunning)),
        (ContainerPhase::Exited, Some(cri::ContainerState::ContainerExited)),
        (ContainerPhase::Removing, Some(cri::ContainerState::ContainerExited)),
    ] {
        c.phase = phase;
        assert_eq!(container_item(&c).map(|l| l.state), shown.map(i32::from), "{phase:?}");
    }
}

#[test]
fn a_pod_s_status_has_what_the_kubelet_compares() {
    let mut p = pod("p");
    p.namespaces.network = cri::NamespaceMode::Node.into();
    let status = pod_status(&p).unwrap();
    let network = status.network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.88.0.5", "fd00::5"));
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!((options.network, options.pid), (cri::NamespaceMode::Node.into(), 1));
    assert_eq!((status.labels, status.annotations), (p.labels.clone(), p.annotations.clone()));
    p.phase = PodPhase::NotReady;
    assert!(pod_status(&p).unwrap().network.is_none());
}

#[test]
fn a_container_s_status_has_what_the_kubelet_checks() {
    let mut c = container("c", ContainerPhase::Running);
    let status = container_status(&c, "/var/log/pods/x/").unwrap();
    assert_eq!(status.log_path, "/var/log/pods/x/app/1.log");
    assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), ("sha256:1", "sha256:1"));
    assert_eq!(status.image.unwrap().image, "docker.io/library/busybox:1");
    assert_eq!(status.mounts[0].host_path, "/b");
    assert_eq!(status.resources.unwrap().linux.unwrap().cpu_shares, 2);
    assert_eq!(status.user.unwrap().linux.unwrap().supplemental_groups, [6, 7]);
    assert_eq!(status.annotations, c.annotations);
    assert_eq!(container_status(&c, "").unwrap().log_path, "");
    c.log_directory = "/var/log/pods/y".into();
    assert_eq!(container_status(&c, "/var/log/pods/x").unwrap().log_path, "/var/log/pods/y/app/1.log");
    c.image_digest = "docker.io/library/busybox@sha256:2".into();
    let status = container_status(&c, "").unwrap();
    assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), (c.image_digest.as_str(), "sha256:1"));
    assert_eq!(container_item(&c).unwrap().image_ref, c.image_digest);
}

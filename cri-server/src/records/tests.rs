use std::collections::HashMap;

use cofferdam_sandbox::Kind;

use super::*;

pub(crate) fn pod(id: &str) -> PodRecord {
    PodRecord {
        id: id.into(),
        name: "web".into(),
        namespace: "default".into(),
        uid: "u-1".into(),
        attempt: 2,
        handler: String::new(),
        kind: Kind::Vm,
        phase: PodPhase::Ready,
        created_at: 42,
        labels: HashMap::from([("io.kubernetes.pod.name".into(), "wéb\n\u{0}\u{7f}".into())]),
        annotations: HashMap::from([(String::new(), "\"quoted\\\"".into())]),
        log_directory: "/var/log/pods/x".into(),
        hostname: "web".into(),
        namespaces: NamespacesRecord { network: 0, pid: 1, ipc: 0, target_id: String::new(), users: None },
        privileged: false,
        addresses: vec!["10.88.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
        freed: false,
        ended: String::new(),
        resources: None,
        overhead: Some(ResourcesRecord { memory_limit: 1 << 20, ..Default::default() }),
    }
}

pub(crate) fn container(id: &str, phase: ContainerPhase) -> ContainerRecord {
    ContainerRecord {
        id: id.into(),
        pod: "p".into(),
        name: "app".into(),
        attempt: 1,
        phase,
        image: "sha256:1".into(),
        image_annotations: HashMap::new(),
        user_image: "docker.io/library/busybox:1".into(),
        image_id: "sha256:1".into(),
        image_digest: String::new(),
        created_at: 100,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        labels: HashMap::new(),
        annotations: HashMap::from([("io.kubernetes.container.hash".into(), "5f\u{202e}".into())]),
        mounts: vec![MountRecord { container_path: "/a".into(), host_path: "/b".into(), ..Default::default() }],
        log_path: "app/1.log".into(),
        resources: Some(ResourcesRecord { cpu_shares: 2, ..Default::default() }),
        user: UserRecord { uid: 5, gid: 6, groups: vec![6, 7] },
        stop_signal: 15,
        terminal: false,
        unanswered: String::new(),
    }
}

#[tokio::test]
async fn records_are_the_same_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.redb");
    let records = Records::open(&path).unwrap();
    let (p, c) = (pod("p"), container("c", ContainerPhase::Running));
    let (bytes, other) = (encode(&p), encode(&c));
    records.write(PODS, "p", move || Some(bytes)).await.unwrap();
    records.write(CONTAINERS, "c", move || Some(other)).await.unwrap();
    // What is on the disk now is what a kill leaves: no clean closing.
    let copy = dir.path().join("killed.redb");
    std::fs::copy(&path, &copy).unwrap();
    let again = Records::open(&copy).unwrap();
    assert_eq!(again.all::<PodRecord>(PODS).unwrap(), [p]);
    assert_eq!(again.all::<ContainerRecord>(CONTAINERS).unwrap(), [c]);
    again.write(PODS, "p", || None).await.unwrap();
    assert!(again.all::<PodRecord>(PODS).unwrap().is_empty());
}

#[tokio::test]
async fn a_late_writer_never_overwrites_with_something_older() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(&dir.path().join("r.redb")).unwrap();
    let attempt = Arc::new(AtomicU32::new(0));
    let writes = (0..50).map(|_| {
        attempt.fetch_add(1, Ordering::SeqCst);
        let (records, attempt) = (records.clone(), attempt.clone());
        tokio::spawn(async move {
            let latest = move || Some(encode(&PodRecord { attempt: attempt.load(Ordering::SeqCst), ..pod("p") }));
            records.write(PODS, "p", latest).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    assert_eq!(records.all::<PodRecord>(PODS).unwrap()[0].attempt, 50);
}

#[tokio::test]
async fn one_daemon_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.redb");
    let _first = Records::open(&path).unwrap();
    assert!(matches!(Records::open(&path), Err(RecordError::InUse(_))));
}

#[tokio::test]
async fn newer_and_broken_records_are_refused_and_unknown_fields_are_not() {
    for (text, wanted) in [
        (r#"{"v":2,"record":{"whatever":1}}"#, "version 2"),
        (r#"{"v":1,"record":{"id":"p"}}"#, "cannot be read"),
        ("rubbish", "cannot be read"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("r.redb")).unwrap();
        records.write(PODS, "p", move || Some(text.as_bytes().to_vec())).await.unwrap();
        let error = records.all::<PodRecord>(PODS).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let mut value: serde_json::Value = serde_json::from_slice(&encode(&pod("p"))).unwrap();
    value["record"]["later"] = 1.into();
    value["record"].as_object_mut().unwrap().remove("ended");
    assert_eq!(decode::<PodRecord>("p", value.to_string().as_bytes()).unwrap(), pod("p"));
}

#[test]
fn the_first_end_counts() {
    let mut c = container("c", ContainerPhase::Running);
    c.started_at = 150;
    c.end(3, "Error", "", 200);
    c.end(137, "Error", "the pod was stopped", 300);
    assert_eq!((c.exit_code, c.finished_at, c.phase), (3, 200, ContainerPhase::Exited));
    let mut never = container("c", ContainerPhase::Created);
    never.end(137, "Error", "", 50);
    assert_eq!((never.started_at, never.finished_at), (100, 100), "not before it was created, and not never");
}

#[test]
fn what_ran_is_told_from_what_did_not() {
    for (phase, started, reason, message, ran) in [
        (ContainerPhase::Created, 0, "StartError", "exec /x: not found", false),
        (ContainerPhase::Created, 0, "Error", "the pod was stopped", false),
        (ContainerPhase::Starting, 0, "Completed", "", true),
        (ContainerPhase::Running, 150, "Error", "", true),
        (ContainerPhase::Running, 150, "Error", "the pod was stopped", true),
    ] {
        let mut c = container("c", phase);
        c.started_at = started;
        assert_eq!(c.ran(), started != 0, "before the end");
        c.end(1, reason, message, 200);
        assert_eq!(c.ran(), ran, "{phase:?} {reason} {message}");
    }
}

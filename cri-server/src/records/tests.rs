use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::sync::Arc;

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
        info: Info::default(),
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
        image_name: String::new(),
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
        log_directory: String::new(),
        resources: Some(ResourcesRecord { cpu_shares: 2, ..Default::default() }),
        user: UserRecord { uid: 5, gid: 6, groups: vec![6, 7] },
        stop_signal: 15,
        terminal: false,
        agent_pid: 0,
        info: Info::default(),
        unanswered: String::new(),
        disks: vec!["b7.0w".into()],
    }
}

#[tokio::test]
async fn records_are_the_same_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.redb");
    let records = Records::open(&path).unwrap();
    let (p, c) = (pod("p"), container("c", ContainerPhase::Running));
    let (bytes, other) = (encode(&p).unwrap(), encode(&c).unwrap());
    records.write(PODS, "p", move || Ok(Some(bytes.clone()))).await.unwrap();
    records.write(CONTAINERS, "c", move || Ok(Some(other.clone()))).await.unwrap();
    // What is on the disk now is what a kill leaves: no clean closing.
    let copy = dir.path().join("killed.redb");
    std::fs::copy(&path, &copy).unwrap();
    let again = Records::open(&copy).unwrap();
    assert_eq!(again.all::<PodRecord>(PODS).unwrap().0, [p]);
    assert_eq!(again.all::<ContainerRecord>(CONTAINERS).unwrap().0, [c]);
    again.write(PODS, "p", || Ok(None)).await.unwrap();
    assert!(again.all::<PodRecord>(PODS).unwrap().0.is_empty());
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
            let latest = move || {
                let record = PodRecord { attempt: attempt.load(Ordering::SeqCst), ..pod("p") };
                encode(&record).map(Some)
            };
            records.write(PODS, "p", latest).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    assert_eq!(records.all::<PodRecord>(PODS).unwrap().0[0].attempt, 50);
}

#[tokio::test]
async fn one_daemon_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.redb");
    let _first = Records::open(&path).unwrap();
    assert!(matches!(Records::open(&path), Err(RecordError::InUse(_))));
}

/// Rows that this daemon cannot read, each with the words that say why.
pub(crate) const UNREADABLE: [(&str, &str); 4] = [
    (r#"{"v":2,"record":{"uid":"u-9","labels":{"a":"b"},"name":["not","text"],"phase":"frozen"}}"#, "version 2"),
    (r#"{"v":1,"record":{"id":"p"}}"#, "cannot be read"),
    ("rubbish", "cannot be read"),
    ("", "cannot be read"),
];

#[tokio::test]
async fn newer_and_broken_records_cost_nothing_but_themselves() {
    for (text, wanted) in UNREADABLE {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(&dir.path().join("r.redb")).unwrap();
        records.write(PODS, "bad", move || Ok(Some(text.into()))).await.unwrap();
        records.write(PODS, "p", || encode(&pod("p")).map(Some)).await.unwrap();
        let (good, bad) = records.all::<PodRecord>(PODS).unwrap();
        assert_eq!(good, [pod("p")]);
        assert!(bad.len() == 1 && bad[0].why.contains(wanted), "{bad:?}");
        let stand_in = salvage::pod(&bad[0], 77).unwrap();
        assert_eq!((stand_in.id.as_str(), stand_in.phase, stand_in.created_at), ("bad", PodPhase::NotReady, 77));
        assert_eq!(
            stand_in.uid,
            if wanted == "version 2" { "u-9" } else { "unreadable-bad" },
            "what can be read is kept"
        );
        records.set_aside(PODS, &bad[0], Some(&encode(&stand_in).unwrap())).unwrap();
        let (good, bad) = records.all::<PodRecord>(PODS).unwrap();
        assert_eq!((good.len(), bad.len()), (2, 0));
    }
}

#[test]
fn a_container_whose_record_cannot_be_read_has_ended_if_its_pod_is_known() {
    let row = |text: &str| Unreadable { id: "c".into(), why: "version 2".into(), bytes: text.into() };
    assert!(salvage::container(&row("rubbish"), 5).is_none());
    let newer = r#"{"v":2,"record":{"pod":"p","name":"app","attempt":3,"phase":"running","mounts":7}}"#;
    let c = salvage::container(&row(newer), 5).unwrap();
    assert_eq!((c.pod.as_str(), c.name.as_str(), c.attempt, c.phase), ("p", "app", 3, ContainerPhase::Exited));
    assert_eq!((c.exit_code, c.reason.as_str(), c.message.as_str(), c.finished_at), (255, "Unknown", "version 2", 5));
}

/// Rows that a daemon of before the fields that came since wrote, `v1/`.
#[test]
fn records_of_an_older_daemon_are_read_and_what_came_since_has_defaults() {
    let p: PodRecord = decode("p", include_bytes!("v1/pod.json")).unwrap();
    let users = Some(cofferdam_sandbox::UserRange { host_id: 65536, length: 65536 });
    let namespaces = NamespacesRecord { users, ..pod("p").namespaces };
    assert_eq!(p, PodRecord { namespaces, ..pod("p") });
    let c: ContainerRecord = decode("c", include_bytes!("v1/container.json")).unwrap();
    let mut expected = container("c", ContainerPhase::Running);
    expected.mounts.push(MountRecord::default());
    expected.disks.clear();
    assert_eq!(c, expected);
}

#[test]
fn fields_of_other_versions_do_no_harm() {
    let mut value: serde_json::Value = serde_json::from_slice(&encode(&pod("p")).unwrap()).unwrap();
    value["record"]["later"] = 1.into();
    value["record"].as_object_mut().unwrap().remove("ended");
    assert_eq!(decode::<PodRecord>("p", value.to_string().as_bytes()).unwrap(), pod("p"));
}

/// On a file system of its own that is filled; left out where the test may not mount one.
#[tokio::test]
async fn what_a_full_disk_does_not_take_is_written_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "small"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|m| m.success()) {
        return;
    }
    let (path, fill) = (dir.path().join("r.redb"), dir.path().join("fill"));
    let records = Records::open(&path).unwrap();
    records.write(PODS, "p", || encode(&pod("p")).map(Some)).await.unwrap();
    let large = || encode(&PodRecord { hostname: "x".repeat(600_000), ..pod("q") }).map(Some);
    let filled = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", fill.display())).output();
    assert!(!filled.unwrap().status.success(), "the disk is not full");
    let mut refused = 0;
    for n in 0..8 {
        // The room that is held serves some of them.
        refused += i32::from(records.write(PODS, &format!("q{n}"), large).await.is_err());
    }
    assert!(refused > 0 && records.failing().unwrap().full && records.behind() == 0);
    records.write_or_later(PODS, "later", large).await;
    records.write_or_later(PODS, "p", || Ok(None)).await;
    let owed = records.behind();
    records.catch_up();
    assert!(owed > 0 && records.behind() > 0, "nothing is forgotten while the disk is full");
    fs::remove_file(&fill).unwrap();
    records.catch_up();
    assert_eq!((records.behind(), records.failing()), (0, None));
    let (kept, _) = records.all::<PodRecord>(PODS).unwrap();
    assert!(kept.iter().any(|r| r.hostname.len() == 600_000) && !kept.iter().any(|r| r.hostname == "web"));
    Command::new("umount").arg("-l").arg(dir.path()).status().unwrap();
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

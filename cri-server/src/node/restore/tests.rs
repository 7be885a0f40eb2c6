use std::path::Path;

use super::*;
use crate::records;

fn id(letter: char) -> String {
    letter.to_string().repeat(64)
}

fn pod(letter: char, phase: PodPhase) -> PodRecord {
    PodRecord { phase, uid: letter.into(), ..records::tests::pod(&id(letter)) }
}

fn container(letter: char, pod: char, phase: ContainerPhase) -> ContainerRecord {
    let record = records::tests::container(&id(letter), phase);
    ContainerRecord { pod: id(pod), name: letter.into(), ..record }
}

/// A node as a daemon that starts on what another left in `dir` makes it.
async fn start(dir: &Path) -> Arc<Node> {
    let mut config = crate::config::tests_config();
    config.run_dir = dir.join("run");
    config.state_dir = dir.join("state");
    crate::node::tests_node(config).await
}

async fn keep(node: &Node, pods: &[PodRecord], containers: &[ContainerRecord]) {
    for record in pods {
        let bytes = records::encode(record).unwrap();
        node.records.write(PODS, &record.id, move || Ok(Some(bytes.clone()))).await.unwrap();
    }
    for record in containers {
        let bytes = records::encode(record).unwrap();
        node.records.write(CONTAINERS, &record.id, move || Ok(Some(bytes.clone()))).await.unwrap();
    }
}

/// After a reboot, or a kill with the pods' processes gone: nothing half done stays, and what ended
/// is told.
#[tokio::test]
async fn what_was_begun_is_undone_and_what_is_gone_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    {
        let node = start(dir.path()).await;
        let pods = [
            pod('a', PodPhase::Creating),
            pod('b', PodPhase::Ready),
            pod('c', PodPhase::Removing),
            pod('d', PodPhase::NotReady),
        ];
        let containers = [
            container('1', 'b', ContainerPhase::Running),
            container('2', 'b', ContainerPhase::Creating),
            container('3', 'b', ContainerPhase::Removing),
            container('4', 'b', ContainerPhase::Created),
            container('5', 'c', ContainerPhase::Exited),
            container('6', 'd', ContainerPhase::Starting),
            container('7', 'x', ContainerPhase::Running),
        ];
        keep(&node, &pods, &containers).await;
    }
    for start_number in 1..=2 {
        let node = start(dir.path()).await;
        all(&node).await.unwrap();
        let mut pods: Vec<_> = node.pods().iter().map(|p| (p.id.clone(), p.with(|r| r.phase))).collect();
        pods.sort();
        assert_eq!(pods, [(id('b'), PodPhase::NotReady), (id('d'), PodPhase::NotReady)], "start {start_number}");
        let mut containers: Vec<_> =
            node.containers().iter().map(|c| (c.id.clone(), c.with(|r| (r.phase, r.exit_code)))).collect();
        containers.sort_by(|a, b| a.0.cmp(&b.0));
        let exited = (ContainerPhase::Exited, 137);
        assert_eq!(containers, [(id('1'), exited), (id('4'), exited), (id('6'), exited)], "start {start_number}");
        assert!(
            node.containers()
                .iter()
                .all(|c| c.with(|r| r.started_at > 0 && r.finished_at > 0 && !r.message.is_empty()))
        );
        let kept: Vec<PodRecord> = node.records.all(PODS).unwrap().0;
        assert_eq!(kept.len(), 2, "the records are as the memory is");
        assert_eq!(node.records.all::<ContainerRecord>(CONTAINERS).unwrap().0.len(), 3);
        let taken = Name::Pod { name: "web".into(), namespace: "default".into(), uid: "b".into(), attempt: 2 };
        assert!(node.names.reserve(taken, "new").is_err(), "names stay taken");
    }
}

#[tokio::test]
async fn a_dead_pod_can_be_stopped_and_removed_with_all_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let node = start(dir.path()).await;
    keep(&node, &[pod('b', PodPhase::Ready)], &[container('1', 'b', ContainerPhase::Running)]).await;
    all(&node).await.unwrap();
    let pod = node.known_pod(&id('b')).unwrap();
    assert!(pod.sandbox().is_err());
    for _ in 0..2 {
        pod.stop(&node).await.unwrap();
    }
    assert!(pod.with(|r| r.freed) && node.container(&id('1')).unwrap().is_some());
    for _ in 0..2 {
        pod.remove(&node).await.unwrap();
    }
    assert!(node.pods().is_empty() && node.containers().is_empty());
    assert!(node.records.all::<PodRecord>(PODS).unwrap().0.is_empty());
    assert!(node.records.all::<ContainerRecord>(CONTAINERS).unwrap().0.is_empty());
}

/// A daemon that was rolled back, or a row that rotted.
#[tokio::test]
async fn a_pod_whose_record_cannot_be_read_is_not_ready_and_can_be_removed_beside_the_others() {
    let dir = tempfile::tempdir().unwrap();
    {
        let node = start(dir.path()).await;
        keep(&node, &[pod('b', PodPhase::Ready)], &[container('1', 'b', ContainerPhase::Exited)]).await;
        for (letter, (text, _)) in ('c'..).zip(records::tests::UNREADABLE) {
            node.records.write(PODS, &id(letter), || Ok(Some(text.into()))).await.unwrap();
            node.records.write(CONTAINERS, &id(letter), || Ok(Some(text.into()))).await.unwrap();
            // What the sandbox layer finds by the id.
            std::fs::create_dir_all(node.config.state_dir.join("pods").join(id(letter))).unwrap();
        }
        let newer = format!(r#"{{"v":9,"record":{{"pod":"{}","name":"app"}}}}"#, id('b'));
        node.records.write(CONTAINERS, &id('2'), move || Ok(Some(newer.clone().into()))).await.unwrap();
    }
    for start_number in 1..=2 {
        let node = start(dir.path()).await;
        all(&node).await.unwrap();
        assert_eq!(node.pods().len(), 1 + records::tests::UNREADABLE.len(), "start {start_number}");
        assert!(node.pods().iter().all(|p| p.with(|r| r.phase == PodPhase::NotReady)));
        let ended = node.known_container(&id('2')).unwrap().with(|r| (r.phase, r.reason.clone()));
        assert_eq!(ended, (ContainerPhase::Exited, "Unknown".into()));
        assert_eq!(node.containers().len(), 2, "start {start_number}");
        if start_number == 2 {
            for pod in node.pods() {
                pod.stop(&node).await.unwrap();
                pod.remove(&node).await.unwrap();
            }
            assert!(node.pods().is_empty() && node.containers().is_empty() && node.runtime.known().is_empty());
        }
    }
}

/// Left out where the test may not mount a file system of its own.
#[tokio::test]
async fn pods_are_stopped_and_removed_on_a_full_disk() {
    use std::process::Command;
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "small"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|m| m.success()) {
        return;
    }
    {
        let node = start(dir.path()).await;
        let mut large = pod('b', PodPhase::Ready);
        large.annotations.insert("long".into(), "x".repeat(300_000));
        keep(&node, &[large, pod('c', PodPhase::Ready)], &[container('1', 'b', ContainerPhase::Running)]).await;
        all(&node).await.unwrap();
        let fill = dir.path().join("fill");
        let filled = Command::new("dd").args(["if=/dev/zero", "bs=4k"]).arg(format!("of={}", fill.display())).output();
        assert!(!filled.unwrap().status.success(), "the disk is not full");
        // Nothing that is held in advance is left either.
        for n in 0..20 {
            let id = format!("x{n}");
            let _ = node.records.write(PODS, &id, || Ok(Some(vec![b'x'; 300_000]))).await;
            let _ = node.records.write(PODS, &id, || Ok(Some(vec![b'x'; 3000]))).await;
        }
        assert!(node.records.failing().is_some(), "the records can still be written");
        for letter in ['b', 'c'] {
            let pod = node.known_pod(&id(letter)).unwrap();
            pod.stop(&node).await.unwrap();
            pod.remove(&node).await.unwrap();
        }
        assert!(node.pods().is_empty() && node.containers().is_empty());
        std::fs::remove_file(&fill).unwrap();
        node.records.catch_up();
        let (kept, _) = node.records.all::<PodRecord>(PODS).unwrap();
        assert!(kept.is_empty() && node.records.behind() == 0, "{kept:?}");
    }
    Command::new("umount").arg("-l").arg(dir.path()).status().unwrap();
}

//! Phases, events, limits and ends.

use std::fs;
use std::path::Path;

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::*;
use tonic::Code;

use crate::support::{self, Pod, has_controllers, need_host_pods, sh, until};

#[tokio::test]
async fn phases_and_their_errors() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let start = |id: &str| StartContainerRequest { id: id.into() };
    assert_eq!(pod.client.start_container(start("none")).await.unwrap_err().code(), Code::NotFound);
    let resized = pod.client.resize_guest(ResizeGuestRequest { vcpus: 1 }).await;
    assert_eq!(resized.unwrap_err().code(), Code::FailedPrecondition, "the node's processors are not the pod's");

    let created = pod.client.create_container(pod.shell("a", "exec sleep 100000")).await.unwrap().into_inner();
    assert_eq!(created.user.unwrap().groups, [0]);
    assert_eq!(pod.state("a").await.unwrap().phase(), Phase::Created);
    assert_eq!(pod.client.create_container(pod.shell("a", "true")).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(pod.exec(sh("a", "true"), None).await.unwrap_err().code(), Code::FailedPrecondition);
    pod.client.start_container(start("a")).await.unwrap();
    assert_eq!(pod.state("a").await.unwrap().phase(), Phase::Running);
    assert_eq!(pod.client.start_container(start("a")).await.unwrap_err().code(), Code::FailedPrecondition);
    let signal = |signal, all| SignalContainerRequest { id: "a".into(), signal, all };
    assert_eq!(pod.client.signal_container(signal(99, false)).await.unwrap_err().code(), Code::InvalidArgument);
    pod.client.signal_container(signal(9, false)).await.unwrap();
    let ended = pod.ended("a").await;
    assert_eq!((ended.exit_code, ended.oom_killed), (137, false));
    pod.client.signal_container(signal(9, false)).await.unwrap();
    pod.client.signal_container(signal(15, true)).await.unwrap();

    for (id, args, words) in [
        ("m", &["no-such-command"][..], "not found"),
        ("n", &["/no/such/program"][..], "not found"),
        ("o", &["/etc/passwd"][..], "permission denied"),
    ] {
        pod.client.create_container(pod.request(id, args)).await.unwrap();
        let status = pod.client.start_container(start(id)).await.expect_err(id);
        assert!(status.message().contains(args[0]) && status.message().contains(words), "{status}");
        let state = pod.state(id).await.unwrap();
        assert_eq!((state.phase(), state.exit_code), (Phase::Exited, 128), "{id}");
        assert!(state.message.contains(args[0]), "{id}: {state:?}");
    }
    // Removed while CREATED and while RUNNING.
    pod.client.create_container(pod.shell("c", "true")).await.unwrap();
    pod.remove("c").await;
    pod.run(pod.shell("d", "trap '' TERM; while :; do sleep 1; done")).await.unwrap();
    pod.remove("d").await;
    assert!(pod.state("c").await.is_none() && pod.state("d").await.is_none());
    pod.end().await;
}

#[tokio::test]
async fn limits_and_stats() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("s", "head -c 3000000 /dev/zero > /big; exec sleep 100000")).await.unwrap();
    for _ in 0..1000 {
        if pod.exec(sh("s", "ps -o comm | grep -c sleep"), None).await.unwrap().stdout.trim() == "1" {
            break;
        }
    }
    let stats = pod.client.container_stats(ContainerStatsRequest { id: "s".into() }).await.unwrap().into_inner();
    assert!(stats.writable_bytes >= 3_000_000 && stats.writable_inodes >= 1, "{stats:?}");
    assert!(stats.cpu_usage_nanos > 0 && stats.pids >= 1, "{stats:?}");
    if !has_controllers() {
        let mut request = pod.shell("m", "true");
        request.resources = Some(Resources { memory_limit_bytes: 1 << 25, ..Resources::default() });
        let status = pod.client.create_container(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        eprintln!("limits are skipped: this machine's cgroup v2 has no memory and pids controllers");
        pod.end().await;
        return;
    }
    let mut request = pod.shell("m", "dd if=/dev/zero of=/dev/null bs=64M count=4; echo survived");
    request.resources =
        Some(Resources { memory_limit_bytes: 32 << 20, memory_swap_bytes: 32 << 20, ..Resources::default() });
    pod.run(request).await.unwrap();
    pod.open_log("m", "m");
    assert!(pod.ended("m").await.oom_killed);
    let mut request = pod.shell(
        "p",
        "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.high",
    );
    request.resources = Some(Resources {
        pids_limit: 17,
        cpu_shares: 1024,
        cpu_quota_us: 50_000,
        unified: [("memory.high".to_owned(), "33554432".to_owned()), ("no.such".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    });
    let (_, text) = pod.output(request).await;
    assert_eq!(text, "17\n100\n50000 100000\n33554432\n");
    pod.end().await;
}

/// Limits change whole or not at all, before the start and after it, and not after the end.
#[tokio::test]
async fn limits_change() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let update = |id: &str, resources| UpdateContainerRequest { id: id.into(), resources: Some(resources) };
    let nothing = pod.client.update_container(update("x", Resources::default())).await.unwrap_err();
    assert_eq!(nothing.code(), Code::NotFound, "{nothing}");
    pod.run(pod.shell("e", "true")).await.unwrap();
    pod.ended("e").await;
    let late = pod.client.update_container(update("e", Resources::default())).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition, "{late}");
    assert!(late.message().contains("has ended"), "{late}");
    pod.client
        .create_container(
            pod.shell("u", "exec awk 'BEGIN { s = sprintf(\"%50000000s\", \"x\"); while (1) system(\"sleep 1\") }'"),
        )
        .await
        .unwrap();
    let unknown = Resources { unified: [("no.such".to_owned(), "1".to_owned())].into(), ..Resources::default() };
    pod.client.update_container(update("u", unknown)).await.expect("unknown files are skipped");
    if !has_controllers() {
        let limit = Resources { memory_limit_bytes: 1 << 25, ..Resources::default() };
        let status = pod.client.update_container(update("u", limit)).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        eprintln!("limits are skipped: this machine's cgroup v2 has no memory and pids controllers");
        pod.end().await;
        return;
    }
    let wide = Resources {
        cpu_quota_us: 20_000,
        cpu_shares: 1024,
        memory_limit_bytes: 256 << 20,
        unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    };
    let cgroup = support::cgroup_root().join(&pod.cgroup).join("u");
    let read = |knob: &str| fs::read_to_string(cgroup.join(knob)).unwrap().trim().to_owned();
    let all = || ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group"].map(read);
    let set = ["100", "20000 100000", "268435456", "1"].map(str::to_owned);
    pod.client.update_container(update("u", wide)).await.expect("before the start");
    assert_eq!(all(), set);
    pod.client.start_container(StartContainerRequest { id: "u".into() }).await.unwrap();
    until("50 MB in use", || read("memory.current").parse::<u64>().unwrap() > 45_000_000);
    let small = |weight| Resources { cpu_shares: weight, memory_limit_bytes: 16 << 20, ..Resources::default() };
    let refused = pod.client.update_container(update("u", small(2))).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("cannot be 16777216 bytes"), "{refused}");
    assert_eq!(all(), set, "the weight was put back");
    let crooked = Resources { cpu_quota_us: 1, cpu_shares: 2, ..Resources::default() };
    let refused = pod.client.update_container(update("u", crooked)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(all(), set);
    let smaller = Resources { memory_limit_bytes: 128 << 20, cpu_quota_us: -1, ..Resources::default() };
    pod.client.update_container(update("u", smaller)).await.expect("while it runs");
    assert_eq!((read("memory.max").as_str(), read("cpu.max").as_str()), ("134217728", "max 100000"));
    assert_eq!(pod.state("u").await.unwrap().phase(), Phase::Running, "nothing was killed");
    pod.end().await;
}

/// What the agent says of one container, through the call that asks for all.
async fn measure(pod: &mut Pod, id: &str) -> ContainerStatsReply {
    let reply = pod.client.pod_stats(PodStatsRequest { processes: true }).await.unwrap().into_inner();
    assert_eq!(reply.containers.len(), 1);
    reply.containers.into_iter().find(|c| c.id == id).unwrap()
}

#[tokio::test]
async fn statistics_follow_what_a_container_does() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("s", "exec sleep 100000")).await.unwrap();
    let before = measure(&mut pod, "s").await;
    let (usage, processes) = (before.usage.clone().unwrap(), before.processes.unwrap());
    assert!(before.disk_bytes > before.writable_bytes && before.disk_inodes >= before.disk_free_inodes, "{before:?}");
    assert!(usage.tasks >= 1 && processes.processes >= 1 && processes.open_files >= 3, "{before:?}");
    assert_eq!((processes.open_files_limit, processes.sockets), (1024, 0), "{before:?}");

    let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; head -c 20000000 /dev/zero > /big; echo done";
    assert_eq!(pod.exec(sh("s", script), None).await.unwrap().stdout, "done\n");
    pod.exec(sh("s", "nc -l -p 7777 < /dev/null > /dev/null 2>&1 &"), None).await.unwrap();
    // nc takes a moment to open its socket.
    let mut after = measure(&mut pod, "s").await;
    for _ in 0..200 {
        if after.processes.is_some_and(|p| p.sockets >= 1) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        after = measure(&mut pod, "s").await;
    }
    let now = after.usage.clone().unwrap();
    assert!(now.cpu_nanos > usage.cpu_nanos + 10_000_000, "{usage:?} {now:?}");
    assert!(now.cpu_user_nanos > usage.cpu_user_nanos, "{usage:?} {now:?}");
    let more = after.processes.unwrap();
    assert!(more.processes > processes.processes && more.sockets >= 1, "{more:?}");
    if has_controllers() {
        assert!(now.memory_bytes > usage.memory_bytes + 10_000_000, "the page cache of the file counts: {now:?}");
        assert!(now.page_faults > usage.page_faults && now.memory_peak_bytes >= now.memory_bytes, "{now:?}");
    }
    assert_eq!(now.cpu_pressure.is_some(), Path::new("/proc/pressure/cpu").exists());

    // An ended container is still told of, and its processes are not looked for.
    pod.client.signal_container(SignalContainerRequest { id: "s".into(), signal: 9, all: true }).await.unwrap();
    pod.ended("s").await;
    let ended = measure(&mut pod, "s").await;
    assert!(ended.usage.unwrap().cpu_nanos >= now.cpu_nanos);
    assert_eq!(ended.processes.unwrap().open_files_limit, 0);
    pod.end().await;
}

#[tokio::test]
async fn events_tell_of_every_change() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut events = pod.client.events(EventsRequest {}).await.unwrap().into_inner();
    pod.open_log("e", "e");
    pod.run(pod.shell("e", "exit 5")).await.unwrap();
    let mut phases = Vec::new();
    while phases.last() != Some(&Phase::Exited) {
        phases.push(events.message().await.unwrap().unwrap().phase());
    }
    pod.remove("e").await;
    phases.push(events.message().await.unwrap().unwrap().phase());
    assert_eq!(phases, [Phase::Created, Phase::Running, Phase::Exited, Phase::Removed]);
    pod.end().await;
}

/// The supervisor dies: so does everything of the pod.
#[tokio::test]
async fn nothing_outlives_the_supervisor() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("a", "sleep 4900 & exec sleep 4901")).await.unwrap();
    let procs = support::cgroup_root().join(&pod.cgroup).join("a/cgroup.procs");
    let pids = || fs::read_to_string(&procs).unwrap().lines().count();
    until("the container's processes", || pids() == 2);
    let supervisor = rustix::process::Pid::from_raw(pod.supervisor as i32).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    until("the end of the container's processes", || pids() == 0);
    assert!(Path::new(&procs).exists());
}

//! A pod lives within its own cgroup, as the kubelet makes one for each pod with limits; and what a pod's processes are rated when
//! memory is short.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Test;
use crate::bench::memory::rss_mib;
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};
use crate::pod_cgroup::Parent;
use crate::processes;

pub(super) const TESTS: &[Test] = &[
    ("small_vm_pod_lives_within_its_cgroup", small_pod),
    ("host_pod_out_of_memory_loses_a_container", host_pod),
    ("cpu_quota_does_not_slow_the_start", quota),
    ("freed_memory_goes_back_to_the_node", goes_back),
];

const MIB: i64 = 1 << 20;

/// What the kubelet says of a pod whose containers may have `limit` MiB and whose RuntimeClass names `overhead` MiB.
fn sized(parent: &Parent, limit: i64, overhead: i64) -> serde_json::Value {
    json!({
        "cgroup_parent": parent.name,
        "resources": {"memory_limit_in_bytes": limit * MIB},
        "overhead": {"memory_limit_in_bytes": overhead * MIB},
    })
}

fn limited(name: &str, script: &str, mib: i64, oom_score_adj: i64) -> Container {
    let resources = json!({"memory_limit_in_bytes": mib * MIB, "oom_score_adj": oom_score_adj});
    Container::shell(name, script).with("linux", json!({"resources": resources}))
}

fn score(pid: u32) -> Outcome<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).doing("read a process's oom_score_adj")?;
    text.trim().parse().doing("read a process's oom_score_adj")
}

fn only(program: &str) -> Outcome<u32> {
    let running = processes::heads(program);
    ensure!(running.len() == 1, "{} processes run {program}", running.len());
    Ok(running[0])
}

/// The limit of a small container and the overhead of docs/configuration.md.
const SMALL: (i64, i64) = (64, 40);

fn small_pod() -> Outcome {
    let crictl = Crictl::default();
    let (limit, overhead) = SMALL;
    let tiny = Parent::new("/kubepods/e2e-tiny", &[("memory.max", "50331648")])?;
    let pod = Pod::new("tiny").with("linux", sized(&tiny, 8, 40));
    crictl.refused(&["runp", "--runtime", "vm", &pod.file()?], &["may use 48 MiB", "overhead.podFixed"])?;
    drop(tiny);

    let parent = Parent::new("/kubepods/e2e-small", &[("memory.max", &((limit + overhead) * MIB).to_string())])?;
    let pod = Pod::new("small").with("linux", sized(&parent, limit, overhead));
    let id = crictl.run_pod("vm", &pod)?;
    let monitor = only("cofferdam-vmm")?;
    ensure!(score(monitor)? == -997, "the monitor of a Guaranteed pod is rated {}", score(monitor)?);
    let worker = crictl.run_container(&id, &pod, &limited("worker", "exec sleep 100000", limit, 600))?;
    ensure!(score(monitor)? == 600, "the monitor is rated {}, not as its container", score(monitor)?);
    // Files and memory within the container's limit, several times all that the guest has.
    let work = "for i in 1 2 3 4; do dd if=/dev/zero of=/f$i bs=1M count=40 2>/dev/null; cat /f$i >/dev/null; rm /f$i; \
                dd if=/dev/zero bs=1M count=40 2>/dev/null | tail -c 41943040 | wc -c; done; cat /proc/meminfo";
    let said = crictl.run(&["exec", "--sync", &worker, "sh", "-c", work])?;
    ensure!(said.matches("41943040").count() == 4, "the work ended early: {said}");
    println!("        {}", said.lines().filter(|l| l.starts_with("Mem")).collect::<Vec<_>>().join(", "));
    println!("        the pod's cgroup: {}", parent.read("memory.events")?.replace('\n', ", "));
    println!("        {}", parent.read("memory.stat")?.lines().take(12).collect::<Vec<_>>().join(", "));
    // Over its limit: killed in the guest, and nothing else.
    let greedy = crictl.run_container(&id, &pod, &limited("greedy", "exec tail /dev/zero", limit, 600))?;
    crictl.wait_state(&greedy, "CONTAINER_EXITED")?;
    let reason = crictl.container_field(&greedy, "/status/reason")?;
    ensure!(reason == "OOMKilled", "a container over its limit ended as {reason}");
    crictl.run(&["exec", "--sync", &worker, "true"])?;
    ensure!(parent.oom_kills()? == 0, "the node killed in the pod's cgroup");
    // Less than the guest has touched already: the node has to kill, and the pod says why it ended.
    parent.set("memory.max", &(16 * MIB).to_string())?;
    crictl.wait_state(&worker, "CONTAINER_EXITED")?;
    let (reason, message) =
        (crictl.container_field(&worker, "/status/reason")?, crictl.container_field(&worker, "/status/message")?);
    ensure!(reason == "OOMKilled" && message.contains("ran out of memory"), "it ended as {reason}: {message}");
    crictl.remove_pod(&id)
}

fn host_pod() -> Outcome {
    let crictl = Crictl::default();
    // A Guaranteed pod: its limit is its container's, whose score is the lowest that containers have.
    let parent = Parent::new("/kubepods/e2e-host", &[("memory.max", &(64 * MIB).to_string())])?;
    let pod = Pod::new("guaranteed").with("linux", sized(&parent, 64, 0));
    let id = crictl.run_pod("host", &pod)?;
    let supervisor = only("cofferdam-agent")?;
    ensure!(score(supervisor)? == -998, "the supervisor is rated {}", score(supervisor)?);
    let greedy = crictl.run_container(&id, &pod, &limited("greedy", "sleep 1; exec tail /dev/zero", 64, -997))?;
    crictl.wait_state(&greedy, "CONTAINER_EXITED")?;
    let reason = crictl.container_field(&greedy, "/status/reason")?;
    ensure!(reason == "OOMKilled", "the container ended as {reason}");
    ensure!(only("cofferdam-agent")? == supervisor, "the pod went with its container");
    let plain = crictl.run_container(&id, &pod, &Container::shell("plain", "cat /proc/self/oom_score_adj"))?;
    crictl.wait_log(&plain, "0\n")?;
    crictl.remove_pod(&id)
}

/// Of what a program took and gave up, the node has four fifths again, by free page reporting.
fn goes_back() -> Outcome {
    const BURST: i64 = 256;
    let crictl = Crictl::default();
    let parent = Parent::new("/kubepods/e2e-burst", &[])?;
    let pod = Pod::new("burst").with("linux", sized(&parent, 3 * BURST, 0));
    let id = crictl.run_pod("vm", &pod)?;
    let container = crictl.run_container(&id, &pod, &limited("burst", "exec sleep 100000", 3 * BURST, 600))?;
    let monitor = only("cofferdam-vmm")?;
    let resident = || -> Outcome<f64> { rss_mib(monitor, u64::MAX / 1024) };
    let (before, bytes) = (resident()?, BURST * MIB);
    let fill = format!("dd if=/dev/zero bs=1M count={BURST} 2>/dev/null | tail -c {bytes} | wc -c");
    let said = crictl.run(&["exec", "--sync", &container, "sh", "-c", &fill])?;
    ensure!(said.trim() == bytes.to_string(), "the program ended early: {said}");
    let mut kept = 0.0;
    let back = wait_for("the node to have its memory again", || {
        kept = resident()? - before;
        Ok(kept <= BURST as f64 / 5.0)
    });
    println!("        kept {kept:.0} MiB of {BURST}");
    back.map_err(|failure| format!("{failure}; the monitor keeps {kept:.0} of {BURST} MiB"))?;
    crictl.remove_pod(&id)
}

fn quota() -> Outcome {
    let crictl = Crictl::default();
    let parent = Parent::new("/kubepods/e2e-quota", &[("cpu.max", "5000 100000")])?;
    let linux = json!({"cgroup_parent": parent.name, "resources": {"cpu_quota": 5000, "cpu_period": 100_000}});
    let pod = Pod::new("slow").with("linux", linux);
    let began = Instant::now();
    let id = crictl.run_pod("vm", &pod)?;
    let started = began.elapsed();
    let back = |when: &str| {
        let now = parent.read("cpu.max")?;
        ensure!(now.trim() == "5000 100000", "{when}: the pod's cgroup has the quota {now}");
        Ok(())
    };
    back("when the pod runs")?;
    let resources = json!({"cpu_quota": 5000, "cpu_period": 100_000});
    let slow = Container::shell("slow", "cat /sys/fs/cgroup/cpu.max; exec sleep 100000");
    let slow = slow.with("linux", json!({"resources": resources}));
    let container = crictl.run_container(&id, &pod, &slow)?;
    let running = began.elapsed();
    println!("        RunPodSandbox {:.1} s, running {:.1} s", started.as_secs_f32(), running.as_secs_f32());
    back("when the container runs")?;
    wait_for("the quota to hold a program", || Ok(!parent.read("cpu.stat")?.contains("nr_throttled 0\n")))?;
    // Without its quota lifted such a pod took more than 200 s, one without a quota 8 s.
    ensure!(running < Duration::from_secs(60), "a pod with a quota of 50m runs after {running:?}");
    crictl.wait_log(&container, "5000 100000")?;
    crictl.remove_pod(&id)
}

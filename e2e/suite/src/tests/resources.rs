//! Resources that change while a pod runs, and where its cgroup is.

use std::fs;
use std::path::Path;

use cofferdam_proto::cri;
use serde_json::json;

use super::{Test, with_both};
use crate::crictl::{self, Container, Crictl, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::processes;
use crate::rpc::Client;

pub(super) const TESTS: &[Test] = &[
    ("update_container_resources", || with_both(update_container)),
    ("pod_grows_and_shrinks", || with_both(grow_and_shrink)),
    ("cgroupfs_driver_keeps_a_pod_below_its_parent", cgroupfs),
    ("systemd_cgroup_driver", || daemon::with_settings("cgroup_driver = \"systemd\"\n", with_scopes)),
];

const MIB: i64 = 1 << 20;

/// What the container's own cgroup says.
fn cgroup(crictl: &Crictl, container: &str) -> Outcome<String> {
    let script = "cd /sys/fs/cgroup; echo $(cat memory.max) $(cat cpu.max)";
    crictl.run(&["exec", "--sync", container, "sh", "-c", script])
}

fn update_container(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("update");
    let id = crictl.run_pod(handler, &pod)?;
    let resources = json!({"memory_limit_in_bytes": 32 * MIB, "cpu_quota": 20_000, "cpu_period": 100_000});
    let container = Container::shell("update", "exec sleep 100000").with("linux", json!({"resources": resources}));
    let container = crictl.run_container(&id, &pod, &container)?;
    let first = cgroup(&crictl, &container)?;
    ensure!(first == format!("{} 20000 100000", 32 * MIB), "the container starts with {first}");

    let memory = (64 * MIB).to_string();
    crictl.run(&["update", "--memory", &memory, "--cpu-quota", "50000", "--cpu-period", "100000", &container])?;
    let check = |when: &str| {
        let now = cgroup(&crictl, &container)?;
        ensure!(now == format!("{} 50000 100000", 64 * MIB), "{when}: the container's cgroup has {now}");
        for (field, wanted) in [("memoryLimitInBytes", memory.as_str()), ("cpuQuota", "50000"), ("cpuPeriod", "100000")]
        {
            let told = crictl.container_field(&container, &format!("/status/resources/linux/{field}"))?;
            ensure!(told == wanted, "{when}: the status tells {field} = {told}, not {wanted}");
        }
        Ok(())
    };
    check("after the update")?;
    daemon::kill_and_restart()?;
    check("after the daemon's restart")?;
    crictl.remove_pod(&id)
}

/// Sets the limits of all of a pod, as the kubelet does before it changes the pod's cgroup: memory, and as much of each 100 ms of CPU.
/// Zero leaves a limit as it is.
fn resize(pod: &str, mib: i64, cpu_quota: i64) -> Outcome<Result<(), tonic::Status>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
    runtime.block_on(async {
        let mut client = Client::connect("cofferdam", crictl::SOCKET).await?;
        let resources = cri::LinuxContainerResources {
            memory_limit_in_bytes: mib * MIB,
            cpu_quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.into(),
            resources: Some(resources),
            ..Default::default()
        };
        Ok(client.runtime.update_pod_sandbox_resources(request).await.map(drop))
    })
}

fn resized(pod: &str, mib: i64, cpu_quota: i64) -> Outcome {
    let done = resize(pod, mib, cpu_quota)?;
    done.map_err(|s| Failure(format!("UpdatePodSandboxResources to {mib} MiB, {cpu_quota} us: {}", s.message())))
}

/// The resize must fail with a message that names the key.
fn not_resized(pod: &str, mib: i64, cpu_quota: i64, key: &str) -> Outcome {
    let message = resize(pod, mib, cpu_quota)?.err().map(|s| s.message().to_owned()).unwrap_or_default();
    ensure!(message.contains(key), "{mib} MiB, {cpu_quota} us should be refused with {key}: {message:?}");
    Ok(())
}

/// What a container sees of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    mib: i64,
    /// By nproc, by /proc/cpuinfo, and those that its first process, which was there before, may use.
    vcpus: [String; 3],
}

impl Machine {
    fn seen(crictl: &Crictl, container: &str) -> Outcome<Self> {
        let script = "awk '/MemTotal/ {print $2}' /proc/meminfo; nproc; grep -c ^processor /proc/cpuinfo; \
            awk '/Cpus_allowed_list/ {print $2}' /proc/$(pgrep -o -x sleep)/status";
        let text = crictl.run(&["exec", "--sync", container, "sh", "-c", script])?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let [kib, vcpus @ ..] = &words[..] else { return Err("the container said nothing".into()) };
        let mib = kib.parse::<i64>().doing(&format!("read {text:?}"))? / 1024;
        let vcpus = vcpus.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        Ok(Self { mib, vcpus: vcpus.try_into().map_err(|v| Failure(format!("the container said {v:?}")))? })
    }

    fn has(&self, vcpus: u8) -> Outcome {
        let wanted = if vcpus == 1 { ["1", "1", "0"] } else { ["2", "2", "0-1"] };
        ensure!(self.vcpus == wanted, "a guest of {vcpus} vCPUs shows {:?}", self.vcpus);
        Ok(())
    }
}

fn grow_and_shrink(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("resize");
    let id = crictl.run_pod(handler, &pod)?;
    let resources = json!({"cpu_quota": 150_000, "cpu_period": 100_000});
    let container = Container::shell("resize", "exec sleep 100000").with("linux", json!({"resources": resources}));
    let container = crictl.run_container(&id, &pod, &container)?;
    let seen = || Machine::seen(&crictl, &container);
    let before = seen()?;
    // What the monitor needs is not the guest's: 500 of these.
    resized(&id, 516, 200_000)?;
    let mut grown = seen()?;
    if handler == "host" {
        ensure!(grown == before, "the node changed from {before:?} to {grown:?}");
        return crictl.remove_pod(&id);
    }
    // The call returns when the guest has plugged the memory; a moment later its kernel uses all of it.
    wait_for("the guest's kernel to use what was plugged", || {
        grown = seen()?;
        Ok(grown.mib - before.mib >= 224)
    })?;
    // By its container's limit: nothing was said of the whole pod.
    before.has(2)?;
    grown.has(2)?;
    // 244 MiB more, of which the kernel keeps some to describe them.
    ensure!(grown.mib - before.mib <= 245, "{before:?} became {grown:?}");
    // Memory that the guest can use: more than it started with.
    crictl.run(&["exec", "--sync", &container, "dd", "if=/dev/zero", "of=/dev/null", "bs=320M", "count=1"])?;
    let quota = cgroup(&crictl, &container)?;
    ensure!(quota == "max 150000 100000", "the container's own limits are {quota}");
    daemon::kill_and_restart()?;
    ensure!(seen()? == grown, "the guest is another one after a restart of the daemon: {:?}", seen()?);
    // One of the two that cannot be had keeps the other from changing.
    not_resized(&id, 1 << 30 >> 10, 100_000, "vm.memory_max_mib")?;
    ensure!(seen()? == grown, "a refused growth changed the guest: {:?}", seen()?);
    resized(&id, 0, 100_000)?;
    let slower = seen()?;
    slower.has(1)?;
    ensure!(slower.mib == grown.mib, "vCPUs that went took memory with them: {slower:?}");
    // A limit without room for what the guest started with is refused.
    not_resized(&id, 128, 200_000, "cannot shrink")?;
    resized(&id, 272, 200_000)?;
    let shrunk = seen()?;
    shrunk.has(2)?;
    ensure!(shrunk.mib - before.mib < 16, "{before:?}, then {grown:?}, is {shrunk:?} after it shrank");
    crictl.remove_pod(&id)?;
    daemon::with_settings("[vm]\nvcpus_max = 1\n", bounded_vcpus)?;
    daemon::with_settings("[vm]\nunlimited_memory_percent = 10\n", without_limits)
}

/// A pod without any limit has a share of the node, since its container's limits say nothing.
fn without_limits() -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("unlimited");
    let id = crictl.run_pod("vm", &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("unlimited", "exec sleep 100000"))?;
    let seen = Machine::seen(&crictl, &container)?;
    ensure!(seen.mib > 450, "a pod without limits has {} MiB on a node of 6 GiB", seen.mib);
    ensure!(seen.vcpus[0] == "2", "a pod without limits has other than two vCPUs: {seen:?}");
    crictl.remove_pod(&id)
}

/// A pod of a node where guests keep their one vCPU.
fn bounded_vcpus() -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("bounded");
    let id = crictl.run_pod("vm", &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("bounded", "exec sleep 100000"))?;
    let before = Machine::seen(&crictl, &container)?;
    before.has(1)?;
    for when in ["at first", "after the daemon's restart"] {
        not_resized(&id, 512, 200_000, "vm.vcpus_max")?;
        let now = Machine::seen(&crictl, &container)?;
        ensure!(now == before, "{when}: a refused growth changed {before:?} to {now:?}");
        daemon::kill_and_restart()?;
    }
    resized(&id, 512, 100_000)?;
    crictl.remove_pod(&id)
}

fn cgroupfs() -> Outcome {
    with_both(|handler| below_parent(handler, "/e2e/deeper", ""))?;
    // A parent is its namer's, as the kubelet's are: it stays with the last pod. One that is not empty is not removed.
    for parent in ["/sys/fs/cgroup/e2e/deeper", "/sys/fs/cgroup/e2e"] {
        fs::remove_dir(parent).doing(&format!("remove {parent}, which is the test's own"))?;
    }
    Ok(())
}

/// Runs a pod below `parent`, where its first cgroup is to be `<parent's folder>/<prefix…>`, through a restart of the daemon; nothing of
/// it may stay.
fn below_parent(handler: &'static str, parent: &str, scope: &str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("placed").with("linux", json!({"cgroup_parent": parent}));
    let id = crictl.run_pod(handler, &pod)?;
    let name = if scope.is_empty() { id.clone() } else { format!("cofferdam-{id}.scope") };
    let cgroup = Path::new("/sys/fs/cgroup").join(parent.trim_start_matches('/')).join(&name);
    let container = crictl.run_container(&id, &pod, &Container::shell("placed", "exec sleep 100000"))?;
    let wanted = cgroup.strip_prefix("/sys/fs/cgroup").doing("name the cgroup")?.display().to_string();
    everything_is_in(handler, &id, &wanted)?;
    daemon::kill_and_restart()?;
    crictl.run(&["exec", "--sync", &container, "true"])?;
    everything_is_in(handler, &id, &wanted)?;
    // Whoever held the place for the pod's first process is gone.
    wait_for("the daemon to be alone", || Ok(processes::all("cofferdam").len() == 1))?;
    crictl.remove_pod(&id)?;
    ensure!(!cgroup.exists(), "{} is still there", cgroup.display());
    if scope.is_empty() {
        return Ok(());
    }
    wait_for("systemd to forget the scope", || {
        Ok(daemon::systemctl(&["list-units", "--all", "--plain", "--no-legend", "cofferdam-*.scope"])?.is_empty())
    })
}

/// The monitor or supervisor of the pod, and all below it, are in the cgroup.
fn everything_is_in(handler: &str, pod: &str, wanted: &str) -> Outcome {
    let program = if handler == "vm" { "cofferdam-vmm" } else { "cofferdam-agent" };
    let running = processes::all(program);
    ensure!(!running.is_empty(), "no {program} runs for pod {pod}");
    for pid in running {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).doing("read a process's cgroup")?;
        let at = text.trim().trim_start_matches("0::/");
        ensure!(at.starts_with(&format!("{wanted}/")), "{program} {pid} is in {at}, not below {wanted}");
    }
    Ok(())
}

fn with_scopes() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
    let driver = runtime.block_on(async {
        let mut client = Client::connect("cofferdam", crictl::SOCKET).await?;
        let answer = client.runtime.runtime_config(cri::RuntimeConfigRequest {}).await;
        let answer = answer.map_err(|s| client.failed("RuntimeConfig", &s))?.into_inner();
        Ok::<_, Failure>(answer.linux.map(|linux| linux.cgroup_driver()))
    })?;
    ensure!(driver == Some(cri::CgroupDriver::Systemd), "RuntimeConfig says {driver:?}");
    // As critest says it, and as the kubelet does.
    with_both(|handler| below_parent(handler, "/test.slice", "scope"))?;
    with_both(|handler| below_parent(handler, "/test.slice/test-deeper.slice", "scope"))?;
    let crictl = Crictl::default();
    let wrong = Pod::new("wrong").with("linux", json!({"cgroup_parent": "/kubepods"}));
    crictl.refused(&["runp", &wrong.file()?], &["slice"])
}

//! What limits do to a vm pod: it survives a small one, a low CPU quota does not slow its start, and memory that it no longer needs goes back.

use std::time::{Duration, Instant};

use cofferdam_proto::cri;

use super::report::Row;
use super::{GUEST_MAPPING_MIB, Samples, memory};
use crate::crictl::BUSYBOX;
use crate::failure::{Failure, Outcome, ensure};
use crate::pod_cgroup::Parent;
use crate::processes;
use crate::rpc::{Client, Net, container_config};

const MIB: i64 = 1 << 20;
/// Memory that a program fills and gives up, MiB.
const BURST: i64 = 256;
/// How long the node waits for it.
const RETURNS: Duration = Duration::from_secs(30);
/// The small pod: its container's limit, and the overhead that docs/configuration.md names, MiB.
const SMALL: (i64, i64) = (128, 60);
/// Rounds of files and of memory in it: 2 GiB and fifty times all that it may have.
const FILES: u32 = 64;
const FILLS: u32 = 50;
/// Of the small pod's memory, what its programs and its files' pages need, MiB.
const SLACK: i64 = 24;
const STARTS: usize = 5;

pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    let mut quota = samples.row("cpu_50m_pod_to_running", Some("vm"), "ms");
    quota.peer = Some(("the same pod without a limit", samples.get("cpu_50m_pod_to_running", "unlimited")));
    vec![
        samples.row("memory_returned_percent", Some("vm"), "%"),
        samples.row("small_limit_pod_survives", Some("vm"), "1 or 0"),
        quota,
    ]
}

pub(super) async fn measure(ours: &mut Client, samples: &mut Samples) -> Outcome {
    println!("bench: pods with limits");
    samples.add("memory_returned_percent", "vm", returned(ours).await?);
    samples.add("small_limit_pod_survives", "vm", if survives(ours).await? { 1.0 } else { 0.0 });
    for _ in 0..STARTS {
        let parent = Parent::new("/kubepods/bench-quota", &[("cpu.max", "5000 100000")])?;
        let limit = cri::LinuxContainerResources { cpu_quota: 5000, cpu_period: 100_000, ..Default::default() };
        samples.took("cpu_50m_pod_to_running", "vm", to_running(ours, parent.name, limit).await?);
        drop(parent);
        let parent = Parent::new("/kubepods/bench-quota", &[])?;
        let none = cri::LinuxContainerResources::default();
        samples.took("cpu_50m_pod_to_running", "unlimited", to_running(ours, parent.name, none).await?);
    }
    Ok(())
}

/// A pod in the cgroup `parent` whose containers may use `limit`, and one container in it; and both ids.
async fn start(
    client: &mut Client,
    parent: &str,
    limit: cri::LinuxContainerResources,
    overhead: i64,
) -> Outcome<(String, String)> {
    let mut config = client.pod_config(Net::Cni);
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = parent.into();
    linux.resources = Some(limit.clone());
    linux.overhead = Some(cri::LinuxContainerResources { memory_limit_in_bytes: overhead * MIB, ..Default::default() });
    let (pod, config) = client.run_pod_of("vm", config).await?;
    let mut sleeper = container_config("sleeper", BUSYBOX, &["sleep", "1000000"]);
    sleeper.linux.get_or_insert_default().resources = Some(limit);
    let container = client.create(&pod, config, sleeper).await?;
    client.start_container(&container).await?;
    Ok((pod, container))
}

async fn to_running(client: &mut Client, parent: &str, limit: cri::LinuxContainerResources) -> Outcome<Duration> {
    super::wash_memory();
    let began = Instant::now();
    let (pod, _) = start(client, parent, limit, 0).await?;
    let took = began.elapsed();
    client.remove(&pod).await?;
    Ok(took)
}

/// A program that fills `mib` of memory and ends: dd reads into one block of that size.
fn fill(mib: i64) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null")
}

/// The share of a burst that the node has again, in percent.
async fn returned(client: &mut Client) -> Outcome<f64> {
    let parent = Parent::new("/kubepods/bench-returned", &[])?;
    let limit = cri::LinuxContainerResources { memory_limit_in_bytes: 3 * BURST * MIB, ..Default::default() };
    let (pod, container) = start(client, parent.name, limit, 0).await?;
    let monitors = processes::heads("cofferdam-vmm");
    ensure!(monitors.len() == 1, "{} monitors run", monitors.len());
    let guest = || -> Outcome<f64> {
        Ok(memory::rss_mib(monitors[0], u64::MAX / 1024)? - memory::rss_mib(monitors[0], GUEST_MAPPING_MIB)?)
    };
    let before = guest()?;
    client.exec(&container, &["sh", "-c", &fill(BURST)]).await?;
    tokio::time::sleep(RETURNS).await;
    let kept = (guest()? - before).max(0.0);
    client.remove(&pod).await?;
    Ok((1.0 - kept / BURST as f64) * 100.0)
}

/// Whether a small pod lives through more files than its cgroup has memory, and through filling its memory again and again.
async fn survives(client: &mut Client) -> Outcome<bool> {
    let (limit, overhead) = SMALL;
    let parent = Parent::new("/kubepods/bench-small", &[("memory.max", &((limit + overhead) * MIB).to_string())])?;
    let resources = cri::LinuxContainerResources { memory_limit_in_bytes: limit * MIB, ..Default::default() };
    let (pod, container) = start(client, parent.name, resources, overhead).await?;
    let mut alive = true;
    for round in 0..FILES.max(FILLS) {
        let file = "dd if=/dev/zero of=/f bs=1M count=32 2>/dev/null && cat /f >/dev/null && rm /f";
        let mut script = if round < FILES { file.to_owned() } else { "true".to_owned() };
        if round < FILLS {
            script.push_str(&format!(" && {}", fill(limit - SLACK)));
        }
        if let Err(Failure(why)) = client.exec(&container, &["sh", "-c", &script]).await {
            println!("bench: the small pod did not survive round {round}: {why}");
            alive = false;
            break;
        }
    }
    alive &= parent.oom_kills()? == 0;
    client.remove(&pod).await?;
    Ok(alive)
}

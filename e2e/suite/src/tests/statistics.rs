//! Statistics follow what a pod does, and metrics are what was announced.

use std::collections::{HashMap, HashSet};
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;

use super::Test;
use crate::crictl::{self, BUSYBOX, Crictl};
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

pub(super) const TESTS: &[Test] = &[("stats_and_metrics", stats_and_metrics)];

/// What a container writes, and what a user of statistics may see of it at least.
const WRITTEN: u64 = 8 << 20;
/// How long a layer's size may be one that was measured before, and some.
const FRESH: Duration = Duration::from_secs(60);
/// First user of the node that a pod with users of its own has.
const FIRST_USER: u32 = 300_000;

fn stats_and_metrics() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing("start tokio")?.block_on(async {
        for (handler, own_users) in [("vm", false), ("host", false), ("host", true)] {
            let outcome = one_pod(handler, own_users).await;
            let users = if own_users { " with users of its own" } else { "" };
            outcome.map_err(|f| Failure(format!("{handler}{users}: {f}")))?;
        }
        image_file_system().await
    })
}

fn number(value: Option<cri::UInt64Value>) -> u64 {
    value.map_or(0, |v| v.value)
}

/// Gives the pod, and a container's security context, users of its own.
fn own_users(config: &mut cri::PodSandboxConfig) -> Option<cri::NamespaceOption> {
    let map = vec![cri::IdMapping { host_id: FIRST_USER, container_id: 0, length: 65_536 }];
    let users = cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: map.clone(), gids: map };
    let options = config.linux.as_mut()?.security_context.as_mut()?.namespace_options.as_mut()?;
    options.userns_options = Some(users);
    Some(options.clone())
}

async fn one_pod(handler: &'static str, with_own_users: bool) -> Outcome {
    let mut client = Client::connect("stats", crictl::SOCKET).await?;
    let mut config = client.pod_config(Net::Cni);
    let mut worker = container_config("worker", BUSYBOX, &["sh", "-c", "nc -l -p 80 & exec sleep 1000000"]);
    if with_own_users {
        let context =
            cri::LinuxContainerSecurityContext { namespace_options: own_users(&mut config), ..Default::default() };
        worker.linux = Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    }
    let (pod, config) = client.run_pod_of(handler, config).await?;
    let container = client.create(&pod, config, worker).await?;
    client.start_container(&container).await?;
    cpu_memory_and_disk(&mut client, &pod, &container).await?;
    network(&mut client, &pod).await?;
    metrics(&mut client, &pod, &container).await?;
    the_real_crictl(&pod, &container)?;
    client.remove(&pod).await
}

async fn of_container(client: &mut Client, id: &str) -> Outcome<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: id.into() };
    let stats = client.runtime.container_stats(request).await.map_err(|s| client.failed("ContainerStats", &s))?;
    Ok(stats.into_inner().stats.ok_or("there are no statistics of a running container")?)
}

async fn of_pod(client: &mut Client, id: &str) -> Outcome<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    let stats = client.runtime.pod_sandbox_stats(request).await.map_err(|s| client.failed("PodSandboxStats", &s))?;
    Ok(stats.into_inner().stats.and_then(|s| s.linux).ok_or("there are no statistics of a pod that is ready")?)
}

async fn cpu_memory_and_disk(client: &mut Client, pod: &str, container: &str) -> Outcome {
    let (pod_before, before) = (of_pod(client, pod).await?, of_container(client, container).await?);
    client.exec(container, &["sh", "-c", "timeout 3 sh -c 'while :; do :; done'; true"]).await?;
    let (pod_after, after) = (of_pod(client, pod).await?, of_container(client, container).await?);
    let cpu = |usage: &Option<cri::CpuUsage>| usage.as_ref().map_or(0, |c| number(c.usage_core_nano_seconds));
    for (what, before, after) in [("pod", &pod_before.cpu, &pod_after.cpu), ("container", &before.cpu, &after.cpu)] {
        // On a node that others share it gets less than the three seconds.
        ensure!(cpu(after) >= cpu(before) + 300_000_000, "the {what}'s CPU time went from {before:?} to {after:?}");
        let rate = after.as_ref().and_then(|c| c.usage_nano_cores);
        ensure!(number(rate) > 10_000_000, "a {what} that burned a CPU has the rate {rate:?}");
    }
    for (what, memory) in [("pod", &pod_after.memory), ("container", &after.memory)] {
        let memory = memory.as_ref().ok_or(format!("no memory of the {what}"))?;
        let (usage, set) = (number(memory.usage_bytes), number(memory.working_set_bytes));
        ensure!(set > 0 && set <= usage && number(memory.page_faults) > 0, "the {what}'s memory: {memory:?}");
    }
    let processes = pod_after.process.as_ref().map_or(0, |p| number(p.process_count));
    ensure!(processes >= 1, "a pod with a container has {processes} processes");
    let within = pod_after.containers.iter().any(|c| c.attributes.as_ref().is_some_and(|a| a.id == container));
    ensure!(within, "the container is not among its pod's: {:?}", pod_after.containers);

    let layer = |stats: &cri::ContainerStats| stats.writable_layer.clone().unwrap_or_default();
    let small = number(layer(&before).used_bytes);
    // Random: what is compressed or sparse somewhere below would not show.
    client.exec(container, &["sh", "-c", "head -c 8388608 /dev/urandom > /blob && sync"]).await?;
    let began = Instant::now();
    let last = loop {
        let last = layer(&of_container(client, container).await?);
        if number(last.used_bytes) >= small + WRITTEN {
            break last;
        }
        ensure!(began.elapsed() < FRESH, "a layer of {small} bytes into which {WRITTEN} were written is {last:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    ensure!(number(last.used_bytes) < small + 3 * WRITTEN, "a layer with {WRITTEN} bytes is {last:?}");
    ensure!(number(last.inodes_used) > 0, "a layer with a file has no inodes: {last:?}");
    on_the_node(last.fs_id.as_ref())
}

/// The kubelet looks for a mountpoint on the node, and gives up all statistics if it is not there.
fn on_the_node(fs: Option<&cri::FilesystemIdentifier>) -> Outcome {
    let path = fs.map_or("", |fs| fs.mountpoint.as_str());
    ensure!(path.starts_with('/') && Path::new(path).is_dir(), "the mountpoint {path:?} is not on the node");
    Ok(())
}

/// Datagrams from the node come in; what goes out is at least the answer that says who has the address.
async fn network(client: &mut Client, pod: &str) -> Outcome {
    const DATAGRAMS: u64 = 40;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: false };
    let answer = client.runtime.pod_sandbox_status(request).await.map_err(|s| client.failed("PodSandboxStatus", &s))?;
    let ip = answer.into_inner().status.and_then(|s| s.network).map(|n| n.ip).unwrap_or_default();
    let counters = |stats: cri::LinuxPodSandboxStats| stats.network.and_then(|n| n.default_interface);
    let before = counters(of_pod(client, pod).await?).ok_or("the pod has no interface")?;
    let socket = UdpSocket::bind("0.0.0.0:0").doing("open a socket")?;
    for _ in 0..DATAGRAMS {
        socket.send_to(&[0; 1000], (ip.as_str(), 9)).doing("send a datagram to the pod")?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let began = Instant::now();
    loop {
        let after = counters(of_pod(client, pod).await?).ok_or("the pod has no interface any more")?;
        // The first few may be lost while the address is looked for.
        let came = number(after.rx_bytes) >= number(before.rx_bytes) + DATAGRAMS / 2 * 1000;
        if came && number(after.tx_bytes) > number(before.tx_bytes) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < FRESH,
            "{DATAGRAMS} datagrams of 1000 bytes were sent to the pod: {before:?}, then {after:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn metrics(client: &mut Client, pod: &str, container: &str) -> Outcome {
    let descriptors = client.runtime.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await;
    let descriptors = descriptors.map_err(|s| client.failed("ListMetricDescriptors", &s))?.into_inner().descriptors;
    let labels: HashMap<&str, usize> = descriptors.iter().map(|d| (d.name.as_str(), d.label_keys.len())).collect();
    ensure!(labels.len() == descriptors.len(), "a metric is announced twice: {descriptors:?}");
    let answer = client.runtime.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await;
    let answer = answer.map_err(|s| client.failed("ListPodSandboxMetrics", &s))?.into_inner().pod_metrics;
    let ours = answer.iter().find(|m| m.pod_sandbox_id == pod).ok_or("the pod has no metrics")?;
    let of_container = ours.container_metrics.iter().find(|c| c.container_id == container);
    let of_container = &of_container.ok_or("the container has no metrics")?.metrics;
    let all: Vec<&cri::Metric> = ours.metrics.iter().chain(of_container).collect();
    let mut seen = HashSet::new();
    for metric in &all {
        let announced = labels.get(metric.name.as_str());
        ensure!(announced == Some(&metric.label_values.len()), "{metric:?} was announced with {announced:?} labels");
        ensure!(seen.insert((&metric.name, &metric.label_values)), "{metric:?} is there twice");
        ensure!(metric.timestamp > 0 && metric.value.is_some(), "{metric:?} has no time or no value");
    }
    let without: Vec<_> = labels.keys().filter(|name| !all.iter().any(|m| m.name == **name)).collect();
    ensure!(without.is_empty(), "announced, and without a value for the pod: {without:?}");
    let value = |name: &str| of_container.iter().filter(|m| m.name == name).map(|m| number(m.value)).max().unwrap_or(0);
    // The shell's netcat and the sleep; three descriptors each at least, and the socket that is listened on.
    for (name, least) in [
        ("container_processes", 2),
        ("container_threads", 2),
        ("container_file_descriptors", 4),
        ("container_sockets", 1),
        ("container_ulimits_soft", 1),
        ("container_memory_usage_bytes", 1),
        ("container_fs_usage_bytes", WRITTEN),
        ("container_fs_limit_bytes", WRITTEN),
        ("container_start_time_seconds", 1_600_000_000),
    ] {
        ensure!(value(name) >= least, "{name} is {}, not {least} or more", value(name));
    }
    Ok(())
}

fn the_real_crictl(pod: &str, container: &str) -> Outcome {
    let crictl = Crictl::default();
    let json = crictl.json(&["stats", "-o", "json", "--id", container])?;
    let cpu = json.pointer("/stats/0/cpu/usageCoreNanoSeconds/value").and_then(|v| v.as_str());
    ensure!(cpu.is_some_and(|cpu| cpu.parse::<u64>().is_ok_and(|n| n > 0)), "crictl stats says {json}");
    let table = crictl.run(&["stats", "--seconds", "1"])?;
    ensure!(table.contains(container.get(..13).unwrap_or(container)), "crictl stats shows {table}");
    let json = crictl.json(&["statsp", "-o", "json", "--id", pod])?;
    let memory = json.pointer("/stats/0/linux/memory/workingSetBytes/value").and_then(|v| v.as_str());
    ensure!(memory.is_some_and(|bytes| bytes.parse::<u64>().is_ok_and(|n| n > 0)), "crictl statsp says {json}");
    let metrics = crictl.run(&["metricsp"])?;
    ensure!(metrics.contains("container_memory_working_set_bytes"), "crictl metricsp says {metrics}");
    Ok(())
}

async fn image_file_system() -> Outcome {
    let mut client = Client::connect("images", crictl::SOCKET).await?;
    let answer = client.image.image_fs_info(cri::ImageFsInfoRequest {}).await;
    let answer = answer.map_err(|s| client.failed("ImageFsInfo", &s))?.into_inner();
    for (what, systems) in [("images", &answer.image_filesystems), ("containers", &answer.container_filesystems)] {
        ensure!(systems.len() == 1, "{} file systems of {what}", systems.len());
        for fs in systems {
            let (bytes, inodes) = (number(fs.used_bytes), number(fs.inodes_used));
            ensure!(fs.timestamp > 0 && bytes > 100_000 && inodes > 0, "the file system of {what}: {fs:?}");
            on_the_node(fs.fs_id.as_ref())?;
        }
    }
    Ok(())
}

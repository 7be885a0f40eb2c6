//! MicroVMs from templates: against a boot, without CNI, twenty at once, and the memory of one more.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::report::Row;
use super::{PEER_SOCKET, Samples, last_boot_ms, wash_memory};
use crate::crictl::{self, BUSYBOX, Crictl, Pod};
use crate::failure::{Doing, Failure, Outcome};
use crate::openmetrics::scrape;
use crate::rpc::{Client, Net};
use crate::{daemon, processes, templates};

/// Pods that are started at once, or one after the other for their memory.
const MANY: usize = 20;
/// How long idle pods are left alone before their memory is looked at: a guest gives back what it
/// freed by and by.
const SETTLES: Duration = Duration::from_secs(30);

/// Who is measured when a pod gets a microVM that has waited.
pub(super) const FROM_THE_POOL: &str = "vm, from the pool";

const PLUGIN: &str = "/opt/cni/bin/e2e-least";
const NETWORK: &str = "/etc/cni/net.d/00-e2e-least.conflist";

/// Rows of [`many`] and [`boots`], and clones one by one, which the starts have shown.
pub(super) fn rows(samples: &Samples) -> Vec<Row> {
    vec![
        samples.row("vm_boot_ms", Some("vm"), "ms"),
        samples.row("vm_clone_ms", Some("vm"), "ms"),
        samples.row("clones_20_at_once_ms", Some("vm"), "ms"),
        samples.row("idle_vm_pod_mib", Some("vm"), "MiB"),
        samples.row("idle_vm_pod_private_mib", Some("vm"), "MiB"),
    ]
}

/// A pod network of one plugin that does the least, as long as it is held. Ours is the only runtime
/// whose pods are started meanwhile.
pub(super) struct LeastNetwork;

impl LeastNetwork {
    pub(super) fn new() -> Outcome<Self> {
        fs::create_dir_all("/opt/cni/bin").doing("make the plugins' folder")?;
        fs::write(PLUGIN, include_str!("least-plugin.sh")).doing(&format!("write {PLUGIN}"))?;
        fs::set_permissions(PLUGIN, fs::Permissions::from_mode(0o755)).doing(&format!("make {PLUGIN} a program"))?;
        let list = r#"{"cniVersion": "1.0.0", "name": "least", "plugins": [{"type": "e2e-least"}]}"#;
        fs::write(NETWORK, list).doing(&format!("write {NETWORK}"))?;
        Ok(Self)
    }
}

impl Drop for LeastNetwork {
    fn drop(&mut self) {
        let _ = fs::remove_file(NETWORK);
        let _ = fs::remove_file(PLUGIN);
    }
}

/// One vm pod whose network takes next to no time, for the samples of `who`.
pub(super) async fn without_cni(ours: &mut Client, who: &'static str, samples: &mut Samples) -> Outcome {
    let network = LeastNetwork::new()?;
    let started = ours.start("vm", Net::Cni, BUSYBOX).await?;
    samples.took("pod_to_running_no_cni", who, started.run_pod + started.create_start);
    ours.remove(&started.pod).await?;
    drop(network);
    Ok(())
}

/// Pods without CNI that get a microVM of the pool, beside the peer's.
pub(super) fn from_the_pool(runtime: &Runtime, n: usize, samples: &mut Samples) -> Outcome {
    daemon::with_settings("[vm]\npool = 1\n", || {
        runtime.block_on(async {
            let mut ours = Client::connect("cofferdam", crictl::SOCKET).await?;
            let mut peer = Client::connect("containerd", PEER_SOCKET).await?;
            for client in [&mut ours, &mut peer] {
                client.pull(BUSYBOX).await?;
            }
            let mut uncounted = Samples::default();
            for round in 0..=n {
                println!("bench: start from the pool {round} of {n} (0 does not count)");
                let samples = if round == 0 { &mut uncounted } else { &mut *samples };
                crictl::wait_for("a microVM to wait in the pool", || {
                    Ok(scrape()?.value("cofferdam_vm_pool", &[]) == Some(1.0))
                })?;
                wash_memory();
                without_cni(&mut ours, FROM_THE_POOL, samples).await?;
                without_cni_peer(&mut peer, samples).await?;
            }
            Ok(())
        })
    })
}

/// One of the peer's pods on the node's network.
pub(super) async fn without_cni_peer(peer: &mut Client, samples: &mut Samples) -> Outcome {
    let started = peer.start("", Net::Node, BUSYBOX).await?;
    samples.took("pod_to_running_no_cni", "peer", started.run_pod + started.create_start);
    peer.remove(&started.pod).await
}

/// Many pods at once, and many that idle.
pub(super) async fn many(ours: &mut Client, n: usize, samples: &mut Samples) -> Outcome {
    // A round of the peer's takes minutes in an emulated node.
    for round in 0..(n / 10).clamp(1, 3) {
        println!("bench: {MANY} pods at once, round {}", round + 1);
        for (who, socket, handler) in [("vm", crictl::SOCKET, "vm"), ("peer", PEER_SOCKET, "")] {
            samples.took("clones_20_at_once_ms", who, at_once(socket, handler).await?);
        }
    }
    println!("bench: memory of {MANY} idle vm pods");
    one_more(ours, samples).await
}

/// All pods of `handler` are started at once; from the first call to the last container that runs.
async fn at_once(socket: &'static str, handler: &'static str) -> Outcome<Duration> {
    let began = Instant::now();
    let mut starting = JoinSet::new();
    let mut client = Client::connect("at-once", socket).await?;
    for _ in 0..MANY {
        let mut one = client.another();
        starting.spawn(async move { one.start(handler, Net::Cni, BUSYBOX).await });
    }
    let mut pods = Vec::new();
    while let Some(started) = starting.join_next().await {
        pods.push(started.doing("wait for a start")??.pod);
    }
    let took = began.elapsed();
    for pod in pods {
        client.remove(&pod).await?;
    }
    Ok(took)
}

/// Memory that the node has less with one more idle pod: of all that it has available, and of what
/// belongs to the monitor alone.
async fn one_more(ours: &mut Client, samples: &mut Samples) -> Outcome {
    templates::settle();
    let mut pods = Vec::new();
    let mut available = Vec::new();
    for count in [MANY / 2, MANY] {
        while pods.len() < count {
            pods.push(ours.start("vm", Net::Cni, BUSYBOX).await?.pod);
        }
        tokio::time::sleep(SETTLES).await;
        available.push(available_mib()?);
    }
    samples.add("idle_vm_pod_mib", "vm", (available[0] - available[1]) / (MANY / 2) as f64);
    for pid in processes::all("cofferdam-vmm") {
        samples.add("idle_vm_pod_private_mib", "vm", private_mib(pid)?);
    }
    for pod in pods {
        ours.remove(&pod).await?;
    }
    Ok(())
}

/// Memory that the node could give to new programs.
fn available_mib() -> Outcome<f64> {
    let text = fs::read_to_string("/proc/meminfo").doing("read /proc/meminfo")?;
    kib(&text, "MemAvailable:").map(|kib| kib / 1024.0)
}

/// Pages that no other process has.
fn private_mib(pid: u32) -> Outcome<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).doing(&format!("read {path}"))?;
    Ok((kib(&text, "Private_Clean:")? + kib(&text, "Private_Dirty:")?) / 1024.0)
}

fn kib(text: &str, name: &str) -> Outcome<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| Failure(format!("there is no {name} in {text}")))
}

/// Pods without a template.
pub(super) fn boots(n: usize, samples: &mut Samples) -> Outcome {
    daemon::with_settings("[vm]\ntemplate = false\n", || {
        let crictl = Crictl::default();
        for round in 0..n {
            println!("bench: boot {} of {n}", round + 1);
            let pod = crictl.run_pod("vm", &Pod::new("bench-boot"))?;
            samples.add("vm_boot_ms", "vm", last_boot_ms()?);
            crictl.remove_pod(&pod)?;
        }
        Ok(())
    })
}

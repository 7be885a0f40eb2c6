//! Cofferdam beside containerd + runc, in one run, alternating.

mod counts;
mod histogram;
mod limits;
mod lists;
pub(crate) mod memory;
mod pulls;
pub(crate) mod report;
mod targets;
mod templates;
mod workloads;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::crictl::{self, BUSYBOX};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::processes;
use crate::rpc::{Client, Net};
use report::{PEER, Report, Row, percentile};

/// The socket of containerd, which is started where it is wanted.
pub(crate) const PEER_SOCKET: &str = "/run/containerd/containerd.sock";
/// Mappings this large are the guest's memory.
const GUEST_MAPPING_MIB: u64 = 64;

/// How much to measure.
pub(crate) struct Options {
    pub(crate) out: PathBuf,
    /// Samples of each row but pulls; absent: what is usual for the rows.
    pub(crate) n: Option<usize>,
    pub(crate) pulls: usize,
    pub(crate) list_pods: usize,
    pub(crate) idle_seconds: u64,
    pub(crate) machine: String,
    pub(crate) rows: Rows,
}

/// Which rows to measure.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Rows {
    /// Every one but the workloads, which makes a new report.
    All,
    /// The lists; they are printed only.
    Lists,
    /// Those of pulls; they are added to the report that is there.
    Pulls,
    /// Those of starts, templates and the pool; they are added to the report that is there.
    Starts,
    /// Those of work in running pods; they are added to the report that is there.
    Workloads,
}

impl Rows {
    /// How many samples of each, where nobody says.
    fn usual_rounds(self) -> usize {
        if self == Self::Workloads { 5 } else { 20 }
    }
}

/// Samples by row and by who was measured.
#[derive(Default)]
struct Samples(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Samples {
    fn add(&mut self, row: &'static str, who: &'static str, value: f64) {
        println!("bench: {row}, {who}: {value:.1}");
        self.0.entry((row, who)).or_default().push(value);
    }

    fn took(&mut self, row: &'static str, who: &'static str, time: Duration) {
        self.add(row, who, time.as_secs_f64() * 1000.0);
    }

    fn get(&self, row: &'static str, who: &'static str) -> Vec<f64> {
        self.0.get(&(row, who)).cloned().unwrap_or_default()
    }

    fn row(&self, name: &'static str, handler: Option<&'static str>, unit: &'static str) -> Row {
        let peer = self.get(name, "peer");
        let peer = (!peer.is_empty()).then_some((PEER, peer));
        Row { name, handler, unit, ours: self.get(name, handler.unwrap_or("ours")), peer }
    }
}

/// Measures everything and writes the report.
pub(crate) fn run(options: &Options) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start tokio")?;
    if options.rows == Rows::Lists {
        return runtime.block_on(lists::alone(options.list_pods));
    }
    systemctl("start", "containerd.service")?;
    crictl::wait_for("containerd to listen", || Ok(std::path::Path::new(PEER_SOCKET).exists()))?;
    let n = options.n.unwrap_or(options.rows.usual_rounds());
    if options.rows == Rows::Pulls {
        return runtime.block_on(pulls::alone(options));
    }
    if options.rows == Rows::Workloads {
        return runtime.block_on(workloads::alone(&options.out, n));
    }
    let mut samples = Samples::default();
    // First: these start the daemon anew, which ends connections, and what comes later is about a
    // daemon that has served a while.
    templates::boots(n, &mut samples)?;
    templates::from_the_pool(&runtime, n, &mut samples)?;
    runtime.block_on(measure(options, n, samples))
}

fn systemctl(verb: &str, unit: &str) -> Outcome {
    let output = Command::new("systemctl").args([verb, unit]).output().doing("run systemctl")?;
    ensure!(output.status.success(), "systemctl {verb} {unit}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn measure(options: &Options, n: usize, mut samples: Samples) -> Outcome {
    let mut ours = Client::connect("cofferdam", crictl::SOCKET).await?;
    let mut peer = Client::connect("containerd", PEER_SOCKET).await?;
    let mut notes = Vec::new();
    for client in [&mut ours, &mut peer] {
        client.pull(BUSYBOX).await?;
    }
    println!("bench: one round that does not count: whatever is slow only once is over then");
    starts(&mut ours, &mut peer, 1, &mut Samples::default()).await?;
    let earlier = started_vm_pods()?.len();
    starts(&mut ours, &mut peer, n, &mut samples).await?;
    let pods = started_vm_pods()?.split_off(earlier);
    starts_without_cni(&mut ours, &mut peer, n, &mut samples).await?;
    counts::measure(&mut ours, &mut samples).await?;
    templates::many(&mut ours, n, &mut samples).await?;
    if options.rows == Rows::Starts {
        let rows = start_rows(&samples);
        rows.iter().try_for_each(Row::ensure_measured)?;
        return report::add(&options.out, &rows, &targets::notes(targets::TARGETS, &rows));
    }
    pulls::measure(&mut ours, &mut peer, options.pulls, &mut samples).await?;
    memory_and_idle(&mut ours, &mut peer, options, &mut samples, &mut notes).await?;
    limits::measure(&mut ours, &mut samples).await?;
    lists::measure(&mut ours, options.list_pods, &mut samples).await?;
    let step = |number: usize| pods.iter().filter_map(|pod| pod[number]).collect::<Vec<f64>>();
    step(CNI).into_iter().for_each(|ms| samples.add("cni_add", "ours", ms));
    let mut steps: Vec<_> = STEPS.iter().enumerate().map(|(number, (name, ..))| (*name, step(number))).collect();
    steps.push(("container: create and start, as the client sees it", samples.get("create_start", "vm")));
    let rows = rows(&samples);
    rows.iter().try_for_each(Row::ensure_measured)?;
    notes.push(lists::note(options.list_pods));
    notes.push(beside_the_chain(&rows, &step(CLONE), &step(CNI), &step(ALL)));
    notes.extend(targets::notes(targets::TARGETS, &rows));
    Report { machine: options.machine.clone(), rows, steps, notes }.write(&options.out)?;
    println!("bench: report written to {}", options.out.display());
    Ok(())
}

/// Rows of starts, templates and the pool.
fn start_rows(samples: &Samples) -> Vec<Row> {
    let both = |name| [samples.row(name, Some("vm"), "ms"), samples.row(name, Some("host"), "ms")];
    let mut rows: Vec<Row> =
        ["run_pod_sandbox", "create_start", "pod_to_running", "exec_sync"].into_iter().flat_map(both).collect();
    rows.extend(both("pod_to_running_no_cni"));
    rows.push(samples.row("pod_to_running_no_cni", Some(templates::FROM_THE_POOL), "ms"));
    rows.extend(templates::rows(samples));
    rows.extend(counts::rows(samples));
    rows
}

fn rows(samples: &Samples) -> Vec<Row> {
    let mut rows = start_rows(samples);
    rows.push(samples.row("cni_add", None, "ms"));
    rows.extend(lists::rows(samples));
    rows.extend(limits::rows(samples));
    rows.extend(pulls::rows(samples));
    rows.extend([
        samples.row("monitor_rss_mib", Some("vm"), "MiB"),
        samples.row("supervisor_rss_mib", Some("host"), "MiB"),
        samples.row("daemon_rss_mib", None, "MiB"),
        samples.row("idle_cpu_percent", Some("vm"), "%"),
        samples.row("idle_wakeups_per_minute", Some("vm"), "1/min"),
    ]);
    rows
}

/// What the CNI chain, which is the same for all, hides in a pod's start.
fn beside_the_chain(rows: &[Row], clone: &[f64], cni: &[f64], all: &[f64]) -> String {
    let longer: Vec<f64> = clone.iter().zip(cni).map(|(clone, cni)| clone.max(*cni)).collect();
    let sum: Vec<f64> = clone.iter().zip(cni).map(|(clone, cni)| clone + cni).collect();
    let host = rows.iter().find(|row| row.name == "pod_to_running" && row.handler == Some("host"));
    format!(
        "A vm pod's sandbox took {:.0} ms (p50): the longer of CNI and restore {:.0} ms, their sum {:.0} ms. \
         The CNI chain's own time was {:.0} ms; a host pod with it ran after {:.0} ms.",
        percentile(all, 0.5),
        percentile(&longer, 0.5),
        percentile(&sum, 0.5),
        percentile(cni, 0.5),
        host.map_or(f64::NAN, |row| percentile(&row.ours, 0.5)),
    )
}

/// Pod starts and execs: ours in a microVM, ours on the host, the peer.
async fn starts(ours: &mut Client, peer: &mut Client, n: usize, samples: &mut Samples) -> Outcome {
    for round in 0..n {
        println!("bench: start {} of {n}", round + 1);
        for (who, handler) in [("vm", "vm"), ("host", "host"), ("peer", "")] {
            wash_memory();
            let client = if who == "peer" { &mut *peer } else { &mut *ours };
            let started = client.start(handler, Net::Cni, BUSYBOX).await?;
            samples.took("run_pod_sandbox", who, started.run_pod);
            samples.took("create_start", who, started.create_start);
            samples.took("pod_to_running", who, started.run_pod + started.create_start);
            samples.took("exec_sync", who, client.exec_true(&started.container).await?);
            if who == "vm" {
                samples.add("vm_clone_ms", "vm", last_boot_ms()?);
            }
            client.remove(&started.pod).await?;
        }
    }
    Ok(())
}

/// Pod starts whose network takes next to no time: in a microVM with a network of its own, the
/// others on the node's.
async fn starts_without_cni(ours: &mut Client, peer: &mut Client, n: usize, samples: &mut Samples) -> Outcome {
    for round in 0..n {
        println!("bench: start without CNI {} of {n}", round + 1);
        wash_memory();
        templates::without_cni(ours, "vm", samples).await?;
        let started = ours.start("host", Net::Node, BUSYBOX).await?;
        samples.took("pod_to_running_no_cni", "host", started.run_pod + started.create_start);
        ours.remove(&started.pod).await?;
        templates::without_cni_peer(peer, samples).await?;
    }
    Ok(())
}

/// Under emulation, memory that held a guest's code is slow to overwrite: touch as much beforehand, so that no start pays.
fn wash_memory() {
    let mut memory = vec![0u8; 256 << 20];
    for byte in memory.iter_mut().step_by(4096) {
        *byte = 1;
    }
    std::hint::black_box(&memory);
}

/// Resident memory with one idle pod of each kind, and an idle vm pod's CPU.
async fn memory_and_idle(
    ours: &mut Client,
    peer: &mut Client,
    options: &Options,
    samples: &mut Samples,
    notes: &mut Vec<String>,
) -> Outcome {
    println!("bench: memory, and an idle pod for {} s", options.idle_seconds);
    let vm = ours.start("vm", Net::Cni, BUSYBOX).await?;
    let host = ours.start("host", Net::Cni, BUSYBOX).await?;
    let theirs = peer.start("", Net::Cni, BUSYBOX).await?;
    let only = |name: &str| {
        let pids = processes::heads(name);
        pids.first()
            .copied()
            .filter(|_| pids.len() == 1)
            .ok_or_else(|| Failure(format!("{} processes run {name}", pids.len())))
    };
    let monitor = only("cofferdam-vmm")?;
    samples.add("monitor_rss_mib", "vm", memory::rss_mib(monitor, GUEST_MAPPING_MIB)?);
    samples.add("supervisor_rss_mib", "host", memory::rss_mib(only("cofferdam-agent")?, u64::MAX / 1024)?);
    samples.add("supervisor_rss_mib", "peer", memory::rss_mib(only("containerd-shim-runc-v2")?, u64::MAX / 1024)?);
    let daemon = u32::try_from(daemon::pid()?).doing("read the daemon's pid")?;
    samples.add("daemon_rss_mib", "ours", memory::rss_mib(daemon, u64::MAX / 1024)?);
    samples.add("daemon_rss_mib", "peer", memory::rss_mib(only("containerd")?, u64::MAX / 1024)?);
    peer.remove(&theirs.pod).await?;
    ours.remove(&host.pod).await?;

    systemctl("stop", "containerd.service")?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cpu, sleeps) = (memory::cpu_time(monitor)?, memory::sleeps(monitor));
    tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
    let used = memory::cpu_time(monitor)?.saturating_sub(cpu).as_secs_f64();
    let seconds = options.idle_seconds as f64;
    samples.add("idle_cpu_percent", "vm", used / seconds * 100.0);
    samples.add("idle_wakeups_per_minute", "vm", (memory::sleeps(monitor) - sleeps) as f64 / seconds * 60.0);
    notes.push(format!("An idle vm pod (one sleeping container) used {used:.2} s of CPU in {seconds:.0} s."));
    ours.remove(&vm.pod).await
}

/// Steps of a vm pod's start, each between two marks of the daemon's timeline (none: from the launch on).
const STEPS: &[(&str, Option<&str>, &str)] = &[
    ("prepare: folders, cgroup, network namespace", None, "prepared"),
    ("CNI: the chain's ADD", Some("cni_start"), "cni_end"),
    ("monitor: exec to the template's memory being mapped", Some("monitor_spawned"), "kernel_loaded"),
    ("monitor: to the guest's going on", Some("kernel_loaded"), "vcpu_started"),
    ("agent: to its first answer", Some("vcpu_started"), "agent_answered"),
    ("agent: random numbers, clock, disk, share", Some("agent_answered"), "mounted"),
    ("pod: the rest of CNI, then host name and network", Some("mounted"), "configured"),
    ("restore: monitor's exec to the agent's first answer", Some("monitor_spawned"), "agent_answered"),
    ("all of it", None, "configured"),
];
const CLONE: usize = 7;
const ALL: usize = 8;
const CNI: usize = 1;

/// What one vm pod's start took: a time in milliseconds for each of [`STEPS`] that happened.
type Steps = Vec<Option<f64>>;

/// The vm pods that the daemon has started, from the events in its journal, the last one last.
fn started_vm_pods() -> Outcome<Vec<Steps>> {
    let output =
        Command::new("journalctl").args(["-u", "cofferdam", "-o", "cat", "-b"]).output().doing("read the journal")?;
    let lines = String::from_utf8_lossy(&output.stdout);
    Ok(lines.lines().filter(|line| line.contains("pod started")).filter_map(vm_steps).collect())
}

/// Reads `handler=vm` and `timeline={"mark": microseconds, …}` out of an event.
fn vm_steps(event: &str) -> Option<Steps> {
    event.contains("handler=vm").then_some(())?;
    let text = event.split_once("timeline={")?.1.split_once('}')?.0;
    let marks: BTreeMap<String, u64> = serde_json::from_str(&format!("{{{text}}}")).ok()?;
    let step = |(_, from, to): &(&str, Option<&str>, &str)| {
        let from = from.map_or(Some(0), |mark| marks.get(mark).copied())?;
        Some(marks.get(*to)?.saturating_sub(from) as f64 / 1000.0)
    };
    Some(STEPS.iter().map(step).collect())
}

/// The last microVM's time, restored or booted, from the monitor's exec to the agent's first answer.
fn last_boot_ms() -> Outcome<f64> {
    let pods = started_vm_pods()?;
    pods.last().and_then(|steps| steps[CLONE]).ok_or_else(|| "the daemon's journal tells of no vm pod's start".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_an_event() {
        let event = r#"INFO pod started pod=ab handler=vm elapsed_ms=900 timeline={"agent_answered": 700000, "cni_end": 600500, "cni_start": 100500, "monitor_spawned": 200000}"#;
        let steps = vm_steps(event).unwrap();
        assert_eq!(steps[CNI], Some(500.0));
        assert_eq!(steps[CLONE], Some(500.0));
        assert_eq!(steps[0], None);
        assert_eq!(vm_steps(&event.replace("=vm", "=host")), None);
    }
}

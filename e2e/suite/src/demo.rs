//! The tour: what a newcomer sees, as steps that a test can interrupt.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::census::Census;
use crate::crictl::{self, Container, Crictl, Pod, run};
use crate::failure::{Doing, Failure, Outcome, ensure};

/// What the tour has made so far.
#[derive(Default)]
pub(crate) struct Tour {
    crictl: Crictl,
    baseline: Option<Census>,
    vm: Option<(String, Pod)>,
    host: Option<(String, Pod)>,
    hello: String,
    web: String,
    node_kernel: String,
}

/// One step: what it shows, and how.
pub(crate) type Step = (&'static str, fn(&mut Tour) -> Outcome);

/// The steps in order.
pub(crate) const STEPS: &[Step] = &[
    ("The node: can it run pods in microVMs?", check_node),
    ("Pull a real image from the registry in the node, with its progress", pull),
    ("A pod in a microVM", run_vm_pod),
    ("A container in it: create", create_hello),
    ("... and start: its kernel is not the node's", start_hello),
    ("Its log", read_log),
    ("A command in it, with its exit code", exec),
    ("A second container of the same pod serves HTTP", start_web),
    ("... and the first one reaches it over localhost", talk_over_localhost),
    ("A host pod beside it, on the node's own kernel", run_host_pod),
    ("What runs now", list),
    ("Stop and remove the microVM pod", remove_vm_pod),
    ("Stop and remove the host pod", remove_host_pod),
    ("Nothing is left: process, mount, namespace, tap, cgroup, file", nothing_left),
];

/// Runs the tour for people.
pub(crate) fn show() -> Outcome {
    crictl::narrate();
    let mut tour = Tour::new()?;
    for (number, (title, step)) in STEPS.iter().enumerate() {
        println!("\n\x1b[36m── {}/{}  {title}\x1b[0m", number + 1, STEPS.len());
        step(&mut tour).map_err(|f| Failure(format!("step {} ({title}): {f}", number + 1)))?;
    }
    println!("\nThe tour is over, and the node is as it was.");
    Ok(())
}

impl Tour {
    /// A tour that starts from the node as it is.
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self { crictl: Crictl::real(), baseline: Some(Census::take()?), ..Self::default() })
    }

    fn vm(&self) -> Outcome<&(String, Pod)> {
        self.vm.as_ref().ok_or_else(|| "the microVM pod does not run".into())
    }

    fn host(&self) -> Outcome<&(String, Pod)> {
        self.host.as_ref().ok_or_else(|| "the host pod does not run".into())
    }
}

fn check_node(tour: &mut Tour) -> Outcome {
    let output = run(command("/usr/bin/cofferdam", "check"), "cofferdam check")?;
    ensure!(output.code == 0, "cofferdam check says that this node cannot run pods");
    let output = run(command("uname", "-r"), "uname -r")?;
    tour.node_kernel = output.stdout.trim().to_owned();
    Ok(())
}

fn command(program: &str, argument: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(argument);
    command
}

fn pull(tour: &mut Tour) -> Outcome {
    // The daemon's journal tells how far a pull is; crictl has no way to ask.
    let mut follow = Command::new("sh")
        .args([
            "-c",
            "journalctl -u cofferdam -o cat -n 0 -f | grep --line-buffered 'pull progress.*layers=' | sed -u 's/^/    /'",
        ])
        .spawn()
        .doing("follow the daemon's journal")?;
    let pulled = tour.crictl.run(&["pull", "registry.k8s.io/cofferdam/big:1"]);
    let _ = Command::new("pkill").args(["-f", "journalctl -u cofferdam -o cat"]).status();
    let _ = follow.wait();
    pulled?;
    tour.crictl.run(&["pull", crictl::BUSYBOX])?;
    tour.crictl.run(&["images"]).map(drop)
}

fn run_vm_pod(tour: &mut Tour) -> Outcome {
    let pod = Pod::new("demo-vm");
    let id = tour.crictl.run_pod("vm", &pod)?;
    tour.crictl.run(&["inspectp", "-o", "table", &id])?;
    tour.vm = Some((id, pod));
    Ok(())
}

fn create_hello(tour: &mut Tour) -> Outcome {
    let script = "echo \"hello from kernel $(uname -r), I am $(id -un) on $(hostname)\"; trap 'exit 0' TERM; while :; do sleep 1; done";
    let (id, pod) = tour.vm()?;
    let container = Container::shell("hello", script);
    tour.hello = tour.crictl.run(&["create", id, &container.file()?, &pod.file()?])?;
    Ok(())
}

fn start_hello(tour: &mut Tour) -> Outcome {
    tour.crictl.run(&["start", &tour.hello])?;
    tour.crictl.wait_state(&tour.hello, "CONTAINER_RUNNING")?;
    let release = tour.crictl.run(&["exec", "--sync", &tour.hello, "uname", "-r"])?;
    let node = &tour.node_kernel;
    ensure!(release != *node, "the container runs on the node's kernel {node}");
    println!("  node: {node}   container: {release}");
    Ok(())
}

fn read_log(tour: &mut Tour) -> Outcome {
    let log = tour.crictl.wait_log(&tour.hello, "hello from kernel")?;
    ensure!(log.contains("demo-vm"), "the container does not know its host name: {log}");
    Ok(())
}

fn exec(tour: &mut Tour) -> Outcome {
    let output =
        tour.crictl.attempt(&["exec", &tour.hello, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 3"])?;
    ensure!(output.stdout.contains("to stdout"), "exec lost stdout: {output:?}");
    ensure!(output.stderr.contains("to stderr"), "exec lost stderr: {output:?}");
    ensure!(output.stderr.contains("exit code 3") || output.code == 3, "exec lost the exit code 3: {output:?}");
    let terminal = format!("crictl -r unix://{} exec -it {} tty", crictl::SOCKET, tour.hello);
    let mut command = Command::new("script");
    command.args(["-qec", &terminal, "/dev/null"]);
    let output = run(command, &terminal)?;
    ensure!(output.stdout.contains("/dev/pts/"), "exec -it gave no terminal: {output:?}");
    Ok(())
}

fn start_web(tour: &mut Tour) -> Outcome {
    let script = "mkdir -p /www && echo 'served by the second container' > /www/index.html && exec httpd -f -p 127.0.0.1:8080 -h /www";
    let (id, pod) = tour.vm()?;
    tour.web = tour.crictl.run_container(id, pod, &Container::shell("web", script))?;
    Ok(())
}

fn talk_over_localhost(tour: &mut Tour) -> Outcome {
    let mut last = String::new();
    crictl::wait_for("the second container to answer", || {
        let args = ["exec", "--sync", &tour.hello, "wget", "-qO-", "http://127.0.0.1:8080/"];
        let output = tour.crictl.attempt(&args)?;
        last = output.stdout;
        Ok(output.code == 0)
    })?;
    ensure!(last.contains("served by the second container"), "unexpected answer: {last}");
    Ok(())
}

fn run_host_pod(tour: &mut Tour) -> Outcome {
    let pod = Pod::new("demo-host");
    let id = tour.crictl.run_pod("host", &pod)?;
    let container = Container::shell("native", "echo \"hello from kernel $(uname -r)\"; exec sleep 100000");
    let native = tour.crictl.run_container(&id, &pod, &container)?;
    let log = tour.crictl.wait_log(&native, "hello from kernel")?;
    tour.host = Some((id, pod));
    ensure!(log.contains(&tour.node_kernel), "a host container should see the node's kernel: {log}");
    Ok(())
}

fn list(tour: &mut Tour) -> Outcome {
    tour.crictl.run(&["pods"])?;
    let listed = tour.crictl.run(&["ps"])?;
    for name in ["hello", "web", "native"] {
        ensure!(listed.contains(name), "{name} is not listed as running");
    }
    // The last step's "nothing" means something only if the census sees what runs now.
    let running = Census::take()?;
    let before = tour.baseline.as_ref().map_or(0, Census::len);
    ensure!(running.len() > before, "the census does not see what runs");
    println!("  {} things of theirs are on the node now", running.len() - before);
    Ok(())
}

fn remove_vm_pod(tour: &mut Tour) -> Outcome {
    tour.crictl.remove_pod(&tour.vm()?.0)?;
    tour.vm = None;
    Ok(())
}

fn remove_host_pod(tour: &mut Tour) -> Outcome {
    tour.crictl.remove_pod(&tour.host()?.0)?;
    tour.host = None;
    Ok(())
}

fn nothing_left(tour: &mut Tour) -> Outcome {
    let pods = tour.crictl.json(&["pods", "-o", "json"])?;
    ensure!(pods["items"] == json!([]) || pods["items"].is_null(), "pods are still listed: {pods}");
    if let Some(baseline) = &tour.baseline {
        baseline.unchanged()?;
        println!("  {} things of Cofferdam's and CNI's were on the node before, the same now", baseline.len());
    }
    let logs = fs::read_dir(crictl::LOGS).map(Iterator::count).unwrap_or(0);
    println!("  ({logs} log folders below {} stay: the kubelet owns logs)", crictl::LOGS);
    Ok(())
}

//! The daemon owns no container and no VM: what happens while it is dead is known when it is back.

use std::fs;
use std::process::Command;

use super::{Test, with_both};
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Outcome, ensure};
use crate::processes;

pub(super) const TESTS: &[Test] = &[
    ("killed_daemon_finds_running_and_ended_containers", || with_both(killed)),
    ("pod_whose_process_dies_is_not_ready", || with_both(pod_dies)),
    ("killed_daemon_finds_a_pod_that_died_meanwhile", || with_both(pod_dies_meanwhile)),
];

fn killed(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("survivor");
    let id = crictl.run_pod(handler, &pod)?;
    let ticking = "i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.2; done";
    let running = crictl.run_container(&id, &pod, &Container::shell("running", ticking))?;
    let ending = crictl.run_container(
        &id,
        &pod,
        &Container::shell("ending", "while [ ! -e /go ]; do sleep 0.1; done; exit 9"),
    )?;
    let created = Container::shell("created", "echo started late; exit 4");
    let created = crictl.run(&["create", &id, &created.file()?, &pod.file()?])?;
    crictl.wait_log(&running, "tick 3")?;
    let log = crictl.container_field(&running, "/status/logPath")?;
    let started = crictl.container_field(&running, "/status/startedAt")?;
    crictl.run(&["exec", "--sync", &ending, "touch", "/go"])?;

    daemon::kill()?;
    let length = || Ok::<_, crate::failure::Failure>(fs::metadata(&log).doing("look at the log")?.len());
    let before = length()?;
    wait_for("the log to grow while the daemon is dead", || Ok(length()? > before + 100))?;
    daemon::start()?;

    crictl.wait_state(&ending, "CONTAINER_EXITED")?;
    let code = crictl.container_field(&ending, "/status/exitCode")?;
    ensure!(code == "9", "a container that ended without the daemon has exit code {code}");
    let state = crictl.container_field(&running, "/status/state")?;
    ensure!(state == "CONTAINER_RUNNING", "the running container is {state}");
    ensure!(crictl.container_field(&running, "/status/startedAt")? == started, "the container was started again");
    let text = fs::read_to_string(&log).doing("read the log")?;
    for (number, line) in text.lines().take(20).enumerate() {
        ensure!(line.ends_with(&format!("stdout F tick {number}")), "line {number} of the log is {line:?}");
    }
    crictl.run(&["start", &created])?;
    crictl.wait_state(&created, "CONTAINER_EXITED")?;
    ensure!(crictl.container_field(&created, "/status/exitCode")? == "4", "the created container did not run");
    crictl.run(&["exec", "--sync", &running, "true"])?;
    crictl.remove_pod(&id)
}

/// Ends the pod's monitor or supervisor by a signal.
fn kill_pod_process(pod: &str, handler: &str, signal: &str) -> Outcome {
    let name = if handler == "vm" { "cofferdam-vmm" } else { "cofferdam-agent" };
    let folder = format!("/cofferdam/{pod}");
    let of_the_pod = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|c| c.contains(&folder));
    let Some(victim) = processes::heads(name).into_iter().find(of_the_pod) else {
        return Err(format!("no {name} in the pod's cgroup").into());
    };
    let killed = Command::new("kill").args([signal, &victim.to_string()]).status().doing("run kill")?;
    ensure!(killed.success(), "kill {victim} failed");
    Ok(())
}

fn dead_pod_is_reported(crictl: &Crictl, id: &str, container: &str) -> Outcome {
    wait_for("the pod to be not ready", || {
        let status = crictl.json(&["inspectp", "-o", "json", id])?;
        Ok(status.pointer("/status/state").and_then(|v| v.as_str()) == Some("SANDBOX_NOTREADY"))
    })?;
    crictl.wait_state(container, "CONTAINER_EXITED")?;
    let code = crictl.container_field(container, "/status/exitCode")?;
    ensure!(code == "137" || code == "255", "a container whose pod died has exit code {code}");
    crictl.remove_pod(id)
}

fn pod_dies(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("mortal");
    let id = crictl.run_pod(handler, &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("sleeper", "exec sleep 100000"))?;
    // As a node that shuts down does it; a monitor is process 1 of a namespace, where signals are ignored by default.
    kill_pod_process(&id, handler, if handler == "vm" { "-TERM" } else { "-KILL" })?;
    dead_pod_is_reported(&crictl, &id, &container)
}

fn pod_dies_meanwhile(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("mortal");
    let id = crictl.run_pod(handler, &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("sleeper", "exec sleep 100000"))?;
    daemon::kill()?;
    let killed = kill_pod_process(&id, handler, "-KILL");
    daemon::start()?;
    killed?;
    dead_pod_is_reported(&crictl, &id, &container)
}

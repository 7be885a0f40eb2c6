//! Containers, the same on both kinds of pods.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{BUSYBOX, Container, Crictl, LOGS, Pod};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("exit_codes_and_reasons", || with_both(exit_codes)),
    ("containers_of_one_pod", || with_both(|handler| in_one_pod(handler, &Pod::new("shared"), CHECKS))),
];

const CHECKS: &[Check] = &[
    ("container_sees_only_its_three_descriptors", descriptors),
    ("environment_users_and_capabilities", identity),
    ("limits_are_the_kernel_s", limits),
    ("log_of_both_streams_in_order", logs),
    ("exec_timeout_leaves_no_process", exec_timeout),
    ("zombies_are_reaped", zombies),
    ("stop_honours_the_grace_period", stop),
    ("state_is_closed_to_others", closed_to_others),
    ("unknown_image", unknown_image),
    ("command_that_does_not_exist", no_command),
    ("second_sandbox_of_the_same_name", same_name),
];

fn exit_codes(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    // The containers share the pod's processes: the first process of a namespace of its own could not be killed from inside.
    let pod = Pod::new("exits").with("linux", json!({"security_context": {"namespace_options": {"pid": 0}}}));
    let id = crictl.run_pod(handler, &pod)?;
    for (name, script, code, reason) in [
        ("zero", "exit 0", "0", "Completed"),
        ("seven", "exit 7", "7", "Error"),
        ("killed", "exec sleep 1000", "137", "Error"),
        ("faulty", "kill -SEGV $$", "139", "Error"),
    ] {
        let container = Container::shell(name, script)
            .with("linux", json!({"security_context": {"namespace_options": {"pid": 0}}}));
        let container = crictl.run_container(&id, &pod, &container)?;
        if name == "killed" {
            // With process 1 ends its PID namespace, the killer too if the kernel is quicker than its exit.
            crictl.attempt(&["exec", "--sync", &container, "sh", "-c", "kill -KILL $(pidof sleep)"])?;
        }
        crictl.wait_state(&container, "CONTAINER_EXITED")?;
        let got = crictl.container_field(&container, "/status/exitCode")?;
        ensure!(got == code, "{name}: exit code {got}, not {code}");
        let got = crictl.container_field(&container, "/status/reason")?;
        ensure!(got == reason, "{name}: reason {got}, not {reason}");
    }
    let missing = Container::new("missing", BUSYBOX, &["/no/such/program"]);
    let container = crictl.run(&["create", &id, &missing.file()?, &pod.file()?])?;
    crictl.refused(&["start", &container], &["/no/such/program"])?;
    let got = crictl.container_field(&container, "/status/exitCode")?;
    ensure!(got == "128", "a command that does not exist: exit code {got}, not 128");
    let got = crictl.container_field(&container, "/status/reason")?;
    ensure!(got == "StartError", "a command that does not exist: reason {got}");
    crictl.remove_pod(&id)
}

/// Runs a script to its end and returns its log.
fn output(id: &str, pod: &Pod, container: &Container) -> Outcome<String> {
    let crictl = Crictl::default();
    let container = crictl.run_container(id, pod, container)?;
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    crictl.log(&container)
}

fn descriptors(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let log =
        output(id, pod, &Container::shell("fds", "ls /proc/self/fd | tr '\\n' ' '; echo; readlink /proc/self/cwd"))?;
    // `ls` itself holds 3 while it reads the folder.
    ensure!(log.starts_with("0 1 2 3 \n/\n"), "the container sees other descriptors or another folder: {log}");
    Ok(())
}

fn identity(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let container = Container::shell(
        "who",
        "id -u; id -g; echo $COLOUR; pwd; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status",
    )
    .with("envs", json!([{"key": "COLOUR", "value": "blue"}]))
    .with("working_dir", json!("/tmp"))
    .with(
        "linux",
        json!({"security_context": {"run_as_user": {"value": 1234}, "run_as_group": {"value": 4321},
            "no_new_privs": true, "seccomp": {"profile_type": 0}}}),
    );
    let log = output(id, pod, &container)?;
    let words: Vec<&str> = log.split_whitespace().collect();
    ensure!(words.starts_with(&["1234", "4321", "blue", "/tmp"]), "identity: {log}");
    ensure!(
        log.contains("CapEff:\t0000000000000000"),
        "a user other than root should have no effective capabilities: {log}"
    );
    ensure!(log.contains("NoNewPrivs:\t1"), "no_new_privs is not set: {log}");
    ensure!(log.contains("Seccomp:\t2"), "the default seccomp profile is not on: {log}");
    Ok(())
}

fn limits(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let container = Container::shell("limits", "dd if=/dev/zero of=/dev/null bs=64M count=4; echo survived").with(
        "linux",
        json!({"resources": {"memory_limit_in_bytes": 32 << 20, "memory_swap_limit_in_bytes": 32 << 20}}),
    );
    let crictl = Crictl::default();
    let container = crictl.run_container(id, pod, &container)?;
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    let reason = crictl.container_field(&container, "/status/reason")?;
    ensure!(reason == "OOMKilled", "a container over its memory limit ended with {reason}");
    Ok(())
}

fn logs(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done; echo oops >&2; printf unfinished";
    let container = crictl.run_container(id, pod, &Container::shell("logs", script))?;
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    let path = crictl.container_field(&container, "/status/logPath")?;
    let text = fs::read_to_string(&path).doing(&format!("read the log {path}"))?;
    let lines: Vec<&str> = text.lines().filter(|l| l.contains(" stdout F line ")).collect();
    ensure!(lines.len() == 200, "{} of 200 lines are in {path}", lines.len());
    for (number, line) in lines.iter().enumerate() {
        ensure!(line.ends_with(&format!(" stdout F line {number}")), "line {number} is {line:?}");
    }
    ensure!(text.contains(" stderr F oops\n"), "stderr is missing: {text}");
    ensure!(text.contains(" stdout P unfinished\n"), "the unfinished line is missing: {text}");
    Ok(())
}

fn exec_timeout(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let container = crictl.run_container(id, pod, &Container::shell("slow", "exec sleep 100000"))?;
    crictl
        .refused(&["exec", "--sync", "--timeout", "3", &container, "sh", "-c", "sleep 4242"], &["DeadlineExceeded"])?;
    let left = crictl.attempt(&["exec", "--sync", &container, "pgrep", "-f", "sleep 4242"])?;
    ensure!(left.stdout.trim().is_empty(), "the timed-out command still runs: {left:?}");
    Ok(())
}

fn zombies(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    // The orphans' parent is the container's init: a shell that never waits for them, as many images' is.
    let log = output(
        id,
        pod,
        &Container::shell(
            "z",
            "for i in 1 2 3 4 5; do (sh -c 'exit 0' &) ; done; sleep 2; ps -o stat | grep -c '^Z'; true",
        ),
    )?;
    let count: u32 = log.split_whitespace().next().unwrap_or("").parse().unwrap_or(99);
    ensure!(count == 0, "{count} zombies: {log}");
    Ok(())
}

fn stop(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let polite = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let polite = crictl.run_container(id, pod, &Container::shell("polite", polite))?;
    let deaf = crictl.run_container(
        id,
        pod,
        &Container::shell("deaf", "trap '' TERM; echo ready; while :; do sleep 1; done"),
    )?;
    crictl.wait_log(&polite, "ready")?;
    crictl.wait_log(&deaf, "ready")?;
    crictl.run(&["stop", "--timeout", "60", &polite])?;
    let code = crictl.container_field(&polite, "/status/exitCode")?;
    ensure!(code == "5", "a container that handles SIGTERM ended with {code}");
    crictl.run(&["stop", "--timeout", "2", &deaf])?;
    let code = crictl.container_field(&deaf, "/status/exitCode")?;
    ensure!(code == "137", "a container that ignores SIGTERM ended with {code}");
    Ok(())
}

fn closed_to_others(_handler: &'static str, _id: &str, _pod: &Pod) -> Outcome {
    let mut open = Vec::new();
    for (path, mode) in
        [("/run/cofferdam", 0o700), ("/var/lib/cofferdam", 0o700), ("/run/cofferdam/cofferdam.sock", 0o600)]
    {
        let got = fs::metadata(Path::new(path)).doing(&format!("look at {path}"))?.permissions().mode() & 0o777;
        if got & !mode != 0 {
            open.push(format!("{path} has mode {got:o}, not {mode:o}"));
        }
    }
    ensure!(open.is_empty(), "{}", open.join("; "));
    ensure!(Path::new(LOGS).is_dir(), "no logs below {LOGS}");
    Ok(())
}

fn unknown_image(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let missing = "registry.k8s.io/cofferdam/no-such-image:1";
    crictl.refused(&["pull", missing], &["code = NotFound", "no-such-image"])?;
    let container = Container::new("noimage", missing, &["true"]);
    crictl.refused(&["create", id, &container.file()?, &pod.file()?], &["code = NotFound", "no-such-image"])?;
    let listed = crictl.run(&["ps", "-aq", "--pod", id])?;
    ensure!(listed.is_empty(), "a refused container is listed: {listed}");
    Ok(())
}

fn no_command(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let container = Container::new("nocommand", BUSYBOX, &["no-such-command"]);
    let container = crictl.run(&["create", id, &container.file()?, &pod.file()?])?;
    crictl.refused(&["start", &container], &["no-such-command", "not found"])?;
    for (pointer, wanted) in
        [("/status/state", "CONTAINER_EXITED"), ("/status/exitCode", "128"), ("/status/reason", "StartError")]
    {
        let got = crictl.container_field(&container, pointer)?;
        ensure!(got == wanted, "{pointer} is {got}, not {wanted}");
    }
    Ok(())
}

fn same_name(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    crictl.refused(&["runp", "--runtime", handler, &pod.file()?], &["code = AlreadyExists", "shared"])?;
    let listed = crictl.run(&["pods", "-q", "--no-trunc", "--name", "^shared$"])?;
    ensure!(listed == id, "pods after a refused twin: {listed}");
    Ok(())
}

//! logs, exec, cp, attach, port-forward and debug, for pods of both handlers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::kubectl::{Beside, Namespace, kubectl, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("exec_cp_attach_and_port_forward", streams),
    ("logs_across_a_rotation", logs),
    ("debug", debug),
    ("debug_node", debug_node),
];

const POD: &str = include_str!("manifests/web.yaml");

/// A pod of each class, ready, with the class as its name.
fn pods(here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(POD, &[("NAME", class), ("CLASS", class)])?;
    }
    CLASSES.iter().try_for_each(|class| here.wait_ready(class))
}

fn streams(_: &Cluster, here: &Namespace) -> Outcome {
    pods(here)?;
    for class in CLASSES {
        let echoed = here.run_in(&["exec", "-i", class, "--", "cat"], "to the container and back")?;
        ensure!(echoed == "to the container and back", "exec -i in {class} gave back {echoed:?}");
        let failed = here.run(&["exec", class, "--", "sh", "-c", "exit 7"]);
        ensure!(failed.is_err_and(|f| f.0.contains("exit code 7")), "the exit code 7 of an exec in {class} is lost");
        terminal(here, class)?;
        copy(here, class)?;
        attach(here, class)?;
        port_forward(here, class)?;
    }
    Ok(())
}

/// exec -it: the container's program has a terminal.
fn terminal(here: &Namespace, pod: &str) -> Outcome {
    let line = format!("kubectl -n {} exec -it {pod} -- sh -c 'tty; stty size'", here.name);
    let output = Command::new("script").args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).output();
    let output = output.doing("run script(1)")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success() && printed.contains("/dev/pts/"), "exec -it in {pod} printed {printed:?}");
    Ok(())
}

/// cp there and back keeps every byte.
fn copy(here: &Namespace, pod: &str) -> Outcome {
    let folder = std::env::temp_dir().join(format!("cofferdam-cp-{}", std::process::id()));
    std::fs::create_dir_all(&folder).doing("make a folder for kubectl cp")?;
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (there, back) = (folder.join("there"), folder.join("back"));
    std::fs::write(&there, &bytes).doing("write a file to copy")?;
    here.run(&["cp", &there.to_string_lossy(), &format!("{pod}:/tmp/copied")])?;
    here.run(&["cp", &format!("{pod}:/tmp/copied"), &back.to_string_lossy()])?;
    let same = std::fs::read(&back).doing("read the copied file")? == bytes;
    std::fs::remove_dir_all(&folder).doing("remove the folder of kubectl cp")?;
    ensure!(same, "kubectl cp to {pod} and back changed the file");
    Ok(())
}

/// attach: what is written to the container's program is answered by it.
fn attach(here: &Namespace, pod: &str) -> Outcome {
    let mut command = here.command(&["attach", "-i", pod, "-c", "echo"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut attached = Beside(child.doing("run kubectl attach")?);
    let mut stdin = attached.0.stdin.take().ok_or("kubectl attach has no standard input")?;
    let mut stdout = attached.0.stdout.take().ok_or("kubectl attach has no standard output")?;
    stdin.write_all(b"hello by attach\n").doing("write to kubectl attach")?;
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains("echo: hello by attach") {
        let count = stdout.read(&mut buffer).doing("read from kubectl attach")?;
        ensure!(count > 0, "kubectl attach to {pod} ended; it printed {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    Ok(())
}

/// port-forward: an HTTP request to the local port is answered by the pod.
fn port_forward(here: &Namespace, pod: &str) -> Outcome {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").doing("find a free port")?;
    let port = listener.local_addr().doing("find a free port")?.port();
    drop(listener);
    let child = here.command(&["port-forward", pod, &format!("{port}:8080")]).stdout(Stdio::null()).spawn();
    let _forward = Beside(child.doing("run kubectl port-forward")?);
    let mut answer = String::new();
    wait(&format!("the forwarded port of {pod} to answer"), || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return Ok(false) };
        stream.set_read_timeout(Some(Duration::from_secs(60))).doing("set a time-out")?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").doing("ask through the forwarded port")?;
        answer.clear();
        Ok(stream.read_to_string(&mut answer).is_ok() && answer.contains(pod))
    })
    .map_err(|failure| format!("{failure}; it answered {answer:?}").into())
}

/// logs -f goes on when the kubelet rotates the log, and loses and repeats nothing.
fn logs(_: &Cluster, here: &Namespace) -> Outcome {
    const LINES: usize = 4000;
    for class in CLASSES {
        let count = LINES.to_string();
        here.apply(include_str!("manifests/counter.yaml"), &[("NAME", class), ("CLASS", class), ("LINES", &count)])?;
    }
    for class in CLASSES {
        here.wait_ready(class)?;
        let mut command = here.command(&["logs", "-f", class]);
        let child = command.stdout(Stdio::piped()).spawn().doing("run kubectl logs -f")?;
        here.sh(class, "touch /tmp/go")?;
        let output = child.wait_with_output().doing("run kubectl logs -f")?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let numbers: Vec<&str> = printed.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let wrong = numbers.iter().enumerate().find(|(at, number)| number.parse() != Ok(at + 1));
        ensure!(
            wrong.is_none() && numbers.len() == LINES,
            "logs -f of {class}: {} lines, the first wrong one {wrong:?}",
            numbers.len()
        );
    }
    Ok(())
}

/// The profiles of kubectl debug that people use, and the capabilities that each gives.
const PROFILES: [(&str, u64); 3] =
    [("general", 1 << SYS_PTRACE), ("netadmin", 1 << NET_ADMIN | 1 << NET_RAW), ("sysadmin", (1 << CAPABILITIES) - 1)];
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const SYS_PTRACE: u32 = 19;
/// Linux has so many since 5.9.
const CAPABILITIES: u32 = 41;

/// debug: an ephemeral container beside the pod's own, which sees its processes.
fn debug(_: &Cluster, here: &Namespace) -> Outcome {
    pods(here)?;
    for (class, (profile, capabilities)) in CLASSES.iter().flat_map(|class| PROFILES.map(|profile| (class, profile))) {
        let (name, profile_flag) = (format!("debug-{profile}"), format!("--profile={profile}"));
        let script = "ps | grep -o '[h]ttpd' | head -n 1; grep CapEff /proc/self/status";
        let image = "--image=registry.k8s.io/cofferdam/busybox:1";
        let target = ["debug", class, image, "--target=web", "--container", &name, &profile_flag];
        here.run(&[&target[..], &["--", "sh", "-c", script]].concat())?;
        let mut printed = String::new();
        let ended = wait(&format!("the debug container {name} of {class} to print"), || {
            printed = here.run(&["logs", class, "-c", &name]).unwrap_or_else(|failure| failure.0);
            Ok(printed.contains("CapEff:"))
        });
        ended.map_err(|failure| format!("{failure}; its log is {printed:?}"))?;
        let effective = printed.split_once("CapEff:").and_then(|(_, hex)| u64::from_str_radix(hex.trim(), 16).ok());
        ensure!(
            printed.starts_with("httpd\n") && effective.is_some_and(|has| has & capabilities == capabilities),
            "debug --profile={profile} of {class} sees no httpd, or lacks capabilities of {capabilities:x}: {printed:?}"
        );
    }
    Ok(())
}

/// debug node/NAME: a pod with the node's namespaces and its files.
fn debug_node(_: &Cluster, _: &Namespace) -> Outcome {
    let image = "--image=registry.k8s.io/cofferdam/busybox:1";
    let script = "cat /host/etc/hostname; hostname; cat /proc/1/comm; echo done";
    let made =
        kubectl(&["debug", "node/node", "-n", "kube-system", image, "--profile=general", "--", "sh", "-c", script])?;
    let pod =
        made.split_whitespace().find(|word| word.starts_with("node-debugger-")).ok_or("kubectl debug names no pod")?;
    let mut printed = String::new();
    let ended = wait("the node's debug pod to print", || {
        printed = kubectl(&["logs", "-n", "kube-system", pod]).unwrap_or_else(|failure| failure.0);
        Ok(printed.contains("done"))
    });
    kubectl(&["delete", "pod", "-n", "kube-system", pod])?;
    ended.map_err(|failure| format!("{failure}; its log is {printed:?}"))?;
    ensure!(printed == "node\nnode\nsystemd\ndone\n", "the node's debug pod printed {printed:?}");
    Ok(())
}

//! Attach and port-forward with the real crictl, over both transports, and what sessions leave behind.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{Test, with_both};
use crate::crictl::{Container, Crictl, Output, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("attach_and_port_forward", || with_both(attach_and_port_forward))];

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
/// Rounds of failing sessions, each of three kinds and `AT_ONCE` of each.
const ROUNDS: usize = 2;
const AT_ONCE: u16 = 4;

fn attach_and_port_forward(handler: &'static str) -> Outcome {
    let crictl = Crictl::real();
    let pod = Pod::new("streams");
    let id = crictl.run_pod(handler, &pod)?;
    for transport in TRANSPORTS {
        attach(&crictl, &id, &pod, transport)?;
    }
    let script = "mkdir /www && echo page > /www/index.html && exec httpd -f -p 8080 -h /www";
    let server = crictl.run_container(&id, &pod, &Container::shell("server", script))?;
    let ask = ["exec", "--sync", &server, "wget", "-qO-", "http://127.0.0.1:8080/"];
    wait_for("the server to listen", || Ok(crictl.attempt(&ask)?.code == 0))?;
    for (port, transport) in (18080..).zip(TRANSPORTS) {
        port_forward(&crictl, &id, transport, port)?;
    }
    failures_leave_nothing(&crictl, &id, &server)?;
    crictl.remove_pod(&id)
}

/// Starts crictl, gives it `input` and its end, and waits for it.
fn talk(crictl: &Crictl, args: &[&str], input: &str) -> Outcome<Output> {
    let mut command = crictl.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().doing("start crictl")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).doing("write to crictl")?;
    }
    let output = child.wait_with_output().doing("wait for crictl")?;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The end of the client's input ends the container's, and its last words reach both the client and the log.
fn attach(crictl: &Crictl, id: &str, pod: &Pod, transport: &str) -> Outcome {
    let script = "while read line; do echo got $line; done; echo over";
    let name = format!("attached-{transport}");
    let container = Container::shell(&name, script).with("stdin", json!(true)).with("stdin_once", json!(true));
    let container = crictl.run_container(id, pod, &container)?;
    let output = talk(crictl, &["attach", "-i", "--transport", transport, &container], "one\ntwo\n")?;
    ensure!(
        output.code == 0 && output.stdout == "got one\ngot two\nover\n",
        "attach over {transport} ended with {}: {:?} {}",
        output.code,
        output.stdout,
        output.stderr
    );
    crictl.wait_state(&container, "CONTAINER_EXITED")?;
    let log = crictl.run(&["logs", &container])?;
    ensure!(log == "got one\ngot two\nover", "the log of an attached container: {log:?}");
    crictl.refused(&["attach", "--transport", transport, &container], &["not Running"])
}

/// A crictl that forwards, ended with the value.
struct Forward(Child);

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn forward(crictl: &Crictl, id: &str, transport: &str, ports: &str) -> Outcome<Forward> {
    let mut command = crictl.command(&["port-forward", "--transport", transport, id, ports]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(Forward(command.spawn().doing("start crictl port-forward")?))
}

fn connect(port: u16) -> Outcome<TcpStream> {
    let mut stream = None;
    wait_for("crictl to listen", || {
        stream = TcpStream::connect(("127.0.0.1", port)).ok();
        Ok(stream.is_some())
    })?;
    let stream = stream.ok_or("no connection")?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).doing("limit a read")?;
    Ok(stream)
}

fn port_forward(crictl: &Crictl, id: &str, transport: &str, port: u16) -> Outcome {
    let forwarding = forward(crictl, id, transport, &format!("{port}:8080"))?;
    for _ in 0..5 {
        let mut stream = connect(port)?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").doing("ask through a forwarded port")?;
        let mut page = String::new();
        stream.read_to_string(&mut page).doing("read through a forwarded port")?;
        ensure!(page.ends_with("page\n"), "over {transport}, a forwarded port answered {page:?}");
    }
    drop(forwarding);
    let mut refused = forward(crictl, id, transport, &format!("{port}:9"))?;
    let mut answer = Vec::new();
    let _ = connect(port)?.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "a port on which nothing listens answered {answer:?}");
    let _ = refused.0.kill();
    let mut said = String::new();
    if let Some(mut stderr) = refused.0.stderr.take() {
        stderr.read_to_string(&mut said).doing("read what crictl said")?;
    }
    ensure!(said.contains("connection refused to port 9"), "over {transport}, crictl said {said:?}");
    Ok(())
}

fn descriptors(pid: i32) -> Outcome<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd")).doing("count the daemon's descriptors")?.count())
}

/// Sessions that fail, 24 and as many with the other handler, leave neither descriptors in the daemon nor processes in the container.
fn failures_leave_nothing(crictl: &Crictl, id: &str, container: &str) -> Outcome {
    let daemon = daemon::pid()?;
    let round = || -> Outcome {
        std::thread::scope(|scope| {
            let one = |n: u16| {
                let transport = TRANSPORTS[usize::from(n % 2)];
                let exec = crictl.attempt(&["exec", "--transport", transport, container, "/no/such/program"])?;
                ensure!(exec.code != 0, "a program that is not there was run");
                // A client that dies in the middle of an attach, and one whose port is refused.
                let mut attached = crictl.command(&["attach", "--transport", transport, container]);
                let attached = attached.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
                let attached = Forward(attached.doing("start crictl attach")?);
                let port = 19000 + n;
                let _refused = forward(crictl, id, transport, &format!("{port}:9"))?;
                let _ = connect(port)?.read_to_end(&mut Vec::new());
                drop(attached);
                Ok(())
            };
            let all: Vec<_> = (0..AT_ONCE).map(|n| scope.spawn(move || one(n))).collect();
            all.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err("a session's thread failed".into())))
        })
    };
    round()?;
    std::thread::sleep(Duration::from_secs(10));
    let before = descriptors(daemon)?;
    let processes =
        || -> Outcome<usize> { Ok(crictl.run(&["exec", "--sync", container, "ps", "-o", "comm"])?.lines().count()) };
    let running = processes()?;
    for _ in 0..ROUNDS {
        round()?;
    }
    wait_for("the daemon's descriptors to be as before", || Ok(descriptors(daemon)? <= before))?;
    wait_for("the pod's processes to be as before", || Ok(processes()? <= running))
}

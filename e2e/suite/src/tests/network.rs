//! A pod's network is CNI's: its address, from the node, from its own containers, and from another pod.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Test, with_both};
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("pod_network", || with_both(reachable))];

fn reachable(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("served");
    let id = crictl.run_pod(handler, &pod)?;
    let script = "mkdir -p /www && echo made of $(hostname) > /www/index.html && exec httpd -f -p 8080 -h /www";
    let server = crictl.run_container(&id, &pod, &Container::shell("httpd", script))?;
    let status = crictl.json(&["inspectp", "-o", "json", &id])?;
    let ip = status.pointer("/status/network/ip").and_then(|v| v.as_str()).unwrap_or("").to_owned();
    ensure!(ip.starts_with("10.88."), "the pod has no address of CNI's range: {status}");

    let inside = crictl.run(&["exec", "--sync", &server, "ip", "-4", "addr", "show", "eth0"])?;
    ensure!(inside.contains(&ip), "eth0 inside has not the address {ip}: {inside}");
    let resolver = crictl.run(&["exec", "--sync", &server, "cat", "/etc/resolv.conf"])?;
    ensure!(resolver.contains("nameserver 10.88.0.1") && resolver.contains("e2e.local"), "resolv.conf: {resolver}");

    let mut answer = String::new();
    wait_for("the pod to answer the node", || {
        answer = from_node(&ip).unwrap_or_default();
        Ok(answer.contains("made of served"))
    })?;

    let other = Pod::new("client");
    let other_id = crictl.run_pod(handler, &other)?;
    let url = format!("http://{ip}:8080/");
    let client = Container::new("client", crate::crictl::BUSYBOX, &["wget", "-T", "60", "-qO-", &url]);
    let client = crictl.run_container(&other_id, &other, &client)?;
    crictl.wait_state(&client, "CONTAINER_EXITED")?;
    let log = crictl.log(&client)?;
    ensure!(log.contains("made of served"), "one pod cannot reach another: {log}");
    crictl.remove_pod(&other_id)?;
    crictl.remove_pod(&id)
}

fn from_node(ip: &str) -> Outcome<String> {
    let address = format!("{ip}:8080").parse().doing("read the pod's address")?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).doing("connect to the pod")?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).doing("set a time-out")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").doing("ask the pod")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).doing("read the pod's answer")?;
    Ok(answer)
}

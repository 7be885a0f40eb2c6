//! A pod's network is CNI's: its address, from the node, from its own containers, and from another pod.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::{Test, with_both};
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] =
    &[("pod_network", || with_both(reachable)), ("second_interface", || with_both(second_interface))];

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

/// A plugin of the chain that gives the pod `net1` with a routing table of its own, as Multus does.
const SECOND: &str = r#"#!/bin/sh
near() { nsenter --net="$CNI_NETNS" "$@"; }
case $CNI_COMMAND in
ADD)
    input=$(cat)
    {
        ip link add e2e-far type veth peer name net1 netns "$CNI_NETNS"
        ip addr add 192.168.7.1/24 dev e2e-far
        ip link set e2e-far up
        near ip addr add 192.168.7.2/24 dev net1
        near ip link set net1 mtu 1300 up
        near ip route add 10.50.0.0/16 via 192.168.7.1 dev net1 table 1000
        near ip rule add from 192.168.7.2 table 1000 priority 500
    } >&2 || exit 1
    echo "$input" | jq .prevResult ;;
DEL) ip link del e2e-far 2>/dev/null || true ;;
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
esac
"#;

/// A second interface, its addresses and its policy routes are the pod's, also in a guest.
fn second_interface(handler: &'static str) -> Outcome {
    const PLUGIN: &str = "/usr/lib/cni/e2e-second";
    const CHAIN: &str = "/etc/cni/net.d/00-second.conflist";
    let bridge = r#"{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}}"#;
    let chain =
        format!(r#"{{"cniVersion": "1.0.0", "name": "pods", "plugins": [{bridge}, {{"type": "e2e-second"}}]}}"#);
    fs::write(PLUGIN, SECOND).doing("write a CNI plugin")?;
    fs::set_permissions(PLUGIN, fs::Permissions::from_mode(0o755)).doing("make the plugin executable")?;
    fs::write(CHAIN, chain).doing("write a CNI configuration")?;
    let seen = with_second_interface(handler);
    fs::remove_file(CHAIN).doing("remove the CNI configuration")?;
    fs::remove_file(PLUGIN).doing("remove the CNI plugin")?;
    seen
}

fn with_second_interface(handler: &'static str) -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("second");
    let id = crictl.run_pod(handler, &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("sleeper", "exec sleep 1000"))?;
    let shows = |command: &[&str], wanted: &[&str]| -> Outcome {
        let mut arguments = vec!["exec", "--sync", &container];
        arguments.extend(command);
        let printed = crictl.run(&arguments)?;
        let missing = wanted.iter().find(|word| !printed.contains(**word));
        ensure!(missing.is_none(), "{command:?} in a {handler} pod shows no {missing:?}: {printed}");
        Ok(())
    };
    shows(&["ip", "addr", "show", "net1"], &["192.168.7.2/24", "mtu 1300"])?;
    shows(&["ip", "addr", "show", "eth0"], &["10.88."])?;
    shows(&["ip", "rule"], &["from 192.168.7.2 lookup 1000"])?;
    shows(&["ip", "route", "show", "table", "1000"], &["10.50.0.0/16 via 192.168.7.1 dev net1"])?;
    shows(&["ping", "-c", "1", "-W", "60", "192.168.7.1"], &["1 packets received"])?;
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

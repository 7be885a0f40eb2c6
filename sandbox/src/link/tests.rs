use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use rtnetlink::packet_core::Parseable;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::*;
use crate::cni::{Attachment, NetworkList};
use crate::spec::{NetworkSpec, PortMapping, Protocol};
use crate::testing::{new_id, on_a_node};

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// An ARP request for `target` as `mac` would send it for `own`, behind an empty virtio-net header.
fn arp_request(mac: &[u8], own: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(own);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

/// The chain of real plugins gives an address; frames written to the tap reach the bridge, and its answers come back.
#[test]
fn a_guest_behind_the_tap_is_on_the_network() {
    on_a_node(|node| async move {
        let path = node.folder.path().join("netns");
        let netns = netns::create(&path, 2).unwrap();
        let list = NetworkList::load(&node.config.cni).unwrap();
        let port = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8081, host_ip: String::new() };
        let spec = NetworkSpec {
            args: [("K8S_POD_NAME".into(), "x".into())].into(),
            port_mappings: vec![port],
            ..NetworkSpec::default()
        };
        let mut attachment = Attachment::new(list, &new_id(), &spec, "", "/x").unwrap();
        attachment.add(&node.config.cni, &path, |_| std::future::ready(Ok(()))).await.unwrap();
        let addresses = crate::cni::status(attachment.result.as_ref().unwrap()).addresses;
        let IpAddr::V4(own) = addresses[0] else { panic!("{addresses:?}") };
        assert!(
            own.to_string().starts_with("10.99.0.") && addresses[1].to_string().starts_with("fd99::"),
            "{addresses:?}"
        );
        assert!(output("iptables-save", &[]).contains("--dport 8081"), "no port is mapped");

        // A second interface as Multus' delegates make them, with a table and a rule of its own.
        netns::inside(netns.fd.as_fd(), || {
            for line in [
                "link add net1 type veth peer name far1",
                "link set far1 netns 1",
                "link set net1 address 02:00:00:00:00:11 mtu 1300 up",
                "addr add 192.168.7.2/24 dev net1",
                "route add 10.50.0.0/16 via 192.168.7.1 dev net1 metric 7 mtu 1200 src 192.168.7.2 table 1000",
                "route add blackhole 10.60.0.0/16 table 100",
                "route add 10.70.0.0/16 nexthop via 192.168.7.1 dev net1 nexthop via 192.168.7.3 dev net1",
                "rule add from 192.168.7.0/24 fwmark 0x1/0xff table 1000 priority 500",
                "neigh add 192.168.7.1 lladdr 02:00:00:00:00:22 dev net1 nud permanent",
            ] {
                let words: Vec<&str> = line.split(' ').collect();
                let said = output("ip", &words);
                // The far end stays here where the node's namespace is not process 1's; nothing depends on it.
                assert!(said.is_empty() || line.contains("netns 1"), "ip {line}: {said}");
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(join_to_taps(netns.fd.as_fd(), 1).unwrap(), Joined::Needs(2));
        let Joined::Done(guest) = join_to_taps(netns.fd.as_fd(), 2).unwrap() else { panic!("more than two") };
        let interface = &guest.interfaces[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
        let mut expected = vec![format!("{own}/16"), format!("{}/64", addresses[1])];
        let mut found = interface.addresses.clone();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        let second = &guest.interfaces[1];
        assert_eq!((second.name.as_str(), second.mac.as_str(), second.mtu), ("net1", "02:00:00:00:00:11", 1300));
        assert_eq!(second.addresses, ["192.168.7.2/24"]);
        assert_eq!(guest.left, Vec::<String>::new());
        let routes: Vec<RouteMessage> =
            guest.routes.iter().map(|bytes| RouteMessage::parse(bytes.as_slice()).unwrap()).collect();
        let of = |what: RouteAttribute| routes.iter().find(|route| route.attributes.contains(&what));
        let by = |address: [u8; 4]| RouteAttribute::Gateway(RouteAddress::Inet(address.into()));
        let to = |address: [u8; 4]| RouteAttribute::Destination(RouteAddress::Inet(address.into()));
        assert!(of(by([10, 99, 0, 1])).is_some(), "no default route: {routes:?}");
        assert!(of(RouteAttribute::Gateway(RouteAddress::Inet6("fd99::1".parse().unwrap()))).is_some(), "{routes:?}");
        let own_table = of(to([10, 50, 0, 0])).expect("the route of table 1000");
        for kept in [RouteAttribute::Table(1000), RouteAttribute::Priority(7), RouteAttribute::Oif(second.index)] {
            assert!(own_table.attributes.contains(&kept), "{kept:?} of {own_table:?}");
        }
        assert_eq!(of(to([10, 60, 0, 0])).expect("the blackhole").header.kind, RouteType::BlackHole);
        assert!(of(to([10, 70, 0, 0])).is_some(), "no multipath route: {routes:?}");
        let rule = RuleMessage::parse(guest.rules[0].as_slice()).unwrap();
        assert!(rule.attributes.contains(&RuleAttribute::FwMark(1)), "{rule:?}");
        assert_eq!((guest.rules.len(), guest.neighbours.len()), (1, 1));
        let mac: Vec<u8> = interface.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let mut tap = File::from(netns.taps.into_iter().next().unwrap());
        tap.write_all(&arp_request(&mac, own.octets(), [10, 99, 0, 1])).unwrap();
        let mut frame = [0; 2048];
        loop {
            let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
            let ready = poll(&mut [PollFd::new(&tap, PollFlags::IN)], Some(&limit)).unwrap();
            assert!(ready > 0, "the gateway does not answer");
            let length = tap.read(&mut frame).unwrap();
            // Ethernet type ARP, operation reply, sender 10.99.0.1; others are the bridge's own chatter.
            if length >= 52 && frame[22..24] == [8, 6] && frame[30..32] == [0, 2] {
                assert_eq!((&frame[10..16], &frame[38..42]), (&mac[..], &[10, 99, 0, 1][..]));
                break;
            }
        }

        attachment.del(&node.config.cni, Some(&path)).await.unwrap();
        let gone = netns::inside(netns.fd.as_fd(), || Ok(output("ip", &["link", "show", "eth0"]))).unwrap();
        assert!(gone.contains("does not exist"), "{gone}");
        let rules = output("iptables-save", &[]);
        let left: Vec<&str> =
            rules.lines().filter(|line| line.contains("8081") || line.contains(&own.to_string())).collect();
        assert_eq!(left, Vec::<&str>::new());
        attachment.del(&node.config.cni, Some(&path)).await.expect("DEL is idempotent");
        attachment.del(&node.config.cni, None).await.expect("DEL works without the namespace");
    });
}

#[test]
fn an_interface_that_cannot_go_is_named() {
    let link = |name: &str, up, ethernet, stacked| Link { name: name.into(), up, ethernet, stacked, ..Link::default() };
    let (taken, left) = sort(vec![
        link("lo", true, false, false),
        link("tap0", true, true, false),
        link("net1", true, true, false),
        link("eth0", true, true, false),
        link("sit0", false, false, false),
        link("wg0", true, false, false),
        link("net1.5", true, true, true),
    ]);
    assert_eq!(taken.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["eth0", "net1"]);
    assert_eq!(
        left,
        ["interface wg0 is no Ethernet interface", "interface net1.5 lies on another interface of the namespace"]
    );
}

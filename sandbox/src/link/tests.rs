use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

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
        let netns = netns::create(&path, true).unwrap();
        let list = NetworkList::load(&node.config.cni).unwrap();
        let port = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8081, host_ip: String::new() };
        let spec = NetworkSpec {
            args: [("K8S_POD_NAME".into(), "x".into())].into(),
            port_mappings: vec![port],
            ..NetworkSpec::default()
        };
        let mut attachment = Attachment::new(list, &new_id(), &spec, "", "/x").unwrap();
        attachment.add(&node.config.cni, &path, |_| Ok(())).await.unwrap();
        let addresses = crate::cni::status(attachment.result.as_ref().unwrap()).addresses;
        let IpAddr::V4(own) = addresses[0] else { panic!("{addresses:?}") };
        assert!(
            own.to_string().starts_with("10.99.0.") && addresses[1].to_string().starts_with("fd99::"),
            "{addresses:?}"
        );
        assert!(output("iptables-save", &[]).contains("--dport 8081"), "no port is mapped");

        let guest = join_to_tap(netns.fd.as_fd()).unwrap();
        let interface = &guest.interfaces[0];
        assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
        let mut expected = vec![format!("{own}/16"), format!("{}/64", addresses[1])];
        let mut found = interface.addresses.clone();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
        let route = |to: &str, by: &str| Route { destination: to.into(), gateway: by.into(), interface: "eth0".into() };
        for route in [route("0.0.0.0/0", "10.99.0.1"), route("::/0", "fd99::1")] {
            assert!(guest.routes.contains(&route), "{:?}", guest.routes);
        }
        assert_eq!(guest.routes.len(), 2, "{:?}", guest.routes);
        let mac: Vec<u8> = interface.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        let mut tap = File::from(netns.tap.unwrap());
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

//! What plugins of the network and the node's table of mounts say.

use cofferdam_sandbox::fuzzing;

use super::{Target, target, texts};

pub(super) const CNI: Target = target("cni", cni, cni_seeds);
pub(super) const MOUNTINFO: Target = target("mountinfo", mountinfo, mount_seeds);

fn cni(bytes: &[u8]) {
    fuzzing::cni_result(bytes);
    fuzzing::cni_config(&String::from_utf8_lossy(bytes));
}

fn cni_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"},{"name":"br"}],"ips":[{"interface":0,"address":"10.0.0.2/24"},{"interface":1,"address":"fe80::1/64"}]}"#,
        r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/8"},"ip6":{"ip":"::1"}}"#,
        r#"{"name":"net","cniVersions":["0.4.0","1.1.0","9.0"],"plugins":[{"type":"bridge","capabilities":{"portMappings":true}}]}"#,
        r#"{"name":"net","type":"bridge"}"#,
    ])
}

fn mountinfo(bytes: &[u8]) {
    fuzzing::mountinfo(&String::from_utf8_lossy(bytes));
}

fn mount_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "36 35 98:0 /root /point\\040with\\134x rw,noatime shared:1 unbindable - ext4 /dev/sda1 rw,errors=continue\n37 36 0:5 / /proc ro - proc proc ro\n",
    ])
}

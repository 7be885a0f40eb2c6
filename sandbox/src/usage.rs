//! What a pod uses of the node: its whole cgroup, the monitor or supervisor included, and its interfaces. The guest is not asked, so
//! what it says of itself plays no part.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::os::fd::AsFd;

use cofferdam_proto::agent::CgroupUsage;

use crate::cgroup::PodCgroup;
use crate::dirs::Dirs;
use crate::error::{Doing, SandboxError};
use crate::netns;

/// Most interfaces of a pod that are told.
const MAX_INTERFACES: usize = 16;

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PodUsage {
    /// Of its cgroup on the node.
    pub cgroup: CgroupUsage,
    /// Its interfaces but `lo` and the tap; none on the node's network.
    pub interfaces: Vec<InterfaceUsage>,
}

/// Counters of an interface, as the pod sees it: received is what came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    /// Its name, `eth0`.
    pub name: String,
    /// What came in.
    pub received: Traffic,
    /// What went out.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were broken.
    pub errors: u64,
    /// Packets for which there was no room.
    pub dropped: u64,
}

/// Reads both. Blocks for moments.
pub(crate) fn read(cgroup: &PodCgroup, dirs: &Dirs, has_network: bool) -> Result<PodUsage, SandboxError> {
    let mut usage = PodUsage { cgroup: cofferdam_proto::usage::read(&cgroup.path()), interfaces: Vec::new() };
    if has_network {
        let path = dirs.netns();
        let namespace = fs::File::open(&path).doing(|| format!("open network namespace {}", path.display()))?;
        let text = netns::inside(namespace.as_fd(), || {
            // Not /proc/net: that is the namespace of the whole process.
            fs::read_to_string("/proc/thread-self/net/dev").doing(|| "read the counters of the pod's interfaces".into())
        })?;
        usage.interfaces = interfaces(&text);
    }
    Ok(usage)
}

/// `/proc/net/dev`: two lines of titles, then for each interface its name and eight numbers for each direction.
fn interfaces(text: &str) -> Vec<InterfaceUsage> {
    let counted = text.lines().skip(2).filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let traffic = |at: usize| {
            let [bytes, packets, errors, dropped] = *numbers.get(at..at + 4)? else { return None };
            Some(Traffic { bytes, packets, errors, dropped })
        };
        let name = name.trim().to_owned();
        Some(InterfaceUsage { name, received: traffic(0)?, sent: traffic(8)? })
    });
    counted.filter(|i| i.name != "lo" && !netns::is_tap(&i.name)).take(MAX_INTERFACES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_of_the_pod_s_interfaces() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:       9       9    0    0    0     0          0         0        9       9    0    0    0     0       0          0\n  \
                    tap0:       9       9    0    0    0     0          0         0        9       9    0    0    0     0       0          0\n  \
                    eth0: 1000      10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0\n  \
                    net1: 1\n";
        let received = Traffic { bytes: 1000, packets: 10, errors: 1, dropped: 2 };
        let sent = Traffic { bytes: 2000, packets: 20, errors: 3, dropped: 4 };
        assert_eq!(interfaces(text), [InterfaceUsage { name: "eth0".into(), received, sent }]);
        assert!(interfaces("").is_empty());
    }

    #[test]
    fn the_kernel_s_own_table_is_understood() {
        let text = fs::read_to_string("/proc/self/net/dev").unwrap();
        let others =
            text.lines().skip(2).filter(|l| !l.trim_start().starts_with("lo:") && !l.contains("tap0:")).count();
        assert_eq!(interfaces(&text).len(), others.min(MAX_INTERFACES));
    }
}

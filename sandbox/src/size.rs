//! What a microVM's guest may have, so that the whole pod fits into its cgroup on the node.
//!
//! ```text
//!  memory.max of the pod's cgroup (the kubelet: the containers' limits + the RuntimeClass's overhead)
//!  |<------------------------------------------------------------------------------>|
//!  | guest memory: containers, guest kernel, agent               | beside the guest |
//! ```
//!
//! Beside the guest the same cgroup pays for the monitor, page tables, what the node's kernel keeps for open files, and the page cache through
//! which the pod's disk is written. A guest touches all the memory that it has in time, so what it is given must leave room for that.

use crate::error::SandboxError;
use crate::spec::VmSize;

/// What the node needs beside any guest, MiB: the monitor and its kernel objects (6), and the page cache of a disk that is written.
const BESIDE: u32 = 12;
/// And for each so many MiB of the guest one more: page tables, the process's and KVM's.
const GUEST_PER_BESIDE: u32 = 128;
/// The smallest guest, MiB: below it a kernel with its agent boots, and no container fits beside them.
pub const SMALLEST_GUEST_MIB: u32 = 64;

/// What the node needs beside a guest of `guest_mib`.
fn beside(guest_mib: u32) -> u32 {
    BESIDE + guest_mib.div_ceil(GUEST_PER_BESIDE)
}

/// The largest guest, in MiB, of a pod that may use `pod_mib` on the node; 0 where none fits.
pub fn guest_mib(pod_mib: u32) -> u32 {
    let rest = u64::from(pod_mib.saturating_sub(BESIDE));
    let per = u64::from(GUEST_PER_BESIDE);
    // The inverse of guest + guest / per, rounded down, so that what is beside always fits.
    u32::try_from(rest * per / (per + 1)).unwrap_or(0)
}

/// The size that a pod gets which asks for `wanted` in a cgroup that may use `limit` bytes.
///
/// # Errors
/// When not even the smallest guest fits.
pub(crate) fn fit(wanted: VmSize, limit: Option<u64>) -> Result<VmSize, SandboxError> {
    let Some(limit) = limit else { return Ok(wanted) };
    let pod_mib = u32::try_from(limit >> 20).unwrap_or(u32::MAX);
    let most = guest_mib(pod_mib);
    if most < SMALLEST_GUEST_MIB {
        let needed = SMALLEST_GUEST_MIB + beside(SMALLEST_GUEST_MIB);
        return Err(SandboxError::Refused(format!(
            "the pod's cgroup may use {pod_mib} MiB of memory, and the smallest microVM needs {needed} MiB: raise the containers' memory \
             limits, or overhead.podFixed.memory of the RuntimeClass, by {} MiB",
            needed - pod_mib
        )));
    }
    Ok(VmSize { memory_mib: wanted.memory_mib.min(most), ..wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_and_what_is_beside_it_fit_and_leave_nothing_unused() {
        for pod in (0..=4096).chain((4096..=2 << 20).step_by(997)) {
            let guest = guest_mib(pod);
            assert!(guest == 0 || guest + beside(guest) <= pod, "{guest} of {pod}");
            assert!(guest + 1 + beside(guest + 1) + 1 >= pod, "{guest} of {pod} wastes some");
        }
    }

    #[test]
    fn a_pod_gets_what_its_cgroup_has_room_for() {
        let wanted = VmSize { vcpus: 2, memory_mib: 256 };
        let fitted = |limit: Option<u64>| fit(wanted, limit.map(|mib| mib << 20)).map(|size| size.memory_mib);
        assert_eq!(fitted(None).unwrap(), 256);
        assert_eq!(fitted(Some(104)).unwrap(), 91, "64 MiB of containers and 40 of overhead");
        assert_eq!(fitted(Some(512)).unwrap(), 256, "no more than was asked for");
        assert_eq!(fitted(Some(1 << 40)).unwrap(), 256);
        assert_eq!(fitted(Some(77)).unwrap(), SMALLEST_GUEST_MIB);
        let error = fitted(Some(60)).unwrap_err();
        assert!(matches!(error, SandboxError::Refused(_)));
        let text = error.to_string();
        assert!(
            text.contains("may use 60 MiB") && text.contains("needs 77 MiB") && text.contains("by 17 MiB"),
            "{text}"
        );
    }
}

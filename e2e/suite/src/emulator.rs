//! A slip of the emulator that nodes of build machines run in.
//!
//! Seen once, under load: KVM failed with "Bad address", the pod died, and the registers that KVM showed as the guest's had the node's
//! kernel's instruction pointer and stack. So QEMU's emulation of nested SVM is taken to have stored the one's registers as the
//! other's. It is told from anything of ours by that instruction pointer, which is among the node's modules: no guest has code there,
//! as its kernel has no modules.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where x86-64 kernels have their modules, to the end of the address space.
const MODULES: u64 = 0xffff_ffff_c000_0000;

/// What a monitor said that it made end a pod since then, if it did.
pub(crate) fn slip(since: SystemTime) -> Option<String> {
    // Journal times are cut to seconds.
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(Duration::from_secs(1));
    let since = format!("--since=@{}", since.as_secs());
    let journal =
        Command::new("journalctl").args(["-u", "cofferdam", "-o", "cat", "--no-pager", &since]).output().ok()?;
    String::from_utf8_lossy(&journal.stdout).lines().find(|line| is_slip(line)).map(str::to_owned)
}

fn is_slip(line: &str) -> bool {
    let Some((_, registers)) = line.split_once("KVM_RUN failed: Bad address") else { return false };
    let rip = registers.split_once("rip 0x").and_then(|(_, rest)| rest.split(',').next());
    rip.and_then(|rip| u64::from_str_radix(rip, 16).ok()).is_some_and(|rip| rip >= MODULES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_node_s_own_registers_are_a_slip() {
        let died = |rip: &str| {
            format!(
                "pod died detail=\"the monitor failed: vCPU 0: KVM_RUN failed: Bad address (os error 14); rip {rip}, rsp 0xffffc900008979d8\""
            )
        };
        assert!(is_slip(&died("0xffffffffc03ed6b0")));
        for guests in ["0xffffffff810003b0", "0x401000", "0", "0x"] {
            assert!(!is_slip(&died(guests)), "{guests}");
        }
        assert!(!is_slip("vCPU 0: KVM_RUN failed: Invalid argument (os error 22); rip 0xffffffffc03ed6b0, rsp 0"));
    }
}

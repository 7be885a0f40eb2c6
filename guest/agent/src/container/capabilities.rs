//! Capability sets, by name and as the kernel's bits.

use cofferdam_proto::agent::Capabilities;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Doing, Error, Result};

/// Every capability of Linux 6.12, by number.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The sets of a container's processes, one bit a capability.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Caps {
    /// What can ever be gained.
    pub bounding: u64,
    /// What may be raised.
    pub permitted: u64,
    /// What counts.
    pub effective: u64,
    /// What is kept over exec by files that allow it.
    pub inheritable: u64,
    /// What is kept over exec by a user other than root.
    pub ambient: u64,
}

/// Number of a capability.
pub fn number(name: &str) -> Option<u8> {
    NAMES.iter().position(|n| *n == name).and_then(|n| u8::try_from(n).ok())
}

fn bits(names: &[String]) -> Result<u64> {
    let mut bits = 0;
    for name in names {
        let number = number(name).ok_or_else(|| Error::invalid(format!("{name:?} is not a capability")))?;
        bits |= 1 << number;
    }
    Ok(bits)
}

impl Caps {
    /// Reads names.
    ///
    /// # Errors
    /// For a name that is none.
    pub fn parse(request: Option<&Capabilities>) -> Result<Self> {
        let Some(c) = request else { return Ok(Self::default()) };
        Ok(Self {
            bounding: bits(&c.bounding)?,
            permitted: bits(&c.permitted)?,
            effective: bits(&c.effective)?,
            inheritable: bits(&c.inheritable)?,
            ambient: bits(&c.ambient)?,
        })
    }

    /// Takes from the bounding set what is not in it. Needs CAP_SETPCAP, so it comes first.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn bound(&self) -> Result<()> {
        for number in 0..64u32 {
            if self.bounding & (1 << number) == 0 {
                match rustix::thread::remove_capability_from_bounding_set(one(number)) {
                    Ok(()) => {}
                    // Past the last one that this kernel knows.
                    Err(rustix::io::Errno::INVAL) => break,
                    Err(e) => return Err(e).doing(format!("drop capability {number}")),
                }
            }
        }
        Ok(())
    }

    /// Sets the other four; capabilities that this kernel lacks are left out.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn apply(&self) -> Result<()> {
        let has = |number: u32| rustix::thread::capability_is_in_bounding_set(one(number)).unwrap_or(false);
        let known = (0..64).filter(|n| has(*n)).fold(0, |bits, n| bits | (1u64 << n));
        let permitted = self.permitted & known;
        let effective = self.effective & permitted;
        let inheritable = self.inheritable & known;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: CapabilitySet::from_bits_retain(effective),
                permitted: CapabilitySet::from_bits_retain(permitted),
                inheritable: CapabilitySet::from_bits_retain(inheritable),
            },
        )
        .doing("set the capabilities")?;
        rustix::thread::clear_ambient_capability_set().doing("clear the ambient capabilities")?;
        for number in (0..64).filter(|n| self.ambient & permitted & inheritable & (1 << n) != 0) {
            rustix::thread::configure_capability_in_ambient_set(one(number), true)
                .doing(format!("raise ambient capability {number}"))?;
        }
        Ok(())
    }
}

fn one(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernel_s_numbers() {
        for (name, expected) in [("CAP_CHOWN", 0), ("CAP_SYS_ADMIN", 21), ("CAP_MKNOD", 27), ("CAP_BPF", 39)] {
            assert_eq!(number(name), Some(expected));
        }
        assert_eq!(number("CAP_NONSENSE"), None);
        assert_eq!(number("chown"), None);
    }
}

//! A vCPU's registers, as a crash report shows them; what a snapshot needs beyond these joins them later.

use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, step};

/// Version of [`VcpuState`].
const STATE_VERSION: u32 = 1;

/// Where a processor starts after a reset, in the segment that starts at the second number.
const RESET_RIP: u64 = 0xfff0;
const RESET_CS_BASE: u64 = 0xffff_0000;
const CR0_PROTECTED: u64 = 1;

/// State of one vCPU.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct VcpuState {
    /// [`STATE_VERSION`].
    version: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
}

impl VcpuState {
    /// Reads it; the vCPU must not run.
    pub(super) fn save(fd: &VcpuFd) -> Result<Self, KvmError> {
        Ok(Self {
            version: STATE_VERSION,
            regs: fd.get_regs().map_err(step("read a vCPU's registers"))?,
            sregs: fd.get_sregs().map_err(step("read a vCPU's segments"))?,
            xcrs: fd.get_xcrs().map_err(step("read a vCPU's extended control registers"))?,
            events: fd.get_vcpu_events().map_err(step("read a vCPU's events"))?,
            mp_state: fd.get_mp_state().map_err(step("read a vCPU's run state"))?,
        })
    }

    /// Whether it is that of a processor after a reset. No guest is ever there: each vCPU is given a place to start at, or gets one from
    /// another vCPU.
    fn is_reset(&self) -> bool {
        self.regs.rip == RESET_RIP && self.sregs.cs.base == RESET_CS_BASE && self.sregs.cr0 & CR0_PROTECTED == 0
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        if self.is_reset() {
            // On AMD processors KVM does that at a triple fault, before it tells of it.
            return "KVM has reset the vCPU, so where its guest was is lost".into();
        }
        let (regs, sregs) = (&self.regs, &self.sregs);
        let exception = match self.events.exception {
            pending if pending.injected != 0 => format!(", exception {}", pending.nr),
            _ => String::new(),
        };
        format!(
            "rip {:#x}, rsp {:#x}, rflags {:#x}, cr0 {:#x}, cr2 {:#x}, cr3 {:#x}, cr4 {:#x}, efer {:#x}, xcr0 {:#x}, \
             run state {}{exception}",
            regs.rip,
            regs.rsp,
            regs.rflags,
            sregs.cr0,
            sregs.cr2,
            sregs.cr3,
            sregs.cr4,
            sregs.efer,
            self.xcrs.xcrs[0].value,
            self.mp_state.mp_state,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_survives_serialization() {
        let mut state = VcpuState { version: STATE_VERSION, ..Default::default() };
        state.regs.rip = 0xffff_ffff_8100_0000;
        state.sregs.cr2 = 0x18;
        state.xcrs.xcrs[0].value = 7;
        let text = serde_json::to_string(&state).unwrap();
        let again: VcpuState = serde_json::from_str(&text).unwrap();
        assert_eq!(again.summary(), state.summary());
        assert!(state.summary().contains("rip 0xffffffff81000000") && state.summary().contains("cr2 0x18"));
        assert_eq!(again.version, STATE_VERSION);
    }

    #[test]
    fn registers_of_a_reset_are_not_told_as_the_guest_s() {
        let mut state = VcpuState { version: STATE_VERSION, ..Default::default() };
        (state.regs.rip, state.sregs.cs.base, state.sregs.cr0) = (0xfff0, 0xffff_0000, 0x6000_0010);
        assert_eq!(state.summary(), "KVM has reset the vCPU, so where its guest was is lost");
        state.sregs.cs.base = 0;
        assert!(state.summary().contains("rip 0xfff0"), "a guest in real mode may be there");
    }
}

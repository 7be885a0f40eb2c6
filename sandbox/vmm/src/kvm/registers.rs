//! A vCPU's main registers: a crash report shows them, and they are a part of its whole state.

use kvm_bindings::{kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, step};

/// Where a processor starts after a reset, in the segment that starts at the second number.
const RESET_RIP: u64 = 0xfff0;
const RESET_CS_BASE: u64 = 0xffff_0000;
const CR0_PROTECTED: u64 = 1;

/// The registers that KVM tells of without help.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Registers {
    /// Whether it runs, halts or waits to be woken.
    pub(super) mp_state: kvm_mp_state,
    /// General registers.
    pub(super) regs: kvm_regs,
    /// Segments, control registers, and an interrupt that was accepted and not yet delivered.
    pub(super) sregs: kvm_sregs,
    /// Extended control registers.
    pub(super) xcrs: kvm_xcrs,
    /// Exceptions and interrupts under way.
    pub(super) events: kvm_vcpu_events,
}

impl Registers {
    /// Reads them; the vCPU must not run. The run state comes first, because reading it makes KVM
    /// carry out what waits for the vCPU.
    pub(super) fn read(fd: &VcpuFd) -> Result<Self, KvmError> {
        Ok(Self {
            mp_state: fd.get_mp_state().map_err(step("read a vCPU's run state"))?,
            regs: fd.get_regs().map_err(step("read a vCPU's registers"))?,
            sregs: fd.get_sregs().map_err(step("read a vCPU's segments"))?,
            xcrs: fd.get_xcrs().map_err(step("read a vCPU's extended control registers"))?,
            events: fd.get_vcpu_events().map_err(step("read a vCPU's events"))?,
        })
    }

    /// Whether they are those of a processor after a reset. No guest is ever there: each vCPU is
    /// given a place to start at, or gets one from another vCPU.
    fn are_reset(&self) -> bool {
        self.regs.rip == RESET_RIP && self.sregs.cs.base == RESET_CS_BASE && self.sregs.cr0 & CR0_PROTECTED == 0
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        if self.are_reset() {
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
    fn the_summary_names_what_a_crash_is_about() {
        let mut registers = Registers::default();
        registers.regs.rip = 0xffff_ffff_8100_0000;
        registers.sregs.cr2 = 0x18;
        registers.xcrs.xcrs[0].value = 7;
        let text = registers.summary();
        assert!(text.contains("rip 0xffffffff81000000") && text.contains("cr2 0x18"), "{text}");
    }

    #[test]
    fn registers_of_a_reset_are_not_told_as_the_guest_s() {
        let mut registers = Registers::default();
        (registers.regs.rip, registers.sregs.cs.base, registers.sregs.cr0) = (0xfff0, 0xffff_0000, 0x6000_0010);
        assert_eq!(registers.summary(), "KVM has reset the vCPU, so where its guest was is lost");
        registers.sregs.cs.base = 0;
        assert!(registers.summary().contains("rip 0xfff0"), "a guest in real mode may be there");
    }
}

//! The whole state of one vCPU, as it is saved and restored.

use kvm_bindings::{CpuId, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::registers::Registers;
use super::{KvmError, msrs, step, xsave};

/// What is needed to read any vCPU of a VM.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// The registers that [`msrs::list`] tells of.
    pub(super) msrs: Vec<u32>,
    /// Bytes of the extended state.
    pub(super) xsave: usize,
}

/// State of one vCPU.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    /// Its number.
    pub(super) id: u8,
    /// What it was told of its processor.
    cpuid: Vec<kvm_cpuid_entry2>,
    /// How fast its time stamp counter runs.
    tsc_khz: u32,
    registers: Registers,
    /// The extended state: floating point and vectors.
    xsave: Vec<u8>,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Number and value each.
    msrs: Vec<(u32, u64)>,
}

impl VcpuState {
    /// Reads it. The vCPU must not run, and must have finished its last access to a device: KVM_RUN
    /// was interrupted.
    pub(super) fn save(fd: &VcpuFd, id: u8, cpuid: &CpuId, reading: &Reading) -> Result<Self, KvmError> {
        Ok(Self {
            id,
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: fd.get_tsc_khz().map_err(step("tell a vCPU's TSC frequency"))?,
            registers: Registers::read(fd)?,
            xsave: xsave::read(fd, reading.xsave)?,
            debug: fd.get_debug_regs().map_err(step("read a vCPU's debug registers"))?,
            lapic: fd.get_lapic().map_err(step("read a vCPU's LAPIC"))?,
            msrs: msrs::read(fd, &reading.msrs)?,
        })
    }

    /// Puts it into the new vCPU `fd`, which was told `cpuid`.
    ///
    /// The order matters: setting the registers drops events, setting the segments moves the LAPIC,
    /// and the timer's deadline, the last MSR, counts only in a LAPIC that is set.
    pub(super) fn restore(&self, fd: &VcpuFd, cpuid: &CpuId, xsave: usize) -> Result<(), KvmError> {
        same_processor(&self.cpuid, cpuid.as_slice())?;
        let now = fd.get_tsc_khz().map_err(step("tell a vCPU's TSC frequency"))?;
        if now != self.tsc_khz {
            return Err(KvmError::TscFrequency { saved: self.tsc_khz, now });
        }
        let Registers { mp_state, regs, sregs, xcrs, events } = &self.registers;
        fd.set_mp_state(*mp_state).map_err(step("set a vCPU's run state"))?;
        fd.set_regs(regs).map_err(step("set a vCPU's registers"))?;
        fd.set_sregs(sregs).map_err(step("set a vCPU's segments"))?;
        fd.set_xcrs(xcrs).map_err(step("set a vCPU's extended control registers"))?;
        xsave::set(fd, &self.xsave, xsave)?;
        fd.set_debug_regs(&self.debug).map_err(step("set a vCPU's debug registers"))?;
        fd.set_lapic(&self.lapic).map_err(step("set a vCPU's LAPIC"))?;
        if self.id == 0 {
            msrs::set_time(fd, &self.msrs)?;
        }
        msrs::set(fd, &self.msrs)?;
        fd.set_vcpu_events(events).map_err(step("set a vCPU's events"))
    }
}

#[cfg(test)]
impl VcpuState {
    /// That of a vCPU of which nothing but its number is known.
    pub(super) fn numbered(id: u8) -> Self {
        Self { id, ..Default::default() }
    }
}

/// Whether a vCPU was told the same of its processor as `now`.
fn same_processor(saved: &[kvm_cpuid_entry2], now: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    let words = |entry: &kvm_cpuid_entry2| [entry.eax, entry.ebx, entry.ecx, entry.edx];
    let place = |entry: &kvm_cpuid_entry2| (entry.function, entry.index);
    let find = |list: &[kvm_cpuid_entry2], at| list.iter().find(|entry| place(entry) == at).map(words);
    for at in saved.iter().chain(now).map(place) {
        let (saved, now) = (find(saved, at), find(now, at));
        if saved != now {
            return Err(KvmError::Processor { function: at.0, index: at.1, saved, now });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_processor_is_named_by_its_leaf() {
        let entry = |function, index, eax| kvm_cpuid_entry2 { function, index, eax, ..Default::default() };
        let saved = [entry(1, 0, 0x00a1_0f11), entry(7, 0, 2), entry(7, 1, 3)];
        same_processor(&saved, &[saved[2], saved[0], saved[1]]).unwrap();
        for (now, leaf) in [
            (vec![entry(1, 0, 0x00a1_0f11), entry(7, 0, 2), entry(7, 1, 4)], "0x7.1"),
            (vec![entry(1, 0, 0x00a1_0f12), entry(7, 0, 2), entry(7, 1, 3)], "0x1.0"),
            (vec![entry(1, 0, 0x00a1_0f11), entry(7, 0, 2)], "0x7.1"),
            (vec![entry(1, 0, 0x00a1_0f11), entry(7, 0, 2), entry(7, 1, 3), entry(0xd, 1, 1)], "0xd.1"),
        ] {
            let error = same_processor(&saved, &now).unwrap_err().to_string();
            assert!(error.contains("another processor") && error.contains(leaf), "{error}");
        }
    }
}

//! One vCPU: how it stands at the first instruction, and its loop of exits.

use std::sync::Arc;

use cofferdam_proto::monitor::ExitReason;
use kvm_bindings::{
    CpuId, KVM_SYSTEM_EVENT_RESET, Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::gate::{Gate, Halted};
use super::recorder::{Exit, Recorder};
use super::registers::Registers;
use super::state::{Reading, VcpuState};
use super::{KvmError, cpuid, pre_fault, step};
use crate::boot::Entry;
use crate::bus::Bus;
use crate::counters::VCPU_EXITS;
use crate::ending::Ending;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

const CR0_PROTECTED: u64 = 1;
/// CR0's bit that is always one.
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const RFLAGS_RESERVED: u64 = 2;

const LAPIC_LVT0: usize = 0x350;
const LAPIC_LVT1: usize = 0x360;
const DELIVERY_MODE: u32 = 7 << 8;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// A vCPU that does not run yet.
pub(crate) struct Vcpu {
    pub(super) fd: VcpuFd,
    id: u8,
    cpuid: CpuId,
    recorder: Recorder,
    /// What the VM maps; it must outlive the vCPU's last instruction.
    _memory: GuestMemoryMmap,
}

/// What a vCPU's loop does next.
enum Next {
    Run,
    Pause,
    Stop,
}

impl Vcpu {
    /// Has KVM make vCPU `id`, which it does once for each number: whatever fails afterwards is to be
    /// tried again with this one.
    pub(super) fn create(vm: &VmFd, id: u8, cpuid: CpuId, memory: &GuestMemoryMmap) -> Result<Self, KvmError> {
        let fd = vm.create_vcpu(u64::from(id)).map_err(step("create a vCPU"))?;
        Ok(Self { fd, id, cpuid, recorder: Recorder::new(), _memory: memory.clone() })
    }

    /// Has it wait for the guest to wake it, unless [`Self::enter_at`] says where it starts.
    pub(super) fn set_up(&self) -> Result<(), KvmError> {
        self.set_processor()?;
        set_msrs(&self.fd)?;
        set_local_interrupts(&self.fd)
    }

    /// Makes the vCPU whose state is `state`; `xsave` is the size of the extended state.
    pub(super) fn restore(
        vm: &VmFd,
        cpuid: CpuId,
        memory: &GuestMemoryMmap,
        state: &VcpuState,
        xsave: usize,
    ) -> Result<Self, KvmError> {
        let vcpu = Self::create(vm, state.id, cpuid, memory)?;
        vcpu.set_processor()?;
        state.restore(&vcpu.fd, &vcpu.cpuid, xsave)?;
        vcpu.tell_of_pause();
        Ok(vcpu)
    }

    fn set_processor(&self) -> Result<(), KvmError> {
        self.fd.set_cpuid2(&self.cpuid).map_err(step("set a vCPU's CPUID"))?;
        if let Some(value) = cpuid::xcr0(&self.cpuid) {
            // An emulated node that does not intercept XSETBV shows the guest this value, not its own.
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0].value = value;
            self.fd.set_xcrs(&xcrs).map_err(step("set a vCPU's XCR0"))?;
        }
        Ok(())
    }

    /// Maps pages that the monitor has already, as far as KVM can.
    pub(crate) fn map_beforehand(&self, pages: &[(GuestAddress, u64)]) {
        pre_fault::map(&self.fd, pages);
    }

    /// The vCPU starts at `entry`.
    pub(super) fn enter_at(&self, entry: Entry) -> Result<(), KvmError> {
        set_entry(&self.fd, entry)
    }

    /// Number of this vCPU.
    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Runs until the VM ends, whoever ends it; waits at `gate` whenever that is closed.
    pub(super) fn run(&mut self, bus: &Bus, ending: &Arc<Ending>, gate: &Gate) {
        loop {
            match self.step(bus, ending, gate) {
                Next::Run => {}
                Next::Pause if gate.pass(self.id, self) => {}
                Next::Pause | Next::Stop => break,
            }
        }
        gate.leave();
    }

    /// Tells the guest's kernel that time passed without it, or its watchdogs would bark. A guest
    /// that does not use KVM's clock cannot be told.
    fn tell_of_pause(&self) {
        let _ = self.fd.kvmclock_ctrl();
    }

    /// Runs to the next exit and serves it.
    fn step(&mut self, bus: &Bus, ending: &Ending, gate: &Gate) -> Next {
        let exit = self.fd.run();
        VCPU_EXITS.add();
        let (reason, detail) = match exit {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.recorder.note(Exit::PortIn(port));
                bus.port_in(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.recorder.note(Exit::PortOut(port));
                bus.port_out(port, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.recorder.note(Exit::Read(address));
                bus.mmio_read(address, data);
                return Next::Run;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.recorder.note(Exit::Write(address));
                bus.mmio_write(address, data);
                return Next::Run;
            }
            // A signal, or KVM wants to be called again. Signals come when the vCPU is to stop.
            // What it had begun with a device is finished: KVM does that before it looks for
            // signals.
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                self.recorder.note(Exit::Interrupted);
                return match ending.end() {
                    Some(_) => Next::Stop,
                    None if gate.is_open() => Next::Run,
                    None if error.errno() == libc::EINTR => Next::Pause,
                    None => Next::Run,
                };
            }
            Ok(VcpuExit::Shutdown) => (ExitReason::TripleFault, "triple fault".to_owned()),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                (ExitReason::GuestReset, "the guest reset the machine".to_owned())
            }
            Ok(other) => (ExitReason::MonitorError, format!("unexpected exit {other:?}")),
            Err(error) => (ExitReason::MonitorError, format!("KVM_RUN failed: {error}")),
        };
        let place = Registers::read(&self.fd).map_or_else(|error| error.to_string(), |state| state.summary());
        ending.finish(reason, format!("vCPU {}: {detail}; {place}; {}", self.id, self.recorder));
        Next::Stop
    }
}

impl Halted for Vcpu {
    fn save(&self, reading: &Reading) -> Result<VcpuState, KvmError> {
        VcpuState::save(&self.fd, self.id, &self.cpuid, reading)
    }

    fn go_on(&mut self) {
        self.tell_of_pause();
        self.fd.set_kvm_immediate_exit(0);
    }
}

fn set_msrs(fd: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)];
    // Two entries always fit; the call answers how many the kernel took, and on old processors may take fewer.
    if let Ok(msrs) = Msrs::from_entries(&entries) {
        fd.set_msrs(&msrs).map_err(step("set a vCPU's MSRs"))?;
    }
    Ok(())
}

/// The PIC is on LINT0 and NMI on LINT1, as the MP table says.
fn set_local_interrupts(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut lapic = fd.get_lapic().map_err(step("read a vCPU's LAPIC"))?;
    set_delivery(&mut lapic, LAPIC_LVT0, DELIVERY_EXTINT);
    set_delivery(&mut lapic, LAPIC_LVT1, DELIVERY_NMI);
    fd.set_lapic(&lapic).map_err(step("set a vCPU's LAPIC"))
}

fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let bytes: [u8; 4] = std::array::from_fn(|at| lapic.regs[register + at] as u8);
    let word = u32::from_le_bytes(bytes) & !DELIVERY_MODE | mode;
    for (at, byte) in word.to_le_bytes().into_iter().enumerate() {
        lapic.regs[register + at] = byte as _;
    }
}

/// The state that PVH prescribes: 32-bit protected mode, flat segments, paging off.
fn set_entry(fd: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    let mut sregs = fd.get_sregs().map_err(step("read a vCPU's segments"))?;
    sregs.cs = flat(0x08, 0xb);
    let data = flat(0x10, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit task state segment.
    sregs.tr = kvm_segment { base: 0, limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..Default::default() };
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    fd.set_sregs(&sregs).map_err(step("set a vCPU's segments"))?;
    let regs = kvm_regs { rip: entry.address, rbx: entry.start_info, rflags: RFLAGS_RESERVED, ..Default::default() };
    fd.set_regs(&regs).map_err(step("set a vCPU's registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_delivery_mode_changes() {
        let mut lapic = kvm_lapic_state::default();
        for byte in &mut lapic.regs {
            *byte = 0x7f_u8 as _;
        }
        set_delivery(&mut lapic, LAPIC_LVT0, DELIVERY_EXTINT);
        set_delivery(&mut lapic, LAPIC_LVT1, DELIVERY_NMI);
        let byte = |at: usize| lapic.regs[at] as u8;
        assert_eq!([byte(0x350), byte(0x351), byte(0x352)], [0x7f, 0x7f, 0x7f]);
        assert_eq!([byte(0x360), byte(0x361), byte(0x362)], [0x7f, 0x7c, 0x7f]);
    }
}

//! The virtual machine in KVM: memory, interrupt controllers, vCPUs.
//!
//! The interrupt controllers (PIC, I/O APIC, LAPICs) are KVM's own, with their default routing, which maps line n to
//! pin n: setting a routing is slow on some nodes, and nothing here needs another. There is no PIT: the guest's
//! clock is kvm-clock and its timer the LAPIC's.

mod chips;
mod cpuid;
mod gate;
mod msrs;
mod pre_fault;
mod recorder;
mod registers;
mod state;
mod thread;
mod vcpu;
mod vcpus;
mod xsave;

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{KVM_CAP_HALT_POLL, KVM_CAP_PMU_CAPABILITY, KVM_PMU_CAP_DISABLE, kvm_enable_cap};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use vm_memory::{GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

pub(crate) use chips::MachineState;
pub(crate) use gate::Ended;
pub(crate) use state::VcpuState;
pub(crate) use vcpu::Vcpu;
pub(crate) use vcpus::{Maker, RunningVcpus};

use crate::devices::serial::{self, SerialPort};
use crate::devices::virtio::mmio::{QUEUE_NOTIFY, Transport};
use crate::memory;

/// The only version of KVM's API.
const API_VERSION: i32 = 12;

/// What KVM refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmError {
    /// One of KVM's calls failed.
    #[error("KVM cannot {step}")]
    Call {
        /// What the call was for.
        step: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The descriptor is no /dev/kvm, or one of another age.
    #[error("the handed-over descriptor is not /dev/kvm with API version {API_VERSION} (it says {0})")]
    NotKvm(i32),
    /// The node's KVM has more to say of processors than a vCPU can be told.
    #[error("{count} entries of CPUID are more than KVM takes")]
    TooManyCpuidEntries {
        /// How many there are.
        count: usize,
    },
    /// The node's KVM is too old.
    #[error("the node's KVM lacks {0}")]
    Lacks(&'static str),
    /// The vCPU was saved on another processor, or under another KVM.
    #[error("the state is of another processor: CPUID leaf {function:#x}.{index} was {saved:x?} and is {now:x?}")]
    Processor {
        /// The leaf.
        function: u32,
        /// Its subleaf.
        index: u32,
        /// `eax`, `ebx`, `ecx`, `edx` when it was saved; nothing where it was not there.
        saved: Option<[u32; 4]>,
        /// The same now.
        now: Option<[u32; 4]>,
    },
    /// There is nothing left to be saved.
    #[error("the VM ended meanwhile")]
    Ended,
    /// Clocks would run wrong.
    #[error("the state is of a processor whose TSC runs at {saved} kHz, and this one's at {now} kHz")]
    TscFrequency {
        /// When it was saved.
        saved: u32,
        /// Now.
        now: u32,
    },
    /// The processor keeps more or less for a thread than that of the state.
    #[error("the state has {saved} bytes of vector registers, and this node's KVM {now}")]
    ExtendedState {
        /// When it was saved.
        saved: usize,
        /// Now.
        now: usize,
    },
    /// A register cannot be set, and has another value.
    #[error("KVM does not set MSR {index:#x} to {saved:#x}; it is {now:x?}")]
    Msr {
        /// Its number.
        index: u32,
        /// When it was saved.
        saved: u64,
        /// Now.
        now: Option<u64>,
    },
}

/// Names the step that a call was for.
fn step(step: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Call { step, source }
}

/// A VM without vCPUs.
pub(crate) struct Machine {
    kvm: Kvm,
    vm: VmFd,
}

impl Machine {
    /// Makes the VM over `memory`.
    pub(crate) fn new(kvm: OwnedFd, memory: &GuestMemoryMmap) -> Result<Self, KvmError> {
        let kvm = open(kvm)?;
        let vm = kvm.create_vm().map_err(step("create a VM"))?;
        set_memory(&vm, memory)?;
        vm.set_identity_map_address(memory::IDENTITY_MAP).map_err(step("place its identity map"))?;
        vm.set_tss_address(memory::KVM_TSS as usize).map_err(step("place its task state segment"))?;
        // Neither is essential: an old KVM polls a little on halts, and shows performance counters.
        let disable_pmu = [u64::from(KVM_PMU_CAP_DISABLE), 0, 0, 0];
        for (cap, args) in [(KVM_CAP_HALT_POLL, [0; 4]), (KVM_CAP_PMU_CAPABILITY, disable_pmu)] {
            let _ = vm.enable_cap(&kvm_enable_cap { cap, args, ..Default::default() });
        }
        vm.create_irq_chip().map_err(step("create the interrupt controllers"))?;
        Ok(Self { kvm, vm })
    }

    /// Binds a transport's kicks, and its interrupt unless another transport of the same line has
    /// bound it.
    pub(crate) fn attach(&self, transport: &Transport, line_is_bound: bool) -> Result<(), KvmError> {
        let slot = transport.slot();
        let notify = IoEventAddress::Mmio(slot.address + QUEUE_NOTIFY);
        for (queue, kick) in (0_u32..).zip(transport.kicks()) {
            self.vm.register_ioevent(kick, &notify, queue).map_err(step("bind a queue's kick to an eventfd"))?;
        }
        if line_is_bound {
            return Ok(());
        }
        self.vm
            .register_irqfd(transport.interrupt().irqfd(), slot.irq)
            .map_err(step("bind a device's interrupt to an eventfd"))
    }

    /// Binds the serial port's interrupt.
    pub(crate) fn attach_serial(&self, serial: &SerialPort) -> Result<(), KvmError> {
        self.vm.register_irqfd(serial.irqfd(), serial::IRQ).map_err(step("bind the serial port's interrupt"))
    }

    /// What makes its vCPUs, of which there will be at most `most`.
    pub(crate) fn maker(self, most: u8, memory: GuestMemoryMmap) -> Result<Maker, KvmError> {
        Maker::new(self, most, memory)
    }
}

/// Checks that `fd` is a KVM that can do what is needed.
fn open(fd: OwnedFd) -> Result<Kvm, KvmError> {
    #![allow(unsafe_code)] // kvm-ioctls takes descriptors only raw
    // SAFETY: the descriptor is open and owned; its ownership goes to `Kvm`.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(KvmError::NotKvm(version));
    }
    for (cap, name) in [
        (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
        (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Lacks(name));
        }
    }
    Ok(kvm)
}

fn set_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    #![allow(unsafe_code)] // the VM maps this process's memory
    for (slot, region) in (0_u32..).zip(memory.iter()) {
        let host = memory.get_host_address(region.start_addr()).map_err(|_| KvmError::Lacks("mapped memory"))?;
        let region = kvm_bindings::kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the range is a whole region of `memory`. It stays mapped as long as a vCPU may run: every
        // vCPU thread holds a clone of `memory` (see `Vcpu`). Regions do not overlap.
        unsafe { vm.set_user_memory_region(region) }.map_err(step("map the guest's memory"))?;
    }
    Ok(())
}

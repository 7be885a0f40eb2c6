//! What of a VM's state belongs to no vCPU: interrupt controllers and the clock.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::{KvmError, step};

/// Both halves of the PIC, and the I/O APIC.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// State of a VM, vCPUs and devices apart.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct MachineState {
    chips: Vec<kvm_irqchip>,
    /// Nanoseconds of KVM's clock, from which the guest's time since its boot comes.
    clock: u64,
}

impl MachineState {
    /// Reads it; no vCPU runs.
    pub(super) fn save(vm: &VmFd) -> Result<Self, KvmError> {
        let read = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(step("read an interrupt controller"))?;
            Ok(chip)
        };
        let chips = CHIPS.into_iter().map(read).collect::<Result<_, _>>()?;
        let clock = vm.get_clock().map_err(step("read the VM's clock"))?.clock;
        Ok(Self { chips, clock })
    }

    /// Puts it into a VM whose vCPUs are restored. For the guest no time has passed.
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), KvmError> {
        if !self.chips.iter().map(|chip| chip.chip_id).eq(CHIPS) {
            return Err(KvmError::Lacks("the interrupt controllers of the saved state"));
        }
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(step("set an interrupt controller"))?;
        }
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(step("set the VM's clock"))
    }
}

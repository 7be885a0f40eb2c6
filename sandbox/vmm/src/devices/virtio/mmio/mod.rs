//! virtio over MMIO, version 2 (virtio 1.3 §4.2): a page of registers and one interrupt line per device.
//!
//! The registers are one serializable [`TransportState`]. When the driver says DRIVER_OK, they are checked and
//! *copied* into queues that the device owns; whatever is written to the registers afterwards reaches nothing
//! but a reset (docs: threat "queue registers changed after activation").

mod state;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use state::TransportState;
pub(crate) use transport::Transport;

use crate::memory::{MMIO_DEVICE_SIZE, MMIO_START};

/// First interrupt line of a virtio device; up to here they belong to the legacy PC.
const FIRST_IRQ: u32 = 5;
/// Last pin of the I/O APIC.
const LAST_IRQ: u32 = 23;

/// Place of one device: where its registers are, and its interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Guest physical address.
    pub(crate) address: u64,
    /// Pin of the I/O APIC.
    pub(crate) irq: u32,
}

impl Slot {
    /// The `index`th slot; `None` when there is no interrupt line left for it.
    pub(crate) fn new(index: u32) -> Option<Self> {
        let irq = FIRST_IRQ.checked_add(index).filter(|irq| *irq <= LAST_IRQ)?;
        Some(Self { address: address(index), irq })
    }

    /// The `number`th slot behind those of `devices` devices, which have a line each. Behind them
    /// lines may be shared: there are fewer than slots.
    pub(crate) fn spare(devices: u32, number: u32) -> Option<Self> {
        let lines = (LAST_IRQ + 1 - FIRST_IRQ).checked_sub(devices).filter(|left| *left > 0)?;
        Some(Self { address: address(devices.checked_add(number)?), irq: FIRST_IRQ + devices + number % lines })
    }
}

fn address(index: u32) -> u64 {
    MMIO_START + u64::from(index) * MMIO_DEVICE_SIZE
}

/// Register offsets (virtio 1.3 table 4.1).
mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const VENDOR_ID: u64 = 0x00c;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(super) const SHM_FIRST: u64 = 0x0b0;
    pub(super) const SHM_LAST: u64 = 0x0bc;
    pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Offset of QueueNotify, which an ioeventfd watches.
pub(crate) const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

/// Bits of the status register (virtio 1.3 §2.1).
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

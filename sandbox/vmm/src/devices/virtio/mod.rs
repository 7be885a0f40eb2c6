//! The contract between a virtio device and its transport (virtio 1.3 §2).
//!
//! A device knows its queues and its configuration space, never its transport. It lives in an
//! `Arc<Mutex<_>>`: register accesses come on vCPU threads, events on the main thread, so both hold
//! the lock only for as long as one of them takes.

pub(crate) mod balloon;
pub(crate) mod blk;
mod buffers;
pub(crate) mod fs;
mod line;
pub(crate) mod mem;
pub(crate) mod mmio;
pub(crate) mod net;
pub(crate) mod rng;
pub(crate) mod saved;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "the fuzz targets use a part of it"))]
pub(crate) mod test_guest;
mod transfer;
pub(crate) mod vsock;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use buffers::{Buffers, Slices};
pub(crate) use line::{BUDGET, INTERRUPT_AFTER, QueueLine};
use saved::{DeviceState, RestoreError, SaveError};
pub(crate) use transfer::{Direction, transfer};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::counters::INTERRUPTS;

/// Feature bit that every device must offer (virtio 1.3 §6).
pub(crate) const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// Feature bit of `avail_event` and `used_event`; the transport sets it in the queues that it hands over.
pub(crate) const VIRTIO_F_EVENT_IDX: u64 = 1 << 29;

/// Feature bit of descriptor tables outside the queue (virtio 1.3 §2.7.5.3).
pub(crate) const VIRTIO_F_INDIRECT_DESC: u64 = 1 << 28;

/// Bit of the interrupt status register: a queue has new used buffers.
pub(crate) const INTERRUPT_USED_QUEUE: u32 = 1;
/// Bit of the interrupt status register: the configuration space changed.
pub(crate) const INTERRUPT_CONFIG_CHANGED: u32 = 2;

/// A device as the transport sees it.
pub(crate) trait VirtioDevice: Send {
    /// The device id of virtio 1.3 §5.
    fn device_type(&self) -> u32;
    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// What is offered, [`VIRTIO_F_VERSION_1`] included.
    fn features(&self) -> u64;
    /// Fills `data` from the configuration space; beyond its end leave `data` as it is (zero).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Whether the configuration space never changes once the driver knows it: then an interrupt
    /// can only be about the queues, and the vendor says so to the guest's kernel, which reads and
    /// acknowledges no status (`guest/kernel/interrupts.patch`).
    fn keeps_configuration(&self) -> bool {
        false
    }
    /// The driver writes the configuration space; ignored unless the device has writable fields.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts to serve the queues: once, at DRIVER_OK. Every queue is there, was found valid and is ready.
    fn activate(&mut self, active: Activation) -> Result<(), ActivateError>;
    /// Stops using the queues and guest memory before it returns. May be activated again afterwards.
    fn reset(&mut self);
    /// As [`Self::reset`], but false instead of a wait, which comes to an end by itself; call it
    /// again.
    fn reset_now(&mut self) -> bool {
        self.reset();
        true
    }
    /// Stops using the queues and guest memory as [`Self::reset`] does, but forgets nothing, and
    /// gives back what [`Self::activate`] got, by which it goes on; nothing if it does not serve.
    /// Waits for requests that were begun.
    fn pause(&mut self) -> Option<Activation>;
    /// What is to be kept of the device, which is paused or does not serve.
    fn save(&self) -> Result<DeviceState, SaveError>;
    /// Makes the device, which never served, what [`Self::save`] told. It serves when it is
    /// activated.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// What a device gets at DRIVER_OK.
pub(crate) struct Activation {
    /// The guest's memory.
    pub(crate) memory: GuestMemoryMmap,
    /// What the driver accepted, a subset of [`VirtioDevice::features`].
    pub(crate) features: u64,
    /// One per entry of [`VirtioDevice::queue_sizes`], in order.
    pub(crate) queues: Vec<QueueLine>,
    /// To interrupt the guest with.
    pub(crate) interrupt: Interrupt,
}

/// Why a device could not start; the transport then sets DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
#[error("cannot activate virtio device {device}: {step}")]
pub(crate) struct ActivateError {
    /// Name of the device.
    pub(crate) device: &'static str,
    /// What failed.
    pub(crate) step: &'static str,
    /// Why.
    #[source]
    pub(crate) source: std::io::Error,
}

/// A device's interrupt line. Cheap to clone; usable from any thread.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    inner: Arc<InterruptInner>,
}

#[derive(Debug)]
struct InterruptInner {
    status: AtomicU32,
    /// How often the configuration space changed.
    generation: AtomicU32,
    irqfd: EventFd,
}

impl Interrupt {
    /// An interrupt that is raised by `irqfd`.
    pub(crate) fn new(irqfd: EventFd) -> Self {
        Self { inner: Arc::new(InterruptInner { status: AtomicU32::new(0), generation: AtomicU32::new(0), irqfd }) }
    }

    /// Says that a queue has new used buffers; [`QueueLine::interrupt_if_wanted`] asks the driver first.
    pub(crate) fn used_queue(&self) {
        self.raise(INTERRUPT_USED_QUEUE);
    }

    /// Says that the configuration space changed. Call it while no one else can read the space.
    pub(crate) fn config_changed(&self) {
        self.inner.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(INTERRUPT_CONFIG_CHANGED);
    }

    fn raise(&self, bits: u32) {
        self.inner.status.fetch_or(bits, Ordering::SeqCst);
        INTERRUPTS.add();
        if let Err(error) = self.inner.irqfd.write(1) {
            complain!("cannot raise an interrupt: {error}");
        }
    }

    /// The register by which a driver sees that it has read parts of two versions of the configuration space.
    pub(crate) fn generation(&self) -> u32 {
        self.inner.generation.load(Ordering::SeqCst)
    }

    /// The interrupt status register.
    pub(crate) fn status(&self) -> u32 {
        self.inner.status.load(Ordering::SeqCst)
    }

    /// The driver acknowledges `bits`.
    pub(crate) fn acknowledge(&self, bits: u32) {
        self.inner.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Makes both registers what they were, before anything is raised.
    pub(crate) fn restore(&self, status: u32, generation: u32) {
        self.inner.status.store(status, Ordering::SeqCst);
        self.inner.generation.store(generation, Ordering::SeqCst);
    }

    /// Raises the line again if the driver has not acknowledged everything: an interrupt may have
    /// been on its way when the VM was saved.
    pub(crate) fn repeat(&self) {
        if self.status() != 0 {
            self.raise(0);
        }
    }

    /// The eventfd behind it, to be bound to an interrupt line of KVM.
    pub(crate) fn irqfd(&self) -> &EventFd {
        &self.inner.irqfd
    }
}

/// Fills `data` from `space` at `offset`; what is beyond its end stays as it is.
pub(crate) fn read_from(space: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| space.get(offset..)).unwrap_or_default();
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}

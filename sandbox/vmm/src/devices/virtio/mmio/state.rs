//! The registers that a driver writes.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::status;
use crate::devices::virtio::{VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1};

/// Version of [`TransportState`] and what is in it.
pub(crate) const STATE_VERSION: u32 = 1;

/// All registers of one transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TransportState {
    /// [`STATE_VERSION`].
    pub(super) version: u32,
    /// The status register.
    pub(super) status: u32,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<QueueRegisters>,
}

/// Registers of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueRegisters {
    /// A queue of its own with what the registers say, if that is a valid queue inside `memory`.
    fn queue(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Result<Queue, String> {
        if !self.ready {
            return Err("is not ready".into());
        }
        let size = u16::try_from(self.size).map_err(|_| format!("has the size {}", self.size))?;
        let make = || {
            let mut queue = Queue::new(self.max_size)?;
            queue.try_set_size(size)?;
            queue.try_set_desc_table_address(GuestAddress(self.descriptors))?;
            queue.try_set_avail_ring_address(GuestAddress(self.driver))?;
            queue.try_set_used_ring_address(GuestAddress(self.device))?;
            queue.set_event_idx(event_idx);
            queue.set_ready(true);
            Ok(queue)
        };
        let queue: Queue = make().map_err(|error: virtio_queue::Error| format!("is invalid: {error}"))?;
        if queue.is_valid(memory) && self.inside(memory) { Ok(queue) } else { Err("lies outside guest memory".into()) }
    }

    /// Whether all three parts are in guest memory from their first to their last byte (virtio 1.3 §2.7).
    fn inside(&self, memory: &GuestMemoryMmap) -> bool {
        let size = self.size as usize;
        [(self.descriptors, 16 * size), (self.driver, 6 + 2 * size), (self.device, 6 + 8 * size)]
            .into_iter()
            .all(|(address, length)| memory.check_range(GuestAddress(address), length))
    }
}

impl TransportState {
    /// The registers after a reset.
    pub(super) fn new(queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes.iter().map(|max_size| QueueRegisters { max_size: *max_size, ..Default::default() });
        Self {
            version: STATE_VERSION,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues: queues.collect(),
        }
    }

    /// Whether these can be the registers of a device with queues of `sizes` that offers
    /// `features`.
    pub(super) fn check(&self, sizes: &[u16], features: u64) -> Result<(), String> {
        if self.version != STATE_VERSION {
            return Err(format!("their version is {}, and this monitor knows {STATE_VERSION}", self.version));
        }
        if !self.queues.iter().map(|queue| queue.max_size).eq(sizes.iter().copied()) {
            return Err("the device has other queues".into());
        }
        if self.status & status::FEATURES_OK != 0 && !self.features_acceptable(features) {
            return Err(format!(
                "the driver accepted the features {:#x}, of which the device has {features:#x}",
                self.driver_features
            ));
        }
        Ok(())
    }

    /// Whether a device with these registers serves its queues.
    pub(super) fn serves(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// Back to what [`Self::new`] made.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self::new(&sizes);
    }

    /// The selected queue; `None` when there is no such queue.
    pub(super) fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.queue_sel as usize)
    }

    /// The selected queue, when its registers may be written now: after FEATURES_OK, before DRIVER_OK.
    pub(super) fn writable_queue(&mut self) -> Option<&mut QueueRegisters> {
        if !self.configures_queues() {
            return None;
        }
        self.queues.get_mut(self.queue_sel as usize)
    }

    fn configures_queues(&self) -> bool {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.status & all == all && self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED) == 0
    }

    /// Whether the driver may write features now.
    pub(super) fn negotiates(&self) -> bool {
        self.status & status::DRIVER != 0 && self.status & (status::FEATURES_OK | status::FAILED) == 0
    }

    /// Whether the driver's features are ones that `offered` allows.
    pub(super) fn features_acceptable(&self, offered: u64) -> bool {
        self.driver_features & !offered == 0 && self.driver_features & VIRTIO_F_VERSION_1 != 0
    }

    /// All queues, made from the registers.
    pub(super) fn build_queues(&self, memory: &GuestMemoryMmap) -> Result<Vec<Queue>, String> {
        let event_idx = self.driver_features & VIRTIO_F_EVENT_IDX != 0;
        let numbered = self.queues.iter().enumerate();
        numbered
            .map(|(number, queue)| queue.queue(memory, event_idx).map_err(|why| format!("queue {number} {why}")))
            .collect()
    }
}

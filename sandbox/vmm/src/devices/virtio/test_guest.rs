//! A driver for tests: rings in guest memory, written by hand so that they may be wrong.

use std::sync::atomic::Ordering;

#[cfg(test)]
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, Interrupt, QueueLine};

/// Bytes of guest memory.
pub const MEMORY: u64 = 4 << 20;
/// Where buffers may be: above the rings of three queues.
pub const DATA: u64 = 0x10_0000;
/// Device may write the buffer.
pub(crate) const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;

/// One descriptor as a driver writes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A guest with `sizes.len()` queues.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    sizes: Vec<u16>,
    next_free: Vec<u16>,
    available: Vec<u16>,
    irq: EventFd,
    kicks: Vec<EventFd>,
}

impl Guest {
    pub(crate) fn new(sizes: &[u16]) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap(),
            sizes: sizes.to_vec(),
            next_free: vec![0; sizes.len()],
            available: vec![0; sizes.len()],
            irq: eventfd(),
            kicks: sizes.iter().map(|_| eventfd()).collect(),
        }
    }

    fn descriptors(queue: usize) -> u64 {
        queue as u64 * 0x4000
    }

    fn avail(queue: usize) -> u64 {
        Self::descriptors(queue) + 0x1000
    }

    fn used(queue: usize) -> u64 {
        Self::descriptors(queue) + 0x2000
    }

    /// What a device gets when this guest starts it.
    pub(crate) fn activation(&self, features: u64) -> Activation {
        let line = |queue: usize| {
            let mut made = Queue::new(self.sizes[queue]).unwrap();
            made.set_size(self.sizes[queue]);
            made.try_set_desc_table_address(GuestAddress(Self::descriptors(queue))).unwrap();
            made.try_set_avail_ring_address(GuestAddress(Self::avail(queue))).unwrap();
            made.try_set_used_ring_address(GuestAddress(Self::used(queue))).unwrap();
            made.set_event_idx(features & super::VIRTIO_F_EVENT_IDX != 0);
            made.set_ready(true);
            QueueLine::new(made, self.kicks[queue].try_clone().unwrap())
        };
        Activation {
            memory: self.memory.clone(),
            features,
            queues: (0..self.sizes.len()).map(line).collect(),
            interrupt: Interrupt::new(self.irq.try_clone().unwrap()),
        }
    }

    /// Writes `descriptor` to slot `index` of the table.
    pub(crate) fn put(&self, queue: usize, index: u16, descriptor: Descriptor) {
        let at = Self::descriptors(queue) + 16 * u64::from(index);
        self.memory.write_obj(descriptor.address, GuestAddress(at)).unwrap();
        self.memory.write_obj(descriptor.length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(descriptor.flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(descriptor.next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes `head` available.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let slot = u64::from(self.available[queue] % self.sizes[queue]);
        self.memory.write_obj(head, GuestAddress(Self::avail(queue) + 4 + 2 * slot)).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.set_avail_index(queue, self.available[queue]);
    }

    /// Writes the index of the available ring.
    pub(crate) fn set_avail_index(&self, queue: usize, index: u16) {
        self.memory.store(index, GuestAddress(Self::avail(queue) + 2), Ordering::Release).unwrap();
    }

    /// Offers a proper chain of `(address, length, WRITE or 0)`; answers its head.
    pub(crate) fn chain(&mut self, queue: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_free[queue];
        for (number, (address, length, flags)) in parts.iter().enumerate() {
            let index = self.next_free[queue];
            self.next_free[queue] = (index + 1) % self.sizes[queue];
            let more = if number + 1 < parts.len() { NEXT } else { 0 };
            let next = self.next_free[queue];
            self.put(queue, index, Descriptor { address: *address, length: *length, flags: flags | more, next });
        }
        self.offer(queue, head);
        head
    }

    /// Kicks `queue`.
    pub(crate) fn kick(&self, queue: usize) {
        self.kicks[queue].write(1).unwrap();
    }

    /// Kicks `queue` as Linux does: if the last chain is the one that the device's `avail_event` names.
    pub(crate) fn kick_if_wanted(&self, queue: usize) {
        std::sync::atomic::fence(Ordering::SeqCst);
        let at = GuestAddress(Self::used(queue) + 4 + 8 * u64::from(self.sizes[queue]));
        let event: u16 = self.memory.load(at, Ordering::SeqCst).unwrap();
        if self.available[queue].wrapping_sub(event).wrapping_sub(1) < 1 {
            self.kick(queue);
        }
    }

    /// Says which used chain the driver wants an interrupt for.
    pub(crate) fn set_used_event(&self, queue: usize, index: u16) {
        let at = Self::avail(queue) + 4 + 2 * u64::from(self.sizes[queue]);
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// Where the device writes how many chains of `queue` it gave back.
    pub(crate) fn used_index_address(&self, queue: usize) -> GuestAddress {
        GuestAddress(Self::used(queue) + 2)
    }

    /// How many chains of `queue` the device gave back.
    pub(crate) fn used_count(&self, queue: usize) -> u16 {
        self.memory.load(self.used_index_address(queue), Ordering::Acquire).unwrap()
    }

    /// Waits until the device has given back `count` chains of `queue` in all; for devices without `VIRTIO_F_EVENT_IDX`.
    pub(crate) fn wait_used(&self, queue: usize, count: u16) {
        while self.used_count(queue) != count {
            let irq = crate::event_loop::event_fd(&self.irq);
            let mut ready = [PollFd::new(&irq, PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert!(poll(&mut ready, Some(&limit)).unwrap() > 0, "the device does not answer");
            self.interrupts();
        }
    }

    /// Head and length of the `number`th chain that the device gave back.
    pub(crate) fn used_entry(&self, queue: usize, number: u16) -> (u32, u32) {
        let at = Self::used(queue) + 4 + 8 * u64::from(number % self.sizes[queue]);
        (self.memory.read_obj(GuestAddress(at)).unwrap(), self.memory.read_obj(GuestAddress(at + 4)).unwrap())
    }

    /// How many interrupts came since the last call.
    pub(crate) fn interrupts(&self) -> u64 {
        self.irq.read().unwrap_or(0)
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

#[cfg(test)]
/// Any descriptor: often one that is nearly right.
pub(crate) fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![6 => DATA..MEMORY, 1 => (MEMORY - 64)..(MEMORY + 64), 1 => any::<u64>(), 1 => 0..DATA];
    let length = prop_oneof![4 => 0..64_u32, 4 => Just(512_u32), 2 => 0..70_000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4_u16, 1 => Just(INDIRECT), 1 => any::<u16>()];
    (address, length, flags, 0..20_u16).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

/// What a hostile driver does to one queue before it kicks.
#[derive(Debug, Clone)]
pub(crate) struct Attack {
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) heads: Vec<u16>,
    pub(crate) index: Option<u16>,
    /// Bytes at [`DATA`], where many descriptors point near.
    pub(crate) data: Vec<u8>,
}

impl Attack {
    /// Carries it out on `queue`.
    pub(crate) fn strike(&self, guest: &mut Guest, queue: usize) {
        guest.write(DATA, &self.data);
        for (index, descriptor) in (0..).zip(&self.descriptors) {
            guest.put(queue, index, *descriptor);
        }
        self.heads.iter().for_each(|head| guest.offer(queue, *head));
        if let Some(index) = self.index {
            guest.set_avail_index(queue, index);
        }
        guest.kick(queue);
    }
}

#[cfg(test)]
/// Any attack.
pub(crate) fn any_attack() -> impl Strategy<Value = Attack> {
    let heads = prop::collection::vec(prop_oneof![8 => 0..8_u16, 1 => any::<u16>()], 0..10);
    let index = prop::option::weighted(0.1, any::<u16>());
    let data = prop::collection::vec(prop_oneof![0..16_u8, any::<u8>()], 0..256);
    (prop::collection::vec(any_descriptor(), 1..8), heads, index, data)
        .prop_map(|(descriptors, heads, index, data)| Attack { descriptors, heads, index, data })
}

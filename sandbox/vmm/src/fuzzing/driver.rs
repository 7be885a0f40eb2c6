//! A driver that does what it is told to, right or wrong.

use vm_memory::{Bytes, GuestAddress};

use crate::devices::virtio::test_guest::{Descriptor, Guest, WRITE};

/// What a driver does to one queue.
#[derive(Debug, Clone)]
pub enum Step {
    /// Writes a slot of the table of descriptors.
    Descriptor {
        /// Which slot; those beyond the table are its first ones.
        slot: u16,
        /// Where the buffer is.
        address: u64,
        /// How long it is.
        length: u32,
        /// NEXT, WRITE, INDIRECT or anything.
        flags: u16,
        /// The next slot of the chain.
        next: u16,
    },
    /// Writes guest memory; what does not fit is left out.
    Memory(u64, Vec<u8>),
    /// Offers a chain without mistakes: address, length, and whether the device may write.
    Chain(Vec<(u64, u32, bool)>),
    /// Makes a slot available as the head of a chain.
    Offer(u16),
    /// Writes the index of the available ring.
    AvailableIndex(u16),
    /// Says which used chain it wants an interrupt for.
    UsedEvent(u16),
    /// Kicks the queue; the device serves it.
    Serve,
    /// The node's side of the device gets this: a frame, or bytes of a socket.
    Input(Vec<u8>),
    /// The device is paused and goes on, as when its VM is saved.
    Pause,
    /// The driver resets the device and starts it again, with empty queues.
    Restart,
}

/// Carries out what needs the guest alone; answers whether it did.
pub(crate) fn carry_out(guest: &mut Guest, queue: usize, size: u16, step: &Step) -> bool {
    match step {
        Step::Descriptor { slot, address, length, flags, next } => {
            let descriptor = Descriptor { address: *address, length: *length, flags: *flags, next: *next };
            guest.put(queue, slot % size, descriptor);
        }
        Step::Memory(address, bytes) => {
            // Part of it, or nothing, where it ends or lies outside.
            let _ = guest.memory.write(bytes, GuestAddress(*address));
        }
        Step::Chain(parts) => {
            let flag = |writable: bool| if writable { WRITE } else { 0 };
            let parts = parts.iter().map(|(address, length, writable)| (*address, *length, flag(*writable)));
            let parts: Vec<_> = parts.collect();
            let parts = &parts[..parts.len().min(usize::from(size))];
            if !parts.is_empty() {
                guest.chain(queue, parts);
            }
        }
        Step::Offer(head) => guest.offer(queue, *head),
        Step::AvailableIndex(index) => guest.set_avail_index(queue, *index),
        Step::UsedEvent(index) => guest.set_used_event(queue, *index),
        Step::Serve | Step::Input(_) | Step::Pause | Step::Restart => return false,
    }
    true
}

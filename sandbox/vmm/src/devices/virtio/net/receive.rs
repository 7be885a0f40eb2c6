//! A frame on its way into the guest's buffers.

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::{HEADER, NUM_BUFFERS};
use crate::devices::virtio::{Buffers, QueueLine};

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It is in the guest, or was dropped since no buffers of this guest can ever take it.
    Done,
    /// There are not enough buffers now; none was used.
    NoBuffers,
}

/// Puts `frame` (header first) into one chain, or with `merge` into as many as it needs. The driver sees all of them at
/// once, or it would take the later ones for frames of their own. The caller interrupts it.
pub(super) fn deliver(line: &mut QueueLine, memory: &GuestMemoryMmap, merge: bool, frame: &mut [u8]) -> Delivery {
    let before = line.queue.next_avail();
    let mut chains: Vec<(u16, Buffers<'_>)> = Vec::new();
    let mut room = 0;
    while room < frame.len() {
        let Some(chain) = line.pop_or_ask(memory) else {
            line.queue.set_next_avail(before);
            return Delivery::NoBuffers;
        };
        let head = chain.head_index();
        match Buffers::new(memory, chain) {
            // The first must take the header, and each must take something.
            Some(buffers) if buffers.writable.len() >= if chains.is_empty() { HEADER } else { 1 } => {
                room += buffers.writable.len();
                chains.push((head, buffers));
            }
            // A broken buffer: give all back that was taken, drop the frame.
            _ => {
                chains.iter().for_each(|(head, _)| line.put_used(memory, *head, 0));
                line.put_used(memory, head, 0);
                line.publish(memory);
                return Delivery::Done;
            }
        }
        if !merge && room < frame.len() {
            line.put_used(memory, head, 0);
            line.publish(memory);
            return Delivery::Done;
        }
    }
    let count = if merge { chains.len() as u16 } else { 1 };
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER) {
        field.copy_from_slice(&count.to_le_bytes());
    }
    let mut rest = &frame[..];
    for (head, buffers) in chains {
        let copied = buffers.writable.copy_from(rest);
        rest = &rest[copied..];
        line.put_used(memory, head, copied as u32);
    }
    line.publish(memory);
    Delivery::Done
}

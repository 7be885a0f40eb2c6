//! One queue as a device serves it: chains are taken, used elements are given back, both sides wake each other.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
mod turn;

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{Buffers, Interrupt};
use crate::counters::QUEUE_KICKS;
use turn::{Next, Turn};

/// Chains that one turn serves at most.
pub(crate) const BUDGET: usize = 512;
/// How long a used chain may wait for the interrupt that tells of it while the device goes on with the next ones.
pub(crate) const INTERRUPT_AFTER: Duration = Duration::from_micros(100);

/// One queue and the eventfd by which the guest kicks it (non-blocking, bound by ioeventfd).
pub(crate) struct QueueLine {
    /// The queue; nobody else has it while the device is active.
    pub(crate) queue: Queue,
    /// Readable when the guest kicked.
    pub(crate) kick: EventFd,
    /// Used elements that were written and that the ring's index does not tell of yet.
    unpublished: u16,
    /// The used ring's index when the driver was last asked whether it wants an interrupt.
    asked_at: Wrapping<u16>,
}

impl QueueLine {
    /// A queue that the driver has set up.
    pub(crate) fn new(queue: Queue, kick: EventFd) -> Self {
        let asked_at = Wrapping(queue.next_used());
        Self { queue, kick, unpublished: 0, asked_at }
    }

    /// Takes the kick off the eventfd, and counts it. Call it before the queue is looked at.
    pub(crate) fn take_kick(&self) {
        if self.kick.read().is_ok() {
            QUEUE_KICKS.add();
        }
    }

    /// Counts a kick that stays on the eventfd, for those who wait for it edge-triggered: each kick
    /// wakes them whether the last one was taken or not.
    pub(crate) fn count_kick(&self) {
        QUEUE_KICKS.add();
    }

    /// The next chain that the driver made available. A broken ring has none.
    pub(crate) fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        self.queue.iter(memory).ok()?.next()
    }

    /// The next chain. When there is none, the driver is asked to kick for the one that follows the last (so ask
    /// before chains are put back), and what it added just before is taken.
    pub(crate) fn pop_or_ask<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Option<DescriptorChain<&'m GuestMemoryMmap>> {
        if let Some(chain) = self.pop(memory) {
            return Some(chain);
        }
        if self.queue.enable_notification(memory).ok()? { self.pop(memory) } else { None }
    }

    /// Writes a used element: the chain `head`, with `length` bytes written to it. The driver does not see it before
    /// [`Self::publish`].
    pub(crate) fn put_used(&mut self, memory: &GuestMemoryMmap, head: u16, length: u32) {
        let size = self.queue.size();
        if head >= size || self.unpublished >= size {
            return; // no chain of this queue
        }
        let slot = self.queue.next_used().wrapping_add(self.unpublished) % size;
        let address = self.queue.used_ring() + 4 + 8 * u64::from(slot);
        // `struct virtq_used_elem`: the head, then the length, 32 bits each.
        let element = u64::from(head) | u64::from(length) << 32;
        if memory.write_obj(element.to_le(), GuestAddress(address)).is_ok() {
            self.unpublished += 1;
        }
    }

    /// Shows the driver all elements that were written since the last time, at once. The buffers of one packet must
    /// become visible together (virtio 1.3 section 5.1.6.4).
    pub(crate) fn publish(&mut self, memory: &GuestMemoryMmap) {
        let index = self.queue.next_used().wrapping_add(std::mem::take(&mut self.unpublished));
        self.queue.set_next_used(index);
        // The ring was found to lie in guest memory before the device started, so this cannot fail.
        let _ = memory.store(index.to_le(), GuestAddress(self.queue.used_ring() + 2), Ordering::Release);
    }

    /// Interrupts the driver if elements were published since the last call and it wants to hear of one of them.
    pub(crate) fn interrupt_if_wanted(&mut self, memory: &GuestMemoryMmap, interrupt: &Interrupt) {
        let now = Wrapping(self.queue.next_used());
        let before = std::mem::replace(&mut self.asked_at, now);
        if now == before {
            return;
        }
        // The index must be visible before the driver's wish is read: the driver does the opposite.
        fence(Ordering::SeqCst);
        if self.used_event(memory).is_none_or(|event| now - event - Wrapping(1) < now - before) {
            interrupt.used_queue();
        }
    }

    /// The used index that the driver waits for; `None` if it wants an interrupt for each.
    fn used_event(&self, memory: &GuestMemoryMmap) -> Option<Wrapping<u16>> {
        if !self.queue.event_idx_enabled() {
            return None;
        }
        let address = self.queue.avail_ring() + 4 + 2 * u64::from(self.queue.size());
        let event: u16 = memory.load(GuestAddress(address), Ordering::Relaxed).ok()?;
        Some(Wrapping(u16::from_le(event)))
    }

    /// Gives one chain back with `length` bytes written to it, and interrupts the driver if it wants that.
    pub(crate) fn complete(&mut self, memory: &GuestMemoryMmap, interrupt: &Interrupt, head: u16, length: u32) {
        self.put_used(memory, head, length);
        self.publish(memory);
        self.interrupt_if_wanted(memory, interrupt);
    }

    /// As [`Self::interrupt_if_wanted`], unless that was done less than `every` ago.
    pub(crate) fn interrupt_every(
        &mut self,
        every: Duration,
        last: &mut Instant,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
    ) {
        if every.is_zero() || last.elapsed() >= every {
            self.interrupt_if_wanted(memory, interrupt);
            *last = Instant::now();
        }
    }

    /// For devices that never wait: lets `each` serve every available chain, and gives a malformed one back unserved. The
    /// driver sees each chain as soon as it is served, and gets one interrupt for all of them, or one every
    /// [`INTERRUPT_AFTER`].
    pub(crate) fn serve<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        interrupt: &Interrupt,
        mut each: impl FnMut(Buffers<'m>) -> u32,
    ) {
        let each = |chain| Buffers::new(memory, chain).map_or(0, &mut each);
        self.serve_at_most(BUDGET, INTERRUPT_AFTER, memory, interrupt, each);
    }

    /// As [`Self::serve`], for chains that take long each: after `budget` of them the turn ends and the queue kicks itself.
    pub(crate) fn serve_few<'m>(
        &mut self,
        budget: usize,
        memory: &'m GuestMemoryMmap,
        interrupt: &Interrupt,
        mut each: impl FnMut(Buffers<'m>) -> u32,
    ) {
        let each = |chain| Buffers::new(memory, chain).map_or(0, &mut each);
        self.serve_at_most(budget, INTERRUPT_AFTER, memory, interrupt, each);
    }

    /// For devices that wait for a disk: lets `each` serve every available chain, unchecked, and interrupts after each
    /// one, since the next may take long.
    pub(crate) fn serve_chains<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        interrupt: &Interrupt,
        each: impl FnMut(DescriptorChain<&'m GuestMemoryMmap>) -> u32,
    ) {
        self.serve_at_most(BUDGET, Duration::ZERO, memory, interrupt, each);
    }

    /// Serves what is available; `each` answers how many bytes it wrote to the chain. After `budget` chains the queue
    /// kicks itself and the turn ends, so that a guest that never stops cannot hold the thread.
    fn serve_at_most<'m>(
        &mut self,
        budget: usize,
        interrupt_every: Duration,
        memory: &'m GuestMemoryMmap,
        interrupt: &Interrupt,
        mut each: impl FnMut(DescriptorChain<&'m GuestMemoryMmap>) -> u32,
    ) {
        let mut turn = Turn::new(budget);
        let mut interrupted = Instant::now();
        let mut next = Next::LookAgain;
        while matches!(next, Next::Look | Next::LookAgain) {
            if next == Next::LookAgain && self.queue.disable_notification(memory).is_err() {
                return;
            }
            next = match self.pop(memory) {
                Some(chain) => {
                    let head = chain.head_index();
                    let length = each(chain);
                    self.put_used(memory, head, length);
                    self.publish(memory);
                    self.interrupt_every(interrupt_every, &mut interrupted, memory, interrupt);
                    turn.served()
                }
                None => turn.asked(self.queue.enable_notification(memory).unwrap_or(false)),
            };
        }
        self.interrupt_if_wanted(memory, interrupt);
        if next == Next::KickAgain {
            self.kick_again();
        }
    }

    /// The available index, up to which the driver has made chains available; nothing of a broken
    /// ring.
    pub(crate) fn available_index(&self, memory: &GuestMemoryMmap) -> Option<u16> {
        Some(self.queue.avail_idx(memory, Ordering::Acquire).ok()?.0)
    }

    /// Asks the driver to kick for the chain that it adds next, whatever it has added so far and
    /// the device has left there. Answers the available index before that chain.
    pub(crate) fn ask_for_new(&mut self, memory: &GuestMemoryMmap) -> Option<u16> {
        let (next, available) = (self.queue.next_avail(), self.available_index(memory)?);
        self.queue.set_next_avail(available);
        let asked = self.queue.enable_notification(memory);
        self.queue.set_next_avail(next);
        asked.ok().map(|_| available)
    }

    /// Makes the kick readable, as if the guest had kicked.
    pub(crate) fn kick_again(&self) {
        if let Err(error) = self.kick.write(1) {
            complain!("cannot kick a queue again: {error}");
        }
    }
}

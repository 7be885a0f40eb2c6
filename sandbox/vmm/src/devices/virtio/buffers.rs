//! A descriptor chain, checked whole: which bytes of guest memory the device may read, which it may write.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, VolatileSlice};

/// Descriptors of one chain at most; the devices' largest queue.
pub(crate) const MAX_DESCRIPTORS: usize = 256;

/// The parts of a chain; everything is inside guest memory.
#[derive(Debug)]
pub(crate) struct Buffers<'m> {
    /// What the driver filled.
    pub(crate) readable: Slices<'m>,
    /// What the device may fill.
    pub(crate) writable: Slices<'m>,
}

impl<'m> Buffers<'m> {
    /// Checks `chain`: all descriptors inside `memory`, the readable ones before the writable ones (virtio 1.3
    /// §2.7.4.2), at most [`MAX_DESCRIPTORS`]. `None` when it is malformed.
    pub(crate) fn new<M>(memory: &'m GuestMemoryMmap, chain: DescriptorChain<M>) -> Option<Self>
    where
        M: Deref<Target = GuestMemoryMmap>,
    {
        let mut buffers = Self { readable: Slices::default(), writable: Slices::default() };
        let mut count = 0;
        for descriptor in chain {
            count += 1;
            if count > MAX_DESCRIPTORS {
                return None;
            }
            if descriptor.len() == 0 {
                continue;
            }
            let slice = memory.get_slice(descriptor.addr(), descriptor.len() as usize).ok()?;
            if descriptor.is_write_only() {
                buffers.writable.0.push(slice);
            } else if buffers.writable.0.is_empty() {
                buffers.readable.0.push(slice);
            } else {
                return None;
            }
        }
        (count > 0).then_some(buffers)
    }
}

/// Pieces of guest memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Slices<'m>(Vec<VolatileSlice<'m>>);

impl<'m> From<&Self> for Slices<'m> {
    /// The same pieces.
    fn from(other: &Self) -> Self {
        Self(other.0.clone())
    }
}

impl<'m> Slices<'m> {
    /// Bytes in all pieces; at most 4 GiB, which a chain cannot exceed.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// The pieces.
    pub(crate) fn pieces(&self) -> &[VolatileSlice<'m>] {
        &self.0
    }

    /// Takes the first `count` bytes away; `None`, and nothing changed, when there are fewer.
    pub(crate) fn take_front(&mut self, count: usize) -> Option<Self> {
        if count > self.len() {
            return None;
        }
        let mut rest = count;
        let mut whole = 0;
        while whole < self.0.len() && self.0[whole].len() <= rest {
            rest -= self.0[whole].len();
            whole += 1;
        }
        let cut = match self.0.get(whole) {
            Some(piece) if rest > 0 => Some(piece.split_at(rest).ok()?),
            _ => None,
        };
        let mut front: Vec<_> = self.0.drain(..whole).collect();
        if let Some((head, tail)) = cut {
            front.push(head);
            self.0[0] = tail;
        }
        Some(Self(front))
    }

    /// Takes the last byte away.
    pub(crate) fn take_last_byte(&mut self) -> Option<Self> {
        let front = self.take_front(self.len().checked_sub(1)?)?;
        Some(std::mem::replace(self, front))
    }

    /// Copies guest memory to `buffer`; answers how many bytes, the smaller length of both.
    pub(crate) fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in &self.0 {
            done += piece.copy_to(&mut buffer[done..]);
        }
        done
    }

    /// Copies `buffer` to guest memory; answers how many bytes, the smaller length of both.
    pub(crate) fn copy_from(&self, buffer: &[u8]) -> usize {
        let mut done = 0;
        for piece in &self.0 {
            let count = piece.len().min(buffer.len() - done);
            piece.copy_from(&buffer[done..done + count]);
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    proptest! {
        #[test]
        fn taking_parts_away_keeps_every_byte(lengths in prop::collection::vec(1..20_usize, 0..6), count in 0..90_usize) {
            let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
            let all: Vec<u8> = (0..200).collect();
            memory.write_slice(&all, GuestAddress(0)).unwrap();
            let total: usize = lengths.iter().sum();
            let mut at = 0;
            let mut slices = Slices::default();
            for length in lengths {
                slices.0.push(memory.get_slice(GuestAddress(at), length).unwrap());
                at += length as u64;
            }
            let mut bytes = vec![0; 200];
            match slices.take_front(count) {
                None => prop_assert!(count > total),
                Some(front) => {
                    prop_assert_eq!((front.len(), slices.len()), (count, total - count));
                    prop_assert_eq!(front.copy_to(&mut bytes), count);
                    prop_assert_eq!(slices.copy_to(&mut bytes[count..]), total - count);
                    prop_assert_eq!(&bytes[..total], &all[..total]);
                }
            }
            let left = slices.len();
            match slices.take_last_byte() {
                None => prop_assert_eq!(left, 0),
                Some(last) => {
                    prop_assert_eq!((last.len(), slices.len()), (1, left - 1));
                    last.copy_from(&[255, 254]);
                    prop_assert_eq!(memory.read_obj::<u8>(GuestAddress(total as u64 - 1)).unwrap(), 255);
                }
            }
        }
    }
}

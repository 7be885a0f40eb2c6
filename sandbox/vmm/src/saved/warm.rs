#![allow(unsafe_code)] // madvise
//! Pages that a clone's guest is known to write to soon are made its own before it runs.
//!
//! Otherwise the guest stops at each of them: an exit to KVM, a fault of the monitor, and a copy. The
//! copies are made anyway; the other two are saved.

use std::io;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

const PAGE: u64 = 4096;

/// Copies the pages `written` of `ram`: the first one's number in the memory's file, and how many
/// there are. Answers where they are in the guest. They are a hint: what
/// is out of the RAM, and what the kernel does not copy, is left out.
pub(crate) fn copy(ram: &GuestMemoryMmap, written: &[(u32, u32)]) -> Vec<(GuestAddress, u64)> {
    let mut copied = Vec::new();
    for (address, length) in written.iter().filter_map(|(first, count)| place(ram, *first, *count)) {
        let Ok(slice) = ram.get_slice(address, length as usize) else { continue };
        let start = slice.ptr_guard_mut().as_ptr();
        // SAFETY: the range is in one mapping of the guest's memory, and the advice changes nothing
        // that can be read there.
        if unsafe { libc::madvise(start.cast(), slice.len(), libc::MADV_POPULATE_WRITE) } < 0 {
            complain!("cannot copy pages of a saved VM beforehand: {}", io::Error::last_os_error());
            break;
        }
        copied.push((address, length));
    }
    copied
}

/// Where pages of the memory's file are in the guest; nothing if they are in no one region.
fn place(ram: &GuestMemoryMmap, first: u32, count: u32) -> Option<(GuestAddress, u64)> {
    let (mut offset, length) = (u64::from(first) * PAGE, u64::from(count) * PAGE);
    for region in ram.iter() {
        if offset < region.len() {
            let fits = length > 0 && length <= region.len() - offset;
            return fits.then(|| (GuestAddress(region.start_addr().0 + offset), length));
        }
        offset -= region.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn pages_are_found_behind_the_hole_too_and_none_is_made_up() {
        let ranges = [(GuestAddress(0), 2 << 20), (GuestAddress(1 << 32), 1 << 20)];
        let ram = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        assert_eq!(place(&ram, 1, 2), Some((GuestAddress(4096), 8192)));
        assert_eq!(place(&ram, 512, 256), Some((GuestAddress(1 << 32), 1 << 20)));
        for (first, count) in [(511, 2), (512, 257), (768, 1), (0, 0), (u32::MAX, u32::MAX)] {
            assert_eq!(place(&ram, first, count), None, "{first} {count}");
        }
        ram.write_obj(7_u8, GuestAddress(4096)).unwrap();
        assert_eq!(
            copy(&ram, &[(1, 1), (9999, 1), (513, 1)]),
            [(GuestAddress(4096), 4096), (GuestAddress((1 << 32) + 4096), 4096)]
        );
        assert_eq!(ram.read_obj::<u8>(GuestAddress(4096)).unwrap(), 7);
    }
}

//! The guest's physical address space.
//!
//! ```text
//! 0           0x9fc00            1 MiB                      0xd000_0000      4 GiB
//! |  RAM      | MP table         | RAM: kernel ... initrd   | hole: virtio,  | RAM, what did
//! | (boot     | (reserved up to  |                          | IOAPIC, LAPIC, | not fit below
//! |  records) |  1 MiB)          |                          | KVM's own pages|
//! ```
//!
//! Behind the RAM, from the next GiB above 4 GiB on, is the region of virtio-mem; the memory map does not tell of it.

use linux_loader::loader::elf::start_info::hvm_memmap_table_entry;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

/// End of the memory that a boot loader may use: Linux looks for the MP table in the KiB that follows.
pub(crate) const MP_TABLE_START: u64 = 0x9_fc00;
/// Space for the MP table.
pub(crate) const MP_TABLE_SPACE: usize = 0x400;
/// Where the RAM above the legacy area starts.
pub(crate) const HIGH_RAM_START: u64 = 0x10_0000;
/// Where the hole for devices starts; the first virtio device is there.
pub(crate) const MMIO_START: u64 = 0xd000_0000;
/// Where RAM goes on after the hole.
pub(crate) const ABOVE_4G: u64 = 0x1_0000_0000;
/// Registers of one virtio device.
pub(crate) const MMIO_DEVICE_SIZE: u64 = 0x1000;
/// Page for KVM's identity map (Intel without unrestricted guest).
pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages for KVM's task state segment (Intel).
pub(crate) const KVM_TSS: u64 = 0xfffb_d000;

/// Least memory of a guest.
pub(crate) const MIN_MEMORY_MIB: u32 = 32;
/// Most memory of a guest: 1 TiB.
pub(crate) const MAX_MEMORY_MIB: u32 = 1 << 20;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// Where RAM of `bytes` is: below the hole, and what does not fit there from 4 GiB on.
pub(crate) fn ranges(bytes: u64) -> Vec<(GuestAddress, usize)> {
    let low = bytes.min(MMIO_START);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(ABOVE_4G), (bytes - low) as usize));
    }
    ranges
}

/// Maps a guest's memory: anonymous, private, nothing of it reserved before it is touched.
pub(crate) fn map(memory_mib: u32) -> std::io::Result<GuestMemoryMmap> {
    GuestMemoryMmap::from_ranges(&ranges(u64::from(memory_mib) << 20)).map_err(std::io::Error::other)
}

/// End of the RAM below the hole.
pub(crate) fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().next().map_or(0, |region| region.start_addr().0 + region.len())
}

/// Where memory that comes later may start: behind all RAM and the hole, at a multiple of whatever the guest's kernel takes
/// as a block. It never touches the RAM: a buffer that the guest makes of the end of the one and the start of the other would
/// lie in two mappings of the monitor, and be refused.
pub(crate) fn hotplug_start(ram: &GuestMemoryMmap) -> u64 {
    let end = ram.iter().map(|region| region.start_addr().0 + region.len()).max().unwrap_or(0);
    (end + 1).max(ABOVE_4G).next_multiple_of(1 << 30)
}

/// The memory map that the kernel is told.
pub(crate) fn map_entries(memory: &GuestMemoryMmap) -> Vec<hvm_memmap_table_entry> {
    let entry =
        |start: u64, end: u64, type_| hvm_memmap_table_entry { addr: start, size: end - start, type_, reserved: 0 };
    let mut entries = vec![
        entry(0, MP_TABLE_START, E820_RAM),
        entry(MP_TABLE_START, HIGH_RAM_START, E820_RESERVED),
        entry(HIGH_RAM_START, low_end(memory), E820_RAM),
    ];
    entries.extend(memory.iter().skip(1).map(|region| {
        let start = region.start_addr().0;
        entry(start, start + region.len(), E820_RAM)
    }));
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ram_adds_up_and_never_touches_the_hole(mib in MIN_MEMORY_MIB..=MAX_MEMORY_MIB) {
            let bytes = u64::from(mib) << 20;
            let ranges = ranges(bytes);
            prop_assert_eq!(ranges.iter().map(|r| r.1 as u64).sum::<u64>(), bytes);
            for (start, length) in ranges {
                let end = start.0 + length as u64;
                prop_assert!(end <= MMIO_START || start.0 >= ABOVE_4G);
            }
        }
    }

    #[test]
    fn the_map_tells_what_is_mapped() {
        for mib in [MIN_MEMORY_MIB, 256, 3328, 3329, 5000] {
            let memory = map(mib).unwrap();
            let entries = map_entries(&memory);
            let ram: u64 = entries.iter().filter(|e| e.type_ == E820_RAM).map(|e| e.size).sum();
            assert_eq!(ram, (u64::from(mib) << 20) - (HIGH_RAM_START - MP_TABLE_START));
            for pair in entries.windows(2) {
                assert!(pair[0].addr + pair[0].size <= pair[1].addr, "sorted, without overlap");
            }
            for entry in entries.iter().filter(|e| e.type_ == E820_RAM) {
                assert!(memory.check_range(GuestAddress(entry.addr), entry.size as usize));
            }
        }
    }
}

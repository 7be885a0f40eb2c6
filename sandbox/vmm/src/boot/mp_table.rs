//! The MP table (Intel MultiProcessor Specification 1.4, chapter 4): processors, one ISA bus, one I/O APIC,
//! and how interrupts reach them. It stands in the last KiB of base memory, where Linux looks.

use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::{MP_TABLE_SPACE, MP_TABLE_START};

/// Pins of KVM's I/O APIC.
const IRQS: u8 = 24;
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const FLOATING_POINTER: usize = 16;
const HEADER: usize = 44;
const ALL_LAPICS: u8 = 0xff;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;

/// Writes the table for `vcpus` processors, whose APIC ids are 0, 1, ...: also of those that come later, since it is read once. They are told
/// as enabled, or Linux would take them for ones that are never there.
pub(crate) fn write(memory: &GuestMemoryMmap, vcpus: u8) -> io::Result<()> {
    let bytes = build(vcpus);
    if bytes.len() > MP_TABLE_SPACE {
        return Err(io::Error::other(format!("the MP table of {vcpus} processors has no room")));
    }
    memory.write_slice(&bytes, GuestAddress(MP_TABLE_START)).map_err(io::Error::other)
}

fn build(vcpus: u8) -> Vec<u8> {
    let mut entries = Vec::new();
    for id in 0..vcpus {
        let flags = 1 | if id == 0 { 2 } else { 0 }; // enabled, boot processor
        entries.extend([ENTRY_PROCESSOR, id, APIC_VERSION, flags]);
        entries.extend(0x600_u32.to_le_bytes()); // family 6; Linux takes CPUID's word
        entries.extend(0x201_u32.to_le_bytes()); // an APIC and an FPU
        entries.extend([0; 8]);
    }
    entries.extend([ENTRY_BUS, 0]);
    entries.extend(*b"ISA   ");
    let ioapic = vcpus; // the first free id
    entries.extend([ENTRY_IOAPIC, ioapic, APIC_VERSION, 1]);
    entries.extend(IOAPIC_ADDRESS.to_le_bytes());
    for irq in 0..IRQS {
        entries.extend([ENTRY_INTERRUPT, INTERRUPT_INT, 0, 0, 0, irq, ioapic, irq]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTINT, 0, 0, 0, 0, 0, 0]);
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, ALL_LAPICS, 1]);

    let count = u16::from(vcpus) + 1 + 1 + u16::from(IRQS) + 2;
    let mut table = Vec::with_capacity(HEADER + entries.len());
    table.extend(*b"PCMP");
    table.extend(((HEADER + entries.len()) as u16).to_le_bytes());
    table.extend([4, 0]); // revision 1.4, checksum below
    table.extend(*b"COFFERDM");
    table.extend(*b"000000000000");
    table.extend([0; 6]); // no OEM table
    table.extend(count.to_le_bytes());
    table.extend(LAPIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]); // no extended entries
    table.extend(entries);
    table[7] = checksum(&table);

    let mut pointer = [0; FLOATING_POINTER];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&((MP_TABLE_START as u32) + FLOATING_POINTER as u32).to_le_bytes());
    pointer[8] = 1; // length in units of 16
    pointer[9] = 4; // revision 1.4
    pointer[10] = checksum(&pointer);
    [&pointer[..], &table].concat()
}

/// The byte that makes the sum of `bytes` zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn sums_are_zero_and_lengths_right_for_every_number_of_processors() {
        for vcpus in 1..=32 {
            let bytes = build(vcpus);
            assert!(bytes.len() <= MP_TABLE_SPACE, "{vcpus} processors need {} bytes", bytes.len());
            let (pointer, table) = bytes.split_at(FLOATING_POINTER);
            assert_eq!(sum(pointer), 0);
            assert_eq!(sum(table), 0);
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            let mut entries = &table[HEADER..];
            let mut count = 0;
            while let Some(kind) = entries.first() {
                entries = &entries[if *kind == ENTRY_PROCESSOR { 20 } else { 8 }..];
                count += 1;
            }
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), count);
        }
    }

    #[test]
    fn one_processor_boots_and_all_can_be_used() {
        let table = &build(32)[FLOATING_POINTER + HEADER..];
        let (ids, flags): (Vec<u8>, Vec<u8>) = table.chunks(20).take(32).map(|entry| (entry[1], entry[3])).unzip();
        assert_eq!(flags.iter().filter(|flags| **flags & 2 != 0).count(), 1);
        assert_eq!(flags[0], 3);
        assert!(flags.iter().all(|flags| flags & 1 == 1));
        assert!(ids.into_iter().eq(0..32));
    }
}

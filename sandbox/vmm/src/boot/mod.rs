//! What stands in guest memory before the first instruction.
//!
//! The kernel is an ELF image that is entered through PVH (Xen's HVM direct boot ABI): 32-bit protected mode, flat
//! segments, `ebx` points at the start info. There is no firmware and no ACPI; processors
//! and interrupts are told by an MP table.

mod cmdline;
mod mp_table;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::start_info::{hvm_modlist_entry, hvm_start_info};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) use cmdline::{MAX_CMDLINE, cmdline};

use crate::memory;

/// The start info, for `ebx`.
const START_INFO: GuestAddress = GuestAddress(0x6000);
const MODULE_LIST: GuestAddress = GuestAddress(0x6040);
const MEMORY_MAP: GuestAddress = GuestAddress(0x7000);
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
const START_INFO_MAGIC: u32 = 0x336e_c578;
const PAGE: u64 = 4096;

/// Why nothing could be booted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// The kernel is no ELF image that fits.
    #[error("cannot load the kernel: it must be an uncompressed ELF vmlinux that fits the guest's memory")]
    Kernel(#[source] linux_loader::loader::Error),
    /// Without the note there is no 32-bit entry.
    #[error("the kernel has no PVH entry; build it with CONFIG_PVH")]
    NoPvh,
    /// It lies above the kernel, below the hole.
    #[error("the initramfs of {size} bytes does not fit between the kernel's end at {kernel_end:#x} and {end:#x}")]
    InitrdTooLarge {
        /// Size of the initramfs.
        size: u64,
        /// End of the kernel's image and bss.
        kernel_end: u64,
        /// End of RAM below the hole.
        end: u64,
    },
    /// Reading a descriptor failed.
    #[error("cannot read the initramfs")]
    Initrd(#[source] io::Error),
    /// The command line has no room.
    #[error("the kernel command line of {0} bytes is longer than {MAX_CMDLINE}")]
    Cmdline(usize),
    /// A record does not fit guest memory.
    #[error("cannot write the boot records")]
    Records(#[source] io::Error),
}

/// Where and with what the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `rip`, in 32-bit protected mode.
    pub(crate) address: u64,
    /// `rbx`.
    pub(crate) start_info: u64,
}

/// Puts the kernel, the initramfs and all boot records in `memory`.
///
/// The files are copied. Mapping them instead was tried: 30 times faster here, and yet a start took more than twice as long, since the guest then
/// takes a fault for each small page of its kernel, where copies lie in huge pages.
pub(crate) fn load(
    memory: &GuestMemoryMmap,
    kernel: OwnedFd,
    initrd: OwnedFd,
    cmdline: &str,
    vcpus: u8,
) -> Result<Entry, BootError> {
    let mut kernel = File::from(kernel);
    let loaded =
        Elf::load(memory, None, &mut kernel, Some(GuestAddress(memory::HIGH_RAM_START))).map_err(BootError::Kernel)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh);
    };
    let module = load_initrd(memory, File::from(initrd), loaded.kernel_end)?;
    write_cmdline(memory, cmdline)?;
    mp_table::write(memory, vcpus).map_err(BootError::Records)?;
    write_start_info(memory, module)?;
    Ok(Entry { address: entry.0, start_info: START_INFO.0 })
}

/// Copies the initramfs to the end of low RAM, where the kernel's early allocations do not reach.
fn load_initrd(memory: &GuestMemoryMmap, mut file: File, kernel_end: u64) -> Result<hvm_modlist_entry, BootError> {
    let size = file.metadata().map_err(BootError::Initrd)?.len();
    let end = memory::low_end(memory);
    let address = end.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|start| *start >= kernel_end);
    let Some(address) = address else {
        return Err(BootError::InitrdTooLarge { size, kernel_end, end });
    };
    io::Seek::rewind(&mut file).map_err(BootError::Initrd)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, size as usize)
        .map_err(|error| BootError::Initrd(io::Error::other(error)))?;
    Ok(hvm_modlist_entry { paddr: address, size, ..Default::default() })
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() > MAX_CMDLINE {
        return Err(BootError::Cmdline(cmdline.len()));
    }
    let terminated = [cmdline.as_bytes(), &[0]].concat();
    memory.write_slice(&terminated, CMDLINE).map_err(|error| BootError::Records(io::Error::other(error)))
}

fn write_start_info(memory: &GuestMemoryMmap, module: hvm_modlist_entry) -> Result<(), BootError> {
    let entries = memory::map_entries(memory);
    let start_info = hvm_start_info {
        magic: START_INFO_MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: MODULE_LIST.0,
        cmdline_paddr: CMDLINE.0,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: entries.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new::<hvm_start_info>(&start_info, START_INFO);
    params.set_sections(&entries, MEMORY_MAP);
    params.set_modules(&[module], MODULE_LIST);
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(|error| BootError::Records(io::Error::other(error)))
}

#[cfg(test)]
mod tests;

#![allow(unsafe_code)] // changes what this process may do with a part of the guest's memory
//! The region that blocks are plugged in, as the monitor's own memory.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::BLOCK;
use crate::memory;

/// A region of guest memory of which nothing can be used yet.
pub(crate) struct Region {
    region: Arc<GuestRegionMmap>,
}

impl Region {
    /// Reserves `mib` behind `ram`; answers the guest's memory with it.
    pub(crate) fn reserve(ram: &GuestMemoryMmap, mib: u32) -> io::Result<(Self, GuestMemoryMmap)> {
        let start = GuestAddress(memory::hotplug_start(ram));
        let size = usize::try_from(u64::from(mib) << 20).map_err(io::Error::other)?;
        let mapping = MmapRegion::build(
            None,
            size,
            libc::PROT_NONE,
            libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
        )
        .map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(mapping, start);
        let region = Arc::new(region.ok_or_else(|| io::Error::other("the region does not fit the address space"))?);
        let memory = ram.insert_region(region.clone()).map_err(io::Error::other)?;
        Ok((Self { region }, memory))
    }

    /// Where the guest sees it.
    pub(super) fn start(&self) -> u64 {
        self.region.start_addr().0
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.region.len()
    }

    /// Blocks in it.
    pub(super) fn blocks(&self) -> usize {
        (self.size() / BLOCK) as usize
    }

    /// Makes blocks usable: they read as zeroes.
    pub(super) fn plug(&self, blocks: &Range<usize>) -> io::Result<()> {
        self.protect(blocks, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Takes blocks away, and what they hold.
    pub(super) fn unplug(&self, blocks: &Range<usize>) -> io::Result<()> {
        self.protect(blocks, libc::PROT_NONE)?;
        let (address, length) = self.place(blocks)?;
        // SAFETY: the range lies within the mapping that `self.region` owns; what was in it is guest memory, of which nothing here
        // holds a reference.
        if unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn protect(&self, blocks: &Range<usize>, access: i32) -> io::Result<()> {
        let (address, length) = self.place(blocks)?;
        // SAFETY: as in `unplug`; guest memory is read and written by volatile accesses only, and by the kernel.
        if unsafe { libc::mprotect(address, length, access) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn place(&self, blocks: &Range<usize>) -> io::Result<(*mut libc::c_void, usize)> {
        if blocks.start > blocks.end || blocks.end > self.blocks() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let offset = blocks.start * BLOCK as usize;
        Ok((self.region.as_ptr().wrapping_add(offset).cast(), blocks.len() * BLOCK as usize))
    }
}

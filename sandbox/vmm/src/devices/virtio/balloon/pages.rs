#![allow(unsafe_code)] // changes what memory the guest's pages hold
//! Reported pages, on their way back to the node.

use std::io;

use vm_memory::VolatileSlice;

use super::MAX_REPORT;
use crate::devices::virtio::Buffers;

/// Pages of the node.
const PAGE: usize = 4096;

/// Gives the memory behind the writable part of a report back to the node, as far as it is whole pages; the device may
/// leave any of it to the guest.
///
/// Each slice lies in one region of the guest's memory, as [`Buffers`] has checked. The access to the pages stays as it
/// is: a block that virtio-mem has unplugged holds no memory and cannot be used before or after.
pub(super) fn give_back(report: &Buffers<'_>) {
    let mut left = MAX_REPORT;
    for slice in report.writable.pieces() {
        let length = slice.len().min(left);
        left -= length;
        if let Err(error) = release(slice, length) {
            complain!("balloon: cannot give memory back to the node: {error}");
            return;
        }
    }
}

/// Gives the whole pages among the first `length` bytes of `slice` back.
fn release(slice: &VolatileSlice<'_>, length: usize) -> io::Result<()> {
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let skipped = start.align_offset(PAGE);
    let whole = length.saturating_sub(skipped) / PAGE * PAGE;
    if whole == 0 {
        return Ok(());
    }
    // The guest has said that it does not use it; in a clone it shows what it was saved with again.
    //
    // SAFETY: `skipped + whole` is at most the slice's length, so the range lies in the guest's
    // mapping, which lives as long as the slice. It is private memory, to which nothing here holds a
    // reference: the monitor reads and writes it by volatile accesses only.
    if unsafe { libc::madvise(start.wrapping_add(skipped).cast(), whole, libc::MADV_DONTNEED) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

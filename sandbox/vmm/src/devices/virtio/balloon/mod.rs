//! virtio-balloon (virtio 1.3 section 5.5), for free page reporting only.
//!
//! The guest's kernel reports blocks of memory that it does not use; the monitor gives their pages back to the node. A
//! reported block stays the guest's: it reads as zeroes, or as before, and holds memory again once it is written. The
//! balloon itself stays empty, since its target is 0: a pod's size is changed by virtio-mem.

mod device;
mod event_handler;
mod pages;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use device::Balloon;
pub(crate) use state::BalloonState;

const DEVICE_TYPE: u32 = 5;
/// Inflate, deflate, report. Linux leaves numbers of queues that are not offered out, so the third one is the
/// reporting queue. It reports 32 blocks at once, and wants room for as many.
const QUEUE_SIZES: [u16; 3] = [16, 16, 64];
const REPORTING: usize = 2;

/// The device takes reports of free pages.
const F_REPORTING: u64 = 1 << 5;

/// Reports that one turn of the main loop serves at most: one gives back 128 MiB when Linux sends it.
const REPORTS_PER_TURN: usize = 1;
/// Bytes of one report that are given back at most; the rest stays with the guest.
const MAX_REPORT: usize = 1 << 30;

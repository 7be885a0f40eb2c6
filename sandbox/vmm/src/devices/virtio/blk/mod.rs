//! virtio-blk (virtio 1.3 §5.2): the pod's disk for writable layers, over one regular file, and
//! block devices of the node that come and go.
//!
//! Requests run on the device's own thread, so that a slow disk holds up nothing else. Discarded space goes
//! back to the node: the file is punched, and the block device told.

mod device;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod request;
mod source;
mod spare;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use device::Blk;
pub(crate) use source::{BLKGETSIZE64, BLKSSZGET};
pub(crate) use spare::Spare;
#[cfg(test)]
pub(crate) use spare::tests::volume;
pub(crate) use state::BlkState;

const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZES: [u16; 1] = [128];

const F_SIZE_MAX: u64 = 1 << 1;
const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_TOPOLOGY: u64 = 1 << 10;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const SECTOR: u64 = 512;
/// Data segments of a request; with header and status it fills the queue.
const SEG_MAX: u32 = 126;
/// Bytes in one data segment.
const SIZE_MAX: u32 = 128 << 10;
/// Bytes that one read or write moves at most; a driver that keeps to the limits above never asks for more.
const MAX_TRANSFER: usize = 16 << 20;
/// Ranges in one discard or write-zeroes request.
const MAX_RANGES: u32 = 16;
/// Sectors in one such range.
const MAX_RANGE_SECTORS: u32 = 1 << 23;
/// Sectors that the node's file system gives back as a whole ([`PHYSICAL`]).
const DISCARD_ALIGNMENT: u32 = 8;
/// What is best read and written as a whole, bytes; no block of a device may be larger.
const PHYSICAL: u32 = 4096;
/// What GET_ID answers of the pod's own disk.
const ID: &str = "cofferdam";

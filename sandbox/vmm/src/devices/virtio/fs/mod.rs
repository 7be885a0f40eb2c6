//! virtio-fs (virtio 1.3 §5.11): FUSE over queues, served by this process.
//!
//! `fuse_backend_rs` decodes requests and encodes replies; [`share::Share`] carries them out. Requests run on the device's own
//! threads, so that a slow disk holds up nothing else, and a file system that never answers only who asks for it.

mod device;
mod extra;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod init;
mod places;
mod request;
pub(crate) mod share;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub(crate) use device::Fs;
pub(crate) use state::FsState;

const DEVICE_TYPE: u32 = 26;
/// The high priority queue (FORGET, INTERRUPT) and one request queue. Linux sends at most as many pages at once as the
/// request queue has entries, less four.
const QUEUE_SIZES: [u16; 2] = [64, 256];
/// Bytes of the tag in the configuration space.
const TAG: usize = 36;

//! virtio-mem (virtio 1.3 §5.15): memory that the guest gets and gives back while it runs.
//!
//! ```text
//!  region, reserved when the VM is built, nothing of it readable or writable
//!  |#######|.......|#######|.............................|   # plugged: usable    . unplugged: holds no memory
//! ```
//!
//! The monitor says how much the guest should have ([`Mem::request`]); the guest's driver plugs and unplugs blocks until it has that, and never
//! gets more. An unplugged block is inaccessible, so that a guest cannot use what it was not given: one that tries ends its VM.

mod device;
mod event_handler;
mod region;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use device::Mem;
pub(crate) use region::Region;
pub(crate) use state::MemState;

const DEVICE_TYPE: u32 = 24;
/// Requests come one at a time.
const QUEUE_SIZES: [u16; 1] = [8];
/// What is plugged and unplugged at once: a huge page.
pub(crate) const BLOCK: u64 = 2 << 20;
/// The driver must not touch unplugged blocks.
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

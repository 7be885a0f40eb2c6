//! virtio-rng (virtio 1.3 §5.4): the node's random numbers.

mod device;
mod event_handler;
mod state;
#[cfg(test)]
mod tests;

pub(crate) use device::Rng;
pub(crate) use state::RngState;

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [8];
/// Bytes that one request gets at most; a driver asks again for more.
const MAX_BYTES: usize = 4096;

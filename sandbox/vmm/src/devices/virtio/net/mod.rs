//! virtio-net (virtio 1.3 §5.1) over a tap: one receive and one transmit queue.
//!
//! The tap speaks the same header as the queue (12 bytes, `num_buffers` included) and takes the offloads that the driver
//! negotiated, so frames pass through unparsed. With mergeable buffers a guest needs only page-sized receive buffers for 64 KiB
//! frames. The device has no MAC: the agent sets the pod's.

mod device;
mod event_handler;
mod offload;
mod receive;
mod state;
mod tap;
#[cfg(test)]
mod tests;

pub(crate) use device::Net;
pub(crate) use state::NetState;

const DEVICE_TYPE: u32 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
const RX: usize = 0;
const TX: usize = 1;

const F_CSUM: u64 = 1;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;

/// `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: usize = 10;
/// Header, Ethernet header with a VLAN tag, and the longest IP packet.
const MAX_FRAME: usize = HEADER + 18 + 65535;
/// Frames that one turn receives at most.
const RECEIVE_BUDGET: usize = 256;

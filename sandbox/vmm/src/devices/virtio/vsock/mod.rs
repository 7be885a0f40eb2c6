//! virtio-vsock (virtio 1.3 §5.10): the node's side is this process, no vhost.
//!
//! ```text
//! node -> guest   unix socket:  CONNECT <port>\n      REQUEST -> guest's port
//!                               <- OK <port>\n        <- RESPONSE      (refused: RST, the socket is closed)
//! guest -> node   port 1025 of CID 2: a container's log, which ends here in `log_sink`
//!                 anything else: RST
//! ```
//!
//! A socket whose first CONNECT comes before the guest's agent listens waits for it, so that the daemon
//! needs no retries. Both directions are bounded by credit: the guest may send [`BUF_ALLOC`] bytes of a connection ahead of
//! what its socket or log file took, and a guest that sends more is reset.

mod connection;
mod device;
mod event_handler;
mod header;
mod receive;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

pub(crate) use device::Vsock;
pub(crate) use state::VsockState;

const DEVICE_TYPE: u32 = 19;
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// `struct virtio_vsock_event`: all connections are gone.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The node's address.
const HOST_CID: u64 = 2;
/// First port on the node's side of connections that the node makes.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Bytes that a guest may send ahead on one connection.
const BUF_ALLOC: u32 = 64 << 10;
/// Connections that the node may have at once, those in the handshake included.
const MAX_STREAMS: usize = 512;
/// Connections that a guest may have to the log sink, those that wait for a file included.
const MAX_LOGS: usize = 512;
/// Resets of unknown connections that wait for a receive buffer; beyond it they are dropped.
const MAX_RESETS: usize = 64;
/// Packets of the guest that one turn takes at most, up to 64 KiB each: the network and the other
/// connections must have their turn in between.
const SENT_PER_TURN: usize = 16;
/// Bytes of one packet to the guest; its buffers are 4 KiB.
const MAX_PAYLOAD: usize = 16 << 10;

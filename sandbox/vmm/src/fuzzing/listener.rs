//! A listening socket without a file.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU64, Ordering};

/// A socket of which nobody else knows, and its address.
pub(crate) fn listener() -> (UnixListener, SocketAddr) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("cofferdam-fuzz-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    (UnixListener::bind_addr(&address).expect("a free name"), address)
}

//! JSON packets with at most one descriptor, over `SOCK_SEQPACKET` unix sockets.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest packet, bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// What went wrong with a packet.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("packet socket failed")]
    Socket(#[from] rustix::io::Errno),
    /// The packet is not what it should be.
    #[error("malformed packet")]
    Json(#[from] serde_json::Error),
    /// The packet is longer than [`MAX_PACKET`].
    #[error("packet is longer than {MAX_PACKET} bytes")]
    TooLong,
}

/// Sends `message`, with `fd` attached if there is one.
///
/// # Errors
/// When the message does not fit a packet or the peer is gone.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), PacketError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET {
        return Err(PacketError::TooLong);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds;
    if let Some(fd) = fd {
        fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` when the peer has closed the connection.
///
/// # Errors
/// When the packet is too long or is not a `T`.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>, PacketError> {
    let mut buffer = vec![0u8; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(PacketError::TooLong);
    }
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.into_iter().next();
        }
    }
    Ok(Some((serde_json::from_slice(&buffer[..got.bytes])?, fd)))
}

//! JSON packets with descriptors, mostly none or one, over `SOCK_SEQPACKET` unix sockets.

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

/// Most descriptors of one packet.
pub const MAX_FDS: usize = 2;

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
    /// More descriptors than a packet has.
    #[error("a packet has at most {MAX_FDS} descriptors, not {0}")]
    TooManyFds(usize),
}

/// Sends `message`, with `fd` attached if there is one.
///
/// # Errors
/// When the message does not fit a packet or the peer is gone.
pub fn send<T: Serialize>(socket: impl AsFd, message: &T, fd: Option<BorrowedFd<'_>>) -> Result<(), PacketError> {
    send_all(socket, message, fd.as_slice())
}

/// As [`send`], with up to [`MAX_FDS`] descriptors.
///
/// # Errors
/// When the message does not fit a packet, or the peer is gone.
pub fn send_all<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), PacketError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET {
        return Err(PacketError::TooLong);
    }
    // The buffer may have room for more, since it is aligned.
    if fds.len() > MAX_FDS {
        return Err(PacketError::TooManyFds(fds.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(PacketError::TooManyFds(fds.len()));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one packet; `None` when the peer has closed the connection.
///
/// # Errors
/// When the packet is too long or is not a `T`.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Option<OwnedFd>)>, PacketError> {
    let received = recv_all(socket)?;
    Ok(received.map(|(message, fds)| (message, fds.into_iter().next())))
}

/// As [`recv`], with all descriptors, up to [`MAX_FDS`]; the kernel closes what is more.
///
/// # Errors
/// When the packet is too long or is not a `T`.
pub fn recv_all<T: DeserializeOwned>(socket: impl AsFd) -> Result<Option<(T, Vec<OwnedFd>)>, PacketError> {
    let mut buffer = vec![0u8; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) {
        return Err(PacketError::TooLong);
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    Ok(Some((serde_json::from_slice(&buffer[..got.bytes])?, fds)))
}

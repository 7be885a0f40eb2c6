#![allow(unsafe_code)] // the tap's ioctls
//! The node's side of the network.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, HEADER};

/// A tap with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, or in tests and fuzz targets any packet socket.
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// Takes the tap over; it does not block from now on.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(fd))
    }

    /// Makes the tap's header the queue's, and its offloads what the driver takes.
    #[cfg(not(any(test, feature = "fuzzing")))]
    pub(super) fn configure(&self, features: u64) -> io::Result<()> {
        let size = HEADER as libc::c_int;
        // SAFETY: the ioctl reads one int behind the pointer.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETVNETHDRSZ as _, &raw const size) })?;
        let offloads = offloads(features);
        // SAFETY: the ioctl takes its argument by value.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD as _, offloads) })
    }

    /// A socket has no offloads.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn configure(&self, features: u64) -> io::Result<()> {
        let _ = (offloads(features), HEADER, self.0.as_raw_fd());
        Ok(())
    }

    /// The next frame; `WouldBlock` when there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }

    /// Sends one frame.
    pub(super) fn write(&self, frame: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, frame)?)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `TUN_F_*` for what the driver takes. The tap wants checksums for everything else.
fn offloads(features: u64) -> libc::c_ulong {
    if features & F_GUEST_CSUM == 0 {
        return 0;
    }
    let tcp = features & (F_GUEST_TSO4 | F_GUEST_TSO6) != 0;
    let mut flags = libc::TUN_F_CSUM;
    for (feature, flag) in [
        (features & F_GUEST_TSO4 != 0, libc::TUN_F_TSO4),
        (features & F_GUEST_TSO6 != 0, libc::TUN_F_TSO6),
        (tcp && features & F_GUEST_ECN != 0, libc::TUN_F_TSO_ECN),
    ] {
        if feature {
            flags |= flag;
        }
    }
    libc::c_ulong::from(flags)
}

#[cfg(not(any(test, feature = "fuzzing")))]
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_the_negotiated_features() {
        assert_eq!(offloads(0), 0);
        assert_eq!(offloads(F_GUEST_TSO4), 0, "segmentation needs checksums");
        assert_eq!(offloads(F_GUEST_CSUM), 1);
        assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_ECN), 1);
        assert_eq!(offloads(F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN), 1 | 2 | 4 | 8);
    }
}

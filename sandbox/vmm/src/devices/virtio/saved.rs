//! What is saved of a device: its registers, where its queues stand, and what it keeps itself.
//!
//! A device's state holds no descriptor, no path and nothing of what is behind it on the node: the
//! clone gets its own disk, share, taps and sockets. So a device that has something of its guest's
//! which lies outside the guest's memory is not saved.

use serde::{Deserialize, Serialize};

use super::balloon::BalloonState;
use super::blk::BlkState;
use super::fs::FsState;
use super::mem::MemState;
use super::mmio::TransportState;
use super::net::NetState;
use super::rng::RngState;
use super::vsock::VsockState;

/// What a device keeps, queues apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DeviceState {
    /// A place for a disk without one.
    Empty,
    /// A disk.
    Blk(BlkState),
    /// A network card.
    Net(NetState),
    /// The share.
    Fs(FsState),
    /// The sockets.
    Vsock(VsockState),
    /// Random numbers.
    Rng(RngState),
    /// The balloon.
    Balloon(BalloonState),
    /// Memory that comes and goes.
    Mem(MemState),
}

/// Where a queue stands: how many chains the device has taken, and given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Next entry of the available ring.
    pub(crate) available: u16,
    /// Next entry of the used ring.
    pub(crate) used: u16,
}

/// One device and its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedDevice {
    /// The device id; 0 for an empty place.
    pub(super) kind: u32,
    /// The transport's registers.
    pub(super) registers: TransportState,
    pub(super) interrupt_status: u32,
    pub(super) generation: u32,
    /// One for each queue of a device that serves; nothing otherwise.
    pub(super) positions: Option<Vec<Position>>,
    pub(super) device: DeviceState,
}

/// Why a device is not saved.
#[derive(Debug, thiserror::Error)]
#[error("device {device} has {what}")]
pub(crate) struct SaveError {
    /// Its name.
    pub(crate) device: &'static str,
    /// What of it would be lost.
    pub(crate) what: &'static str,
}

/// Why a device is not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The state is one of another device.
    #[error("the state for device {device} is one of another kind of device")]
    Kind {
        /// Its name.
        device: &'static str,
    },
    /// A monitor of another version saved it.
    #[error("the state of device {device} has version {saved}, and this monitor knows {known}")]
    Version {
        /// Its name.
        device: &'static str,
        /// Of the state.
        saved: u32,
        /// The only one that is read.
        known: u32,
    },
    /// What the guest was told of the device is not true any more.
    #[error("{what} of device {device} was {saved} when it was saved, and is {now}")]
    Differs {
        /// Its name.
        device: &'static str,
        /// What differs.
        what: &'static str,
        /// Then.
        saved: String,
        /// Now.
        now: String,
    },
    /// Registers that no driver could have written.
    #[error("the registers of the device at {address:#x} are invalid: {why}")]
    Registers {
        /// Where the guest finds it.
        address: u64,
        /// What is wrong.
        why: String,
    },
}

impl RestoreError {
    /// Checks the version of a device's state.
    pub(super) fn check_version(device: &'static str, saved: u32, known: u32) -> Result<(), Self> {
        if saved == known { Ok(()) } else { Err(Self::Version { device, saved, known }) }
    }

    /// Checks what a guest was told of a device.
    pub(super) fn check<T: PartialEq + ToString>(
        device: &'static str,
        what: &'static str,
        saved: &T,
        now: &T,
    ) -> Result<(), Self> {
        if saved == now {
            return Ok(());
        }
        Err(Self::Differs { device, what, saved: saved.to_string(), now: now.to_string() })
    }
}

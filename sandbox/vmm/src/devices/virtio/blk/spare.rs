//! A place for a disk that comes later, and goes.
//!
//! The guest is told of it at its boot and finds nothing there: device id 0 (virtio 1.3
//! §4.2.3.1.1). It looks again when its agent asks it to.

use super::{Blk, QUEUE_SIZES};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice};

/// The place, and the disk in it.
#[derive(Default)]
pub(crate) struct Spare {
    disk: Option<Blk>,
}

impl Spare {
    /// Puts `disk` into the place, which must be empty.
    pub(crate) fn fill(&mut self, disk: Blk) {
        debug_assert!(self.disk.is_none(), "a disk in use is replaced");
        self.disk = Some(disk);
    }

    /// Takes the disk out, which must have been reset.
    pub(crate) fn empty(&mut self) {
        self.disk = None;
    }
}

impl VirtioDevice for Spare {
    fn device_type(&self) -> u32 {
        self.disk.as_ref().map_or(0, Blk::device_type)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None without a disk, so that no driver gets as far as starting it.
    fn features(&self) -> u64 {
        self.disk.as_ref().map_or(0, Blk::features)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if let Some(disk) = &self.disk {
            disk.read_config(offset, data);
        }
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        match &mut self.disk {
            Some(disk) => disk.activate(active),
            None => {
                let source = std::io::ErrorKind::NotFound.into();
                Err(ActivateError { device: "blk", step: "find a disk in its place", source })
            }
        }
    }

    fn reset(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.reset();
        }
    }

    fn reset_now(&mut self) -> bool {
        self.disk.as_mut().is_none_or(Blk::reset_now)
    }

    fn pause(&mut self) -> Option<Activation> {
        self.disk.as_mut()?.pause()
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        match &self.disk {
            None => Ok(DeviceState::Empty),
            Some(_) => Err(SaveError { device: "blk", what: "a disk that was plugged" }),
        }
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Empty => Ok(()),
            _ => Err(RestoreError::Kind { device: "blk" }),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Disks that the daemon puts into a running VM, and takes out again.
//!
//! The guest was told of a bounded number of places at its boot. All of this is done by the main
//! thread, which must never wait for a disk: a vCPU that resets one holds the locks of its place
//! until the node has answered.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, TryLockError};

use cofferdam_proto::monitor::{Disk, MAX_SERIAL};

use crate::bus::Bus;
use crate::devices::virtio::blk::{Blk, Spare};
use crate::event_loop::lock;

/// Why a disk was not put in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// The serial could not be told from others by a guest.
    #[error("serial {0:?} is not 1 to {MAX_SERIAL} bytes of printable ASCII without blanks")]
    Serial(String),
    /// The packet brought nothing to show.
    #[error("no block device came with the request for disk {0}")]
    NoDescriptor(String),
    /// Every place holds a disk.
    #[error("all {places} places for disks of the VM are taken, so there is none for {serial}")]
    Full {
        /// The disk that was asked for.
        serial: String,
        /// How many places there are.
        places: usize,
    },
    /// What came cannot be a disk.
    #[error("cannot make a disk of the device for {serial}")]
    Device {
        /// The disk that was asked for.
        serial: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The places.
pub(crate) struct Disks {
    bus: Arc<Bus>,
    /// Number of the first place among the guest's devices.
    first: usize,
    places: Vec<Place>,
}

struct Place {
    device: Arc<Mutex<Spare>>,
    /// What is in it.
    disk: Option<Disk>,
}

impl Disks {
    /// `places` are on `bus`, one after the other from the device number `first` on; all are empty.
    pub(crate) fn new(bus: Arc<Bus>, first: usize, places: Vec<Arc<Mutex<Spare>>>) -> Self {
        Self { bus, first, places: places.into_iter().map(|device| Place { device, disk: None }).collect() }
    }

    /// What is plugged.
    pub(crate) fn list(&self) -> Vec<Disk> {
        self.places.iter().filter_map(|place| place.disk.clone()).collect()
    }

    /// Puts the block device `device` into a free place; answers which. A serial that is there
    /// keeps its disk.
    pub(crate) fn plug(&mut self, serial: String, read_only: bool, device: Option<OwnedFd>) -> Result<u32, DiskError> {
        if let Some(there) = self.places.iter().filter_map(|place| place.disk.as_ref()).find(|d| d.serial == serial) {
            return Ok(there.slot);
        }
        if !(1..=MAX_SERIAL).contains(&serial.len()) || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(DiskError::Serial(serial));
        }
        let Some(device) = device else { return Err(DiskError::NoDescriptor(serial)) };
        if !self.places.iter().any(|place| place.disk.is_none()) {
            return Err(DiskError::Full { serial, places: self.places.len() });
        }
        match Blk::volume(device, &serial, read_only) {
            Ok(disk) => self.fill(serial, read_only, disk),
            Err(source) => Err(DiskError::Device { serial, source }),
        }
    }

    /// Puts `disk` into the first free place.
    fn fill(&mut self, serial: String, read_only: bool, disk: Blk) -> Result<u32, DiskError> {
        let (first, places) = (self.first, self.places.len());
        let Some((number, place)) = self.places.iter_mut().enumerate().find(|(_, place)| place.disk.is_none()) else {
            return Err(DiskError::Full { serial, places });
        };
        let slot = u32::try_from(first + number).unwrap_or(u32::MAX);
        // An empty place has no thread, so nobody holds its lock for long.
        lock(&place.device).fill(disk);
        place.disk = Some(Disk { slot, serial, read_only });
        Ok(slot)
    }

    /// Takes the disk out, whatever its guest does with it, and forgets what its driver wrote into
    /// the registers. False when the node has not finished a request yet.
    pub(crate) fn unplug(&mut self, serial: &str) -> bool {
        let of_serial = |place: &Place| place.disk.as_ref().is_some_and(|disk| disk.serial == serial);
        let Some(number) = self.places.iter().position(of_serial) else { return true };
        let Some(transport) = self.bus.device(self.first + number) else { return true };
        let mut transport = match transport.try_lock() {
            Ok(transport) => transport,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if !transport.reset_now() {
            return false;
        }
        // No vCPU starts the disk meanwhile: the registers are locked.
        let place = &mut self.places[number];
        lock(&place.device).empty();
        place.disk = None;
        true
    }
}

#[cfg(test)]
pub(crate) mod tests;

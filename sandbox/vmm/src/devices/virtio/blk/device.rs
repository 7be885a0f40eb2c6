//! The device as the transport sees it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::source::{self, Source};
use super::state::{BlkState, STATE_VERSION, id};
use super::worker::Worker;
use super::{
    DEVICE_TYPE, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY, F_WRITE_ZEROES, ID, QUEUE_SIZES,
    SECTOR,
};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};

/// The disk.
pub(crate) struct Blk {
    pub(super) state: BlkState,
    file: Arc<File>,
    /// Whether its bytes are of use after the VM.
    lasts: bool,
    worker: Option<Worker>,
}

impl Blk {
    /// A disk over the regular file `disk`, which ends with the VM; a last part of a sector is left
    /// out. Nothing is ever flushed to it: if the node dies, so does the VM.
    pub(crate) fn new(disk: OwnedFd) -> io::Result<Self> {
        Ok(Self { lasts: false, ..Self::over(source::file(File::from(disk))?, id(ID), false) })
    }

    /// A disk over the block device `device`. It is read-only if that is wanted, and if the
    /// descriptor is.
    pub(crate) fn volume(device: OwnedFd, serial: &str, read_only: bool) -> io::Result<Self> {
        let source = source::block_device(File::from(device))?;
        let read_only = read_only || !source.writable;
        Ok(Self::over(source, id(serial), read_only))
    }

    pub(super) fn over(source: Source, id: [u8; 20], read_only: bool) -> Self {
        let Source { file, bytes, block_size, .. } = source;
        let capacity = bytes / SECTOR;
        let state = BlkState { version: STATE_VERSION, capacity, block_size, read_only, id, features: 0 };
        Self { state, file: Arc::new(file), lasts: true, worker: None }
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1
            | VIRTIO_F_EVENT_IDX
            | VIRTIO_F_INDIRECT_DESC
            | F_SIZE_MAX
            | F_SEG_MAX
            | F_BLK_SIZE
            | F_TOPOLOGY
            | if self.lasts { F_FLUSH } else { 0 }
            | self.state.access_features(F_DISCARD | F_WRITE_ZEROES)
    }

    fn keeps_configuration(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.config(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.state.features = active.features;
        let worker = Worker::start(active, self.file.clone(), self.state.clone(), self.lasts)
            .map_err(|source| ActivateError { device: "blk", step: "start its thread", source })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
        self.state.features = 0;
    }

    /// Not while the disk's thread is at a request; it will do no other one.
    fn reset_now(&mut self) -> bool {
        if let Some(worker) = &self.worker {
            worker.tell_to_stop();
            if !worker.has_stopped() {
                return false;
            }
        }
        self.reset();
        true
    }

    fn pause(&mut self) -> Option<Activation> {
        self.worker.take()?.stop()
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Blk(self.state.clone()))
    }

    /// The disk behind it is another one, of which the guest sees no difference.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Blk(saved) = state else { return Err(RestoreError::Kind { device: "blk" }) };
        let now = &self.state;
        RestoreError::check_version("blk", saved.version, STATE_VERSION)?;
        RestoreError::check("blk", "the number of sectors", &saved.capacity, &now.capacity)?;
        RestoreError::check("blk", "the size of a block", &saved.block_size, &now.block_size)?;
        RestoreError::check("blk", "whether it is read-only", &saved.read_only, &now.read_only)?;
        if saved.id != now.id {
            return Err(RestoreError::Kind { device: "blk" });
        }
        Ok(())
    }
}

//! The device as the transport sees it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::state::{BlkState, STATE_VERSION};
use super::worker::Worker;
use super::{
    DEVICE_TYPE, F_BLK_SIZE, F_DISCARD, F_FLUSH, F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY, F_WRITE_ZEROES, QUEUE_SIZES, SECTOR,
};
use crate::devices::virtio::{
    ActivateError, Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};

/// The disk.
pub(crate) struct Blk {
    pub(super) state: BlkState,
    file: Arc<File>,
    worker: Option<Worker>,
}

impl Blk {
    /// A disk over the regular file `disk`; a last part of a sector is left out.
    pub(crate) fn new(disk: OwnedFd) -> io::Result<Self> {
        let file = File::from(disk);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the disk must be a regular file"));
        }
        let state = BlkState { version: STATE_VERSION, capacity: metadata.len() / SECTOR, features: 0 };
        Ok(Self { state, file: Arc::new(file), worker: None })
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
            | F_FLUSH
            | F_TOPOLOGY
            | F_DISCARD
            | F_WRITE_ZEROES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.config(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.state.features = active.features;
        let worker = Worker::start(active, self.file.clone(), self.state.clone()).map_err(|source| ActivateError {
            device: "blk",
            step: "start its thread",
            source,
        })?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
        self.state.features = 0;
    }
}

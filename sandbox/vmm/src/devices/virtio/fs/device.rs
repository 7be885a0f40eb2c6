//! The device as the transport sees it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;

use super::share::Share;
use super::state::{FsState, STATE_VERSION};
use super::worker::Workers;
use super::{DEVICE_TYPE, QUEUE_SIZES, TAG};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};

/// The shared directory.
pub(crate) struct Fs {
    pub(super) state: FsState,
    pub(super) share: Arc<Share>,
    /// Made before the monitor locks itself in; the threads wait on it.
    epoll: Arc<OwnedFd>,
    pub(super) workers: Option<Workers>,
}

impl Fs {
    /// Shares the directory `root` (`O_PATH` suffices), and whatever is mounted below it at any time, as `tag`.
    pub(crate) fn new(tag: &str, root: OwnedFd) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > TAG {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the tag must have 1 to 36 bytes"));
        }
        let state = FsState { version: STATE_VERSION, tag: tag.to_owned(), features: 0, extended: false };
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        Ok(Self { state, share: Arc::new(Share::new(root)?), epoll, workers: None })
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    }

    fn keeps_configuration(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.config(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.state.features = active.features;
        let workers = Workers::start(active, self.share.clone(), self.epoll.clone());
        let failed = |source| ActivateError { device: "fs", step: "start its first thread", source };
        self.workers = Some(workers.map_err(failed)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(workers) = self.workers.take() {
            workers.stop();
        }
        self.share.clear();
        self.state.features = 0;
    }

    fn pause(&mut self) -> Option<Activation> {
        Some(self.workers.take()?.pause(self.state.features))
    }

    /// Only while the guest knows no file but the root: a clone's share holds others.
    fn save(&self) -> Result<DeviceState, SaveError> {
        if !self.share.knows_only_root() {
            return Err(SaveError { device: "fs", what: "files that its guest knows" });
        }
        Ok(DeviceState::Fs(FsState { extended: self.share.sets_attributes_extended(), ..self.state.clone() }))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Fs(saved) = state else { return Err(RestoreError::Kind { device: "fs" }) };
        RestoreError::check_version("fs", saved.version, STATE_VERSION)?;
        RestoreError::check("fs", "the tag", &saved.tag, &self.state.tag)?;
        self.share.begin(saved.extended);
        Ok(())
    }
}

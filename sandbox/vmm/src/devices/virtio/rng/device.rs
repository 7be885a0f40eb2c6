//! The device as the transport sees it.

use super::state::{RngState, STATE_VERSION};
use super::{DEVICE_TYPE, MAX_BYTES, QUEUE_SIZES};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, Buffers, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice,
};
use crate::event_loop::Poller;

/// The entropy device.
pub(crate) struct Rng {
    pub(super) state: RngState,
    pub(super) poller: Option<Poller>,
    pub(super) active: Option<Activation>,
}

impl Rng {
    /// A device that serves from the main loop.
    pub(crate) fn new() -> Self {
        Self { state: RngState { version: STATE_VERSION, features: 0 }, poller: None, active: None }
    }

    /// Serves all requests that wait.
    pub(super) fn serve(&mut self) {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active else { return };
        queues[0].take_kick();
        queues[0].serve(memory, interrupt, fill);
    }
}

/// Fills one request; answers how much of it.
fn fill(buffers: Buffers<'_>) -> u32 {
    let mut bytes = [0; MAX_BYTES];
    let wanted = buffers.writable.len().min(MAX_BYTES);
    match rustix::rand::getrandom(&mut bytes[..wanted], rustix::rand::GetRandomFlags::empty()) {
        Ok(got) => buffers.writable.copy_from(&bytes[..got]) as u32,
        Err(error) => {
            complain!("no random numbers for the guest: {error}");
            0
        }
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX
    }

    fn keeps_configuration(&self) -> bool {
        true
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.watch(&active).map_err(|source| ActivateError { device: "rng", step: "watch its queue", source })?;
        self.state.features = active.features;
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            self.unwatch(&active);
        }
        self.state.features = 0;
    }

    fn pause(&mut self) -> Option<Activation> {
        let active = self.active.take()?;
        self.unwatch(&active);
        Some(active)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Rng(self.state.clone()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Rng(state) = state else { return Err(RestoreError::Kind { device: "rng" }) };
        RestoreError::check_version("rng", state.version, STATE_VERSION)?;
        Ok(())
    }
}

//! The device as the transport sees it.

use super::state::{BalloonState, STATE_VERSION};
use super::{DEVICE_TYPE, F_REPORTING, QUEUE_SIZES, REPORTING, REPORTS_PER_TURN, pages};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};
use crate::event_loop::Poller;

/// The balloon.
pub(crate) struct Balloon {
    pub(super) state: BalloonState,
    pub(super) poller: Option<Poller>,
    pub(super) active: Option<Activation>,
}

impl Balloon {
    /// A device that serves from the main loop.
    pub(crate) fn new() -> Self {
        let state = BalloonState { version: STATE_VERSION, features: 0, actual: 0 };
        Self { state, poller: None, active: None }
    }

    /// Serves what waits in the queue with this number.
    pub(super) fn serve(&mut self, number: usize) {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active else { return };
        let Some(line) = queues.get_mut(number) else { return };
        line.take_kick();
        match number {
            REPORTING => line.serve_few(REPORTS_PER_TURN, memory, interrupt, |buffers| {
                pages::give_back(&buffers);
                0
            }),
            // The target is 0, so nothing should come here. What comes is given back and changes nothing.
            _ => line.serve(memory, interrupt, |_| 0),
        }
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(actual)) = (offset, data.try_into()) {
            self.state.actual = u32::from_le_bytes(actual);
        }
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.watch(&active).map_err(|source| ActivateError { device: "balloon", step: "watch its queues", source })?;
        self.state.features = active.features;
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            self.unwatch(&active);
        }
        self.state.features = 0;
        self.state.actual = 0;
    }

    fn pause(&mut self) -> Option<Activation> {
        let active = self.active.take()?;
        self.unwatch(&active);
        Some(active)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Balloon(self.state.clone()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(state) = state else { return Err(RestoreError::Kind { device: "balloon" }) };
        RestoreError::check_version("balloon", state.version, STATE_VERSION)?;
        self.state.actual = state.actual;
        Ok(())
    }
}

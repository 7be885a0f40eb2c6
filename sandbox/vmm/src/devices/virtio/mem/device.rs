//! The device as the transport sees it.

use std::io;
use std::ops::Range;

use super::state::{MemState, STATE_VERSION};
use super::{BLOCK, DEVICE_TYPE, QUEUE_SIZES, Region, VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, Buffers, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};
use crate::event_loop::Poller;

/// Bytes of a request, and of its answer.
const REQUEST: usize = 24;
const RESPONSE: usize = 10;

/// Kinds of requests.
const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;

/// Answers.
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

/// What [`STATE`] finds.
const ALL_PLUGGED: u16 = 0;
const ALL_UNPLUGGED: u16 = 1;
const MIXED: u16 = 2;

/// The memory device.
pub(crate) struct Mem {
    pub(super) state: MemState,
    pub(super) region: Region,
    pub(super) poller: Option<Poller>,
    pub(super) active: Option<Activation>,
}

impl Mem {
    /// A device that serves from the main loop; nothing is plugged.
    pub(crate) fn new(region: Region) -> Self {
        let plugged = vec![false; region.blocks()];
        let state = MemState { version: STATE_VERSION, features: 0, requested: 0, plugged };
        Self { state, region, poller: None, active: None }
    }

    /// Bytes that can be plugged at most.
    pub(crate) fn size(&self) -> u64 {
        self.region.size()
    }

    /// Bytes that the guest should have plugged.
    pub(crate) fn requested(&self) -> u64 {
        self.state.requested
    }

    /// Bytes that it has plugged.
    pub(crate) fn plugged(&self) -> u64 {
        self.state.plugged.iter().filter(|plugged| **plugged).count() as u64 * BLOCK
    }

    /// Asks the guest to have `bytes` plugged; it does that in its own time.
    pub(crate) fn request(&mut self, bytes: u64) -> Result<(), String> {
        if bytes > self.size() || !bytes.is_multiple_of(BLOCK) {
            return Err(format!(
                "{bytes} bytes cannot be plugged: it must be a multiple of {BLOCK}, at most {}",
                self.size()
            ));
        }
        self.state.requested = bytes;
        if let Some(active) = &self.active {
            active.interrupt.config_changed();
        }
        Ok(())
    }

    /// Serves all requests that wait.
    pub(super) fn serve(&mut self) {
        // The queue is served while the rest of the device changes.
        let Some(mut active) = self.active.take() else { return };
        let Activation { memory, queues, interrupt, .. } = &mut active;
        queues[0].take_kick();
        queues[0].serve(memory, interrupt, |buffers| self.answer(buffers));
        self.active = Some(active);
    }

    fn answer(&mut self, buffers: Buffers<'_>) -> u32 {
        let mut request = [0; REQUEST];
        // A driver that leaves no room for the answer has asked for nothing.
        if buffers.readable.copy_to(&mut request) < REQUEST || buffers.writable.len() < RESPONSE {
            return 0;
        }
        let (kind, state) = self.carry_out(&request);
        let mut response = [0; RESPONSE];
        response[..2].copy_from_slice(&kind.to_le_bytes());
        response[8..].copy_from_slice(&state.to_le_bytes());
        buffers.writable.copy_from(&response) as u32
    }

    /// The answer's kind, and the state of the blocks if that was asked.
    fn carry_out(&mut self, request: &[u8; REQUEST]) -> (u16, u16) {
        let half = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
        let mut address = [0; 8];
        address.copy_from_slice(&request[8..16]);
        let blocks = self.blocks(u64::from_le_bytes(address), half(16));
        let answer = match (half(0), blocks) {
            (UNPLUG_ALL, _) => self.unplug(0..self.state.plugged.len()),
            (PLUG, Some(blocks)) if self.all(&blocks, false) => self.plug(blocks),
            (UNPLUG, Some(blocks)) if self.all(&blocks, true) => self.unplug(blocks),
            (STATE, Some(blocks)) => {
                let state = match (self.all(&blocks, true), self.all(&blocks, false)) {
                    (true, _) => ALL_PLUGGED,
                    (_, true) => ALL_UNPLUGGED,
                    _ => MIXED,
                };
                return (ACK, state);
            }
            _ => return (ERROR, 0),
        };
        match answer {
            Ok(kind) => (kind, 0),
            Err(error) => {
                complain!("mem: cannot change blocks: {error}");
                (ERROR, 0)
            }
        }
    }

    /// The blocks from guest address `address` on; `None` unless there are such blocks.
    fn blocks(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.region.start())?;
        let first = usize::try_from(offset / BLOCK).ok()?;
        let end = first.checked_add(count.into())?;
        (offset.is_multiple_of(BLOCK) && count > 0 && end <= self.state.plugged.len()).then_some(first..end)
    }

    fn all(&self, blocks: &Range<usize>, plugged: bool) -> bool {
        self.state.plugged[blocks.clone()].iter().all(|block| *block == plugged)
    }

    fn plug(&mut self, blocks: Range<usize>) -> io::Result<u16> {
        if self.plugged() + blocks.len() as u64 * BLOCK > self.state.requested {
            return Ok(NACK);
        }
        self.region.plug(&blocks)?;
        self.state.plugged[blocks].fill(true);
        Ok(ACK)
    }

    fn unplug(&mut self, blocks: Range<usize>) -> io::Result<u16> {
        self.region.unplug(&blocks)?;
        self.state.plugged[blocks].fill(false);
        Ok(ACK)
    }

    /// The configuration space.
    fn config(&self) -> [u8; 56] {
        let mut space = [0; 56];
        let fields = [BLOCK, 0, self.region.start(), self.size(), self.size(), self.plugged(), self.state.requested];
        for (place, field) in space.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        let failed = |step| move |source| ActivateError { device: "mem", step, source };
        if active.features & VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE == 0 {
            let why = io::Error::other("the driver wants to read unplugged memory");
            return Err(failed("agree with its driver")(why));
        }
        self.watch(&active).map_err(failed("watch its queue"))?;
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
        if self.plugged() > 0 {
            return Err(SaveError { device: "mem", what: "memory that was plugged" });
        }
        Ok(DeviceState::Mem(self.state.clone()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Mem(state) = state else { return Err(RestoreError::Kind { device: "mem" }) };
        RestoreError::check_version("mem", state.version, STATE_VERSION)?;
        RestoreError::check("mem", "the number of blocks", &state.plugged.len(), &self.state.plugged.len())?;
        if state.plugged.contains(&true) {
            let (saved, now) = ("plugged".into(), "empty".into());
            return Err(RestoreError::Differs { device: "mem", what: "a block", saved, now });
        }
        self.state.requested = state.requested;
        Ok(())
    }
}

//! The device as the transport sees it, and the way of frames.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::offload;
use super::receive::{Delivery, deliver};
use super::state::{NetState, STATE_VERSION};
use super::tap::Tap;
use super::{
    DEVICE_TYPE, F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6,
    F_MRG_RXBUF, HEADER, MAX_FRAME, QUEUE_SIZES, RECEIVE_BUDGET, RX, TX,
};
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, INTERRUPT_AFTER, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice,
};
use crate::event_loop::Poller;

/// The network interface.
pub(crate) struct Net {
    pub(super) state: NetState,
    pub(super) tap: Tap,
    /// Whether the main loop watches the tap: not while the guest has no room for frames.
    pub(super) watches_tap: bool,
    pub(super) poller: Option<Poller>,
    pub(super) active: Option<Activation>,
    /// The last frame that the tap gave.
    incoming: Vec<u8>,
    /// Its length while no buffer could take it, else 0.
    pending: usize,
    /// The last frame that the guest gave.
    outgoing: Vec<u8>,
}

impl Net {
    /// A network interface behind `tap`.
    pub(crate) fn new(tap: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            state: NetState { version: STATE_VERSION, features: 0 },
            tap: Tap::new(tap)?,
            watches_tap: false,
            poller: None,
            active: None,
            incoming: vec![0; MAX_FRAME],
            pending: 0,
            outgoing: vec![0; MAX_FRAME],
        })
    }

    /// Moves frames from the tap to the guest until one of them has no more. The guest gets one interrupt for all frames,
    /// or one every [`INTERRUPT_AFTER`].
    pub(super) fn receive(&mut self) {
        let watch = self.receive_frames();
        self.tell_of_frames(Duration::ZERO, &mut Instant::now());
        self.watch_tap(watch);
    }

    /// Interrupts the guest for the frames that it got, unless that was done less than `every` ago.
    fn tell_of_frames(&mut self, every: Duration, last: &mut Instant) {
        if let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active {
            queues[RX].interrupt_every(every, last, memory, interrupt);
        }
    }

    /// Answers whether the tap is to be watched: it is empty, or has more than one turn takes.
    fn receive_frames(&mut self) -> bool {
        let mut told = Instant::now();
        for _ in 0..RECEIVE_BUDGET {
            if self.pending == 0 {
                match self.tap.read(&mut self.incoming) {
                    Ok(length) if length < HEADER => continue,
                    Ok(length) => self.pending = length,
                    Err(error) => {
                        let empty = error.kind() == io::ErrorKind::WouldBlock;
                        if !empty {
                            complain!("net: cannot read from the tap: {error}");
                        }
                        return empty;
                    }
                }
            }
            if !self.deliver_pending() {
                return false;
            }
            self.tell_of_frames(INTERRUPT_AFTER, &mut told);
        }
        true // the tap is readable still, and reports again
    }

    /// Tries to give the pending frame to the guest; false when it has no buffers for it, and will kick when it has.
    fn deliver_pending(&mut self) -> bool {
        let Some(Activation { memory, queues, .. }) = &mut self.active else { return false };
        let merge = self.state.features & F_MRG_RXBUF != 0;
        let frame = &mut self.incoming[..self.pending];
        let done = deliver(&mut queues[RX], memory, merge, frame) == Delivery::Done;
        if done {
            self.pending = 0;
        }
        done
    }

    /// The guest gave new receive buffers: useful if it had none.
    pub(super) fn receive_kick(&mut self) {
        if let Some(active) = &self.active {
            active.queues[RX].take_kick();
            if !self.watches_tap {
                self.receive();
            }
        }
    }

    /// Sends what the guest has queued.
    pub(super) fn transmit(&mut self) {
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active else { return };
        let (tap, frame, features) = (&self.tap, &mut self.outgoing, self.state.features);
        queues[TX].take_kick();
        queues[TX].serve(memory, interrupt, |buffers| {
            let length = buffers.readable.len();
            if (HEADER..=MAX_FRAME).contains(&length) {
                buffers.readable.copy_to(&mut frame[..length]);
                if !offload::is_negotiated(frame[0], frame[1], features) {
                    return 0;
                }
                // What the tap refuses is lost, as on a wire: it checks headers and lengths itself.
                let _ = tap.write(&frame[..length]);
            }
            0
        });
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1
            | VIRTIO_F_EVENT_IDX
            | F_CSUM
            | F_GUEST_CSUM
            | F_GUEST_TSO4
            | F_GUEST_TSO6
            | F_GUEST_ECN
            | F_HOST_TSO4
            | F_HOST_TSO6
            | F_HOST_ECN
            | F_MRG_RXBUF
    }

    fn keeps_configuration(&self) -> bool {
        true
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        let failed = |step| move |source| ActivateError { device: "net", step, source };
        self.tap.configure(active.features).map_err(failed("configure the tap"))?;
        self.watch(&active).map_err(failed("watch its queues"))?;
        self.state.features = active.features;
        self.active = Some(active);
        self.watch_tap(true);
        Ok(())
    }

    fn reset(&mut self) {
        self.watch_tap(false);
        if let Some(active) = self.active.take() {
            self.unwatch(&active);
        }
        self.state.features = 0;
        self.pending = 0;
    }

    fn pause(&mut self) -> Option<Activation> {
        let active = self.active.take()?;
        self.watch_tap(false);
        self.unwatch(&active);
        Some(active)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Net(self.state.clone()))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else { return Err(RestoreError::Kind { device: "net" }) };
        RestoreError::check_version("net", state.version, STATE_VERSION)?;
        Ok(())
    }
}

//! Reads and writes of the register page.

use std::io;
use std::sync::{Arc, Mutex};

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Slot, TransportState, register, status};
use crate::devices::virtio::saved::{Position, RestoreError, SaveError, SavedDevice};
use crate::devices::virtio::{ActivateError, Activation, Interrupt, QueueLine, VirtioDevice};
use crate::event_loop::lock;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"CFDM");
/// Of devices that keep their configuration.
const VENDOR_QUEUES_ONLY: u32 = u32::from_le_bytes(*b"CFDQ");

/// One device's registers, reached by all vCPUs.
pub(crate) struct Transport {
    slot: Slot,
    memory: GuestMemoryMmap,
    device: Arc<Mutex<dyn VirtioDevice>>,
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    state: TransportState,
    /// What the device serves, while it is paused.
    paused: Option<Activation>,
}

impl Transport {
    /// A transport for `device`.
    pub(crate) fn new(slot: Slot, memory: GuestMemoryMmap, device: Arc<Mutex<dyn VirtioDevice>>) -> io::Result<Self> {
        Self::with_line(slot, memory, device, event_fd()?)
    }

    /// A transport whose interrupt line is raised by `line`, which may be that of others, too: a
    /// driver asks each device of a line whether it is meant.
    pub(crate) fn with_line(
        slot: Slot,
        memory: GuestMemoryMmap,
        device: Arc<Mutex<dyn VirtioDevice>>,
        line: EventFd,
    ) -> io::Result<Self> {
        let locked = lock(&device);
        let state = TransportState::new(locked.queue_sizes());
        let kicks = locked.queue_sizes().iter().map(|_| event_fd()).collect::<io::Result<_>>()?;
        drop(locked);
        Ok(Self { slot, memory, device, interrupt: Interrupt::new(line), kicks, state, paused: None })
    }

    /// Where the guest finds it.
    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    /// The eventfds of the queues' kicks, by number.
    pub(crate) fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The device's interrupt line.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Stops the device, for the end of the VM.
    pub(crate) fn shut_down(&mut self) {
        self.reset();
    }

    /// Resets the device and the registers as a driver would, but never waits: see
    /// [`VirtioDevice::reset_now`].
    pub(crate) fn reset_now(&mut self) -> bool {
        let done = lock(&self.device).reset_now();
        if done {
            self.clear();
        }
        done
    }

    /// Has the device pause: it uses neither queues nor guest memory until [`Self::resume`].
    pub(crate) fn pause(&mut self) {
        if let Some(active) = lock(&self.device).pause() {
            self.paused = Some(active);
        }
    }

    /// Lets the device go on where it was paused, and has it look at all of its queues.
    pub(crate) fn resume(&mut self) -> Result<(), ActivateError> {
        let Some(active) = self.paused.take() else { return Ok(()) };
        lock(&self.device).activate(active)?;
        (0..).zip(&self.kicks).for_each(|(queue, _)| self.kick(queue));
        self.interrupt.repeat();
        Ok(())
    }

    /// The device's state and the registers'. It is paused.
    pub(crate) fn save(&self) -> Result<SavedDevice, SaveError> {
        let device = lock(&self.device);
        let position = |line: &QueueLine| Position { available: line.queue.next_avail(), used: line.queue.next_used() };
        Ok(SavedDevice {
            kind: device.device_type(),
            registers: self.state.clone(),
            interrupt_status: self.interrupt.status(),
            generation: self.interrupt.generation(),
            positions: self.paused.as_ref().map(|active| active.queues.iter().map(position).collect()),
            device: device.save()?,
        })
    }

    /// Makes the device and its registers, which nobody has used, what they were when `saved` was.
    /// The device is paused.
    pub(crate) fn restore(&mut self, saved: &SavedDevice) -> Result<(), RestoreError> {
        let address = self.slot.address;
        let invalid = |why| RestoreError::Registers { address, why };
        let mut device = lock(&self.device);
        let kind = device.device_type();
        if saved.kind != kind {
            return Err(invalid(format!("they are those of a virtio device {}, and this one is a {kind}", saved.kind)));
        }
        saved.registers.check(device.queue_sizes(), device.features()).map_err(invalid)?;
        device.restore(&saved.device)?;
        drop(device);
        self.state = saved.registers.clone();
        self.interrupt.restore(saved.interrupt_status, saved.generation);
        let positions = match &saved.positions {
            None if !self.state.serves() => return Ok(()),
            Some(positions) if self.state.serves() && positions.len() == self.kicks.len() => positions,
            _ => return Err(invalid("the queues' positions are not those of a device that serves".into())),
        };
        self.paused = Some(self.activation(Some(positions)).map_err(invalid)?);
        Ok(())
    }

    /// The guest reads `data.len()` bytes at `offset` of the page. What is not there reads as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            lock(&self.device).read_config(offset, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => lock(&self.device).device_type(),
            register::VENDOR_ID if lock(&self.device).keeps_configuration() => VENDOR_QUEUES_ONLY,
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(lock(&self.device).features(), self.state.device_features_sel),
            register::QUEUE_SIZE_MAX => self.state.selected().map_or(0, |queue| u32::from(queue.max_size)),
            register::QUEUE_READY => self.state.selected().map_or(0, |queue| u32::from(queue.ready)),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.state.status,
            // No shared memory regions: length and base read as all ones (§4.2.2).
            register::SHM_FIRST..=register::SHM_LAST => u32::MAX,
            register::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    /// The guest writes `data` at `offset` of the page. What makes no sense now is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            if self.state.status & status::DRIVER != 0 {
                lock(&self.device).write_config(offset, data);
            }
        } else if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.state.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.state.driver_features_sel = value,
            register::DRIVER_FEATURES if self.state.negotiates() => {
                let select = self.state.driver_features_sel;
                set_half(&mut self.state.driver_features, select, value);
            }
            register::QUEUE_SEL => self.state.queue_sel = value,
            register::QUEUE_READY => {
                if let Some(queue) = self.state.writable_queue() {
                    queue.ready = value == 1;
                }
            }
            register::QUEUE_NOTIFY => self.kick(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Sizes and addresses: frozen while their queue is ready.
    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.state.writable_queue().filter(|queue| !queue.ready) else { return };
        match offset {
            register::QUEUE_SIZE => queue.size = value,
            register::QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            register::QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            register::QUEUE_DRIVER_LOW => set_half(&mut queue.driver, 0, value),
            register::QUEUE_DRIVER_HIGH => set_half(&mut queue.driver, 1, value),
            register::QUEUE_DEVICE_LOW => set_half(&mut queue.device, 0, value),
            register::QUEUE_DEVICE_HIGH => set_half(&mut queue.device, 1, value),
            _ => {}
        }
    }

    /// A kick that no ioeventfd took.
    fn kick(&self, queue: u32) {
        if let Some(kick) = self.kicks.get(queue as usize)
            && let Err(error) = kick.write(1)
        {
            complain!("cannot pass a kick of queue {queue} on: {error}");
        }
    }

    /// The driver's progress: bits are only ever added, in order; zero is a reset.
    fn write_status(&mut self, value: u32) {
        let old = self.state.status;
        if value == 0 {
            self.reset();
            return;
        }
        let added = value & !old & !status::NEEDS_RESET;
        let kept = old & !status::NEEDS_RESET;
        if value & kept != kept {
            return; // only a reset clears bits
        }
        if added & status::FAILED != 0 {
            self.state.status |= status::FAILED;
            return;
        }
        if old & status::FAILED != 0 {
            return;
        }
        match added {
            status::ACKNOWLEDGE if old == 0 => self.state.status |= status::ACKNOWLEDGE,
            status::DRIVER if old == status::ACKNOWLEDGE => self.state.status |= status::DRIVER,
            status::FEATURES_OK
                if old == status::ACKNOWLEDGE | status::DRIVER
                    && self.state.features_acceptable(lock(&self.device).features()) =>
            {
                self.state.status |= status::FEATURES_OK;
            }
            status::DRIVER_OK if old == status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK => self.activate(),
            _ => {}
        }
    }

    fn reset(&mut self) {
        lock(&self.device).reset();
        self.clear();
    }

    fn clear(&mut self) {
        self.paused = None;
        self.interrupt.acknowledge(u32::MAX);
        self.state.reset();
    }

    fn activate(&mut self) {
        self.state.status |= status::DRIVER_OK;
        if let Err(why) = self.start_device() {
            let kind = lock(&self.device).device_type();
            complain!("virtio device {kind} at {:#x} is not started: {why}", self.slot.address);
            self.state.status |= status::NEEDS_RESET;
            self.interrupt.config_changed();
        }
    }

    /// What the device gets when it starts; its queues stand at `positions`.
    fn activation(&self, positions: Option<&[Position]>) -> Result<Activation, String> {
        let mut queues = self.state.build_queues(&self.memory)?;
        for (queue, position) in queues.iter_mut().zip(positions.unwrap_or_default()) {
            queue.set_next_avail(position.available);
            queue.set_next_used(position.used);
        }
        let lines = queues.into_iter().zip(&self.kicks);
        let lines = lines.map(|(queue, kick)| Ok(QueueLine::new(queue, kick.try_clone()?)));
        let queues = lines.collect::<io::Result<_>>().map_err(|error| format!("no eventfd: {error}"))?;
        Ok(Activation {
            memory: self.memory.clone(),
            features: self.state.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        })
    }

    fn start_device(&mut self) -> Result<(), String> {
        let active = self.activation(None)?;
        lock(&self.device).activate(active).map_err(|error| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
    }

    /// The registers, for tests.
    #[cfg(test)]
    pub(super) fn state(&self) -> &TransportState {
        &self.state
    }
}

fn event_fd() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// The 32 bits of `word` that `select` means; beyond the word they are zero.
fn half(word: u64, select: u32) -> u32 {
    match select {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

/// Replaces the 32 bits of `word` that `select` means.
fn set_half(word: &mut u64, select: u32, value: u32) {
    match select {
        0 => *word = *word & !0xffff_ffff | u64::from(value),
        1 => *word = *word & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}

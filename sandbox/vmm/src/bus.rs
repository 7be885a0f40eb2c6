//! Where an access of a vCPU goes that KVM did not serve itself: I/O ports and memory-mapped registers.

use std::sync::{Arc, Mutex};

use cofferdam_proto::monitor::{
    ExitReason, GUEST_EVENT_AGENT_LISTENING, GUEST_EVENT_AGENT_STARTED, GUEST_EVENT_PORT, GUEST_EVENT_POWER_OFF,
};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::serial::{self, SerialPort};
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::mmio::Transport;
use crate::devices::virtio::saved::{SaveError, SavedDevice};
use crate::ending::Ending;
use crate::event_loop::lock;
use crate::memory::{MMIO_DEVICE_SIZE, MMIO_START};
use crate::timeline::Timeline;

/// Command port of the keyboard controller, which reads as "ready" and can reset the machine.
const KEYBOARD_COMMAND: u16 = 0x64;
/// Pulses the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// Data port of the clock chip. There is none; zeros say "no update is going on", which nobody waits for.
const CMOS_DATA: u16 = 0x71;

/// Everything that a vCPU can reach.
pub(crate) struct Bus {
    transports: Vec<Mutex<Transport>>,
    serial: Arc<Mutex<SerialPort>>,
    ending: Arc<Ending>,
    timeline: Arc<Timeline>,
    /// Becomes readable when the guest's agent listens.
    agent_listens: Arc<EventFd>,
}

impl Bus {
    /// A bus; `transports` are in the order of their slots.
    pub(crate) fn new(
        transports: Vec<Transport>,
        serial: Arc<Mutex<SerialPort>>,
        ending: Arc<Ending>,
        timeline: Arc<Timeline>,
        agent_listens: Arc<EventFd>,
    ) -> Self {
        Self { transports: transports.into_iter().map(Mutex::new).collect(), serial, ending, timeline, agent_listens }
    }

    /// IN. What is not there reads as all ones.
    pub(crate) fn port_in(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let [byte] = data {
            match port {
                serial::BASE..=serial::LAST => *byte = lock(&self.serial).read((port - serial::BASE) as u8),
                KEYBOARD_COMMAND | CMOS_DATA => *byte = 0,
                _ => {}
            }
        }
    }

    /// OUT.
    pub(crate) fn port_out(&self, port: u16, data: &[u8]) {
        if port == serial::BASE {
            // More than one byte is a string instruction: all of them are for the same port.
            let mut serial = lock(&self.serial);
            data.iter().for_each(|byte| serial.write(0, *byte));
            return;
        }
        let [byte] = *data else { return };
        match port {
            serial::BASE..=serial::LAST => lock(&self.serial).write((port - serial::BASE) as u8, byte),
            KEYBOARD_COMMAND if byte == KEYBOARD_RESET => {
                self.ending.finish(ExitReason::GuestReset, "the guest reset the machine");
            }
            GUEST_EVENT_PORT => self.guest_event(byte),
            _ => {}
        }
    }

    fn guest_event(&self, event: u8) {
        match event {
            GUEST_EVENT_POWER_OFF => self.ending.finish(ExitReason::PowerOff, "the guest powered off"),
            GUEST_EVENT_AGENT_STARTED => self.timeline.mark(&self.timeline.agent_started),
            GUEST_EVENT_AGENT_LISTENING => {
                self.timeline.mark(&self.timeline.agent_listening);
                if let Err(error) = self.agent_listens.write(1) {
                    complain!("cannot tell that the agent listens: {error}");
                }
            }
            _ => {}
        }
    }

    /// A read of memory that is no RAM. What is not there reads as all ones.
    pub(crate) fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match self.transport(address) {
            Some((transport, offset)) => lock(transport).read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A write to memory that is no RAM.
    pub(crate) fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.transport(address) {
            lock(transport).write(offset, data);
        }
    }

    fn transport(&self, address: u64) -> Option<(&Mutex<Transport>, u64)> {
        let offset = address.checked_sub(MMIO_START)?;
        let transport = self.transports.get(usize::try_from(offset / MMIO_DEVICE_SIZE).ok()?)?;
        Some((transport, offset % MMIO_DEVICE_SIZE))
    }

    /// The device with this number.
    pub(crate) fn device(&self, number: usize) -> Option<&Mutex<Transport>> {
        self.transports.get(number)
    }

    /// Has all devices pause, when no vCPU runs.
    pub(crate) fn pause(&self) {
        self.transports.iter().for_each(|transport| lock(transport).pause());
    }

    /// Lets all devices go on.
    pub(crate) fn resume(&self) -> Result<(), ActivateError> {
        self.transports.iter().try_for_each(|transport| lock(transport).resume())
    }

    /// The state of all devices, which are paused, in the order of their slots.
    pub(crate) fn save(&self) -> Result<Vec<SavedDevice>, SaveError> {
        self.transports.iter().map(|transport| lock(transport).save()).collect()
    }

    /// Stops all devices; they have finished what they had begun.
    pub(crate) fn shut_down(&self) {
        for transport in &self.transports {
            lock(transport).shut_down();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::mmio::Slot;
    use crate::devices::virtio::rng::Rng;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn bus() -> Bus {
        let memory = crate::memory::map(32).unwrap();
        let device = Arc::new(Mutex::new(Rng::new()));
        let transport = Transport::new(Slot::new(0).unwrap(), memory, device).unwrap();
        let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
        let agent_listens = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        Bus::new(vec![transport], serial, Ending::new().unwrap(), Arc::new(Timeline::new()), agent_listens)
    }

    #[test]
    fn what_is_not_there_reads_as_ones() {
        let bus = bus();
        for port in [0, 0x60, 0x3f7, 0x400, 0x605, 0xcf8, 0xffff] {
            let mut data = [0; 4];
            bus.port_in(port, &mut data);
            assert_eq!(data, [0xff; 4], "port {port:#x}");
        }
        for address in [0, MMIO_START - 4, MMIO_START + MMIO_DEVICE_SIZE, u64::MAX - 3] {
            let mut data = [0; 4];
            bus.mmio_read(address, &mut data);
            bus.mmio_write(address, &data);
            assert_eq!(data, [0xff; 4], "address {address:#x}");
        }
        let mut magic = [0; 4];
        bus.mmio_read(MMIO_START, &mut magic);
        assert_eq!(&magic, b"virt");
    }

    #[test]
    fn a_string_written_at_once_is_console_text() {
        let bus = bus();
        bus.port_out(serial::BASE, b"one ");
        bus.port_out(serial::BASE, b"b");
        assert_eq!(lock(&bus.serial).tail(100), "one b");
    }

    #[test]
    fn the_guest_ends_and_tells() {
        let bus = bus();
        bus.port_out(GUEST_EVENT_PORT, &[GUEST_EVENT_AGENT_STARTED]);
        bus.port_out(GUEST_EVENT_PORT, &[99]);
        bus.port_out(KEYBOARD_COMMAND, &[0xd1]);
        assert!(bus.timeline.milestones().agent_started_us > 0);
        assert_eq!(bus.ending.end(), None);
        bus.port_out(KEYBOARD_COMMAND, &[KEYBOARD_RESET]);
        bus.port_out(GUEST_EVENT_PORT, &[GUEST_EVENT_POWER_OFF]);
        assert_eq!(bus.ending.end().unwrap().reason, ExitReason::GuestReset);
    }
}

//! The serial port (a 16550A at 0x3f8, interrupt 4): the kernel's last words in a ring. No input.

use std::collections::VecDeque;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::counters::INTERRUPTS;

/// First I/O port.
pub(crate) const BASE: u16 = 0x3f8;
/// Last I/O port.
pub(crate) const LAST: u16 = BASE + 7;
/// Interrupt line.
pub(crate) const IRQ: u32 = 4;
/// Bytes of output that are kept.
const RING: usize = 32 << 10;

/// The port's registers; what was written to the console is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SerialRegisters {
    /// Low and high half.
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
}

/// The port.
pub(crate) struct SerialPort(Serial<Irq, NoEvents, Ring>);

impl SerialPort {
    /// A port whose interrupt is an eventfd: see [`Self::irqfd`].
    pub(crate) fn new() -> io::Result<Self> {
        let irq = Irq(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self(Serial::new(irq, Ring::default())))
    }

    /// A port that goes on with `registers`.
    pub(crate) fn restore(registers: &SerialRegisters) -> io::Result<Self> {
        let state = SerialState {
            baud_divisor_low: registers.baud_divisor[0],
            baud_divisor_high: registers.baud_divisor[1],
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: Vec::new(),
        };
        let irq = Irq(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let port = Serial::from_state(&state, irq, NoEvents, Ring::default());
        port.map(Self).map_err(|error| io::Error::other(format!("the serial port's interrupt: {error:?}")))
    }

    /// What [`Self::restore`] needs.
    pub(crate) fn registers(&self) -> SerialRegisters {
        let state = self.0.state();
        SerialRegisters {
            baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// To be bound to [`IRQ`].
    pub(crate) fn irqfd(&self) -> &EventFd {
        &self.0.interrupt_evt().0
    }

    /// The guest reads the register at `offset` of [`BASE`].
    pub(crate) fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// The guest writes the register at `offset` of [`BASE`].
    pub(crate) fn write(&mut self, offset: u8, value: u8) {
        // The ring takes everything; what can fail is only the interrupt, which was counted and reported.
        let _ = self.0.write(offset, value);
    }

    /// The newest output, up to `limit` bytes, fit to be shown on a terminal: what is no text is replaced or escaped.
    pub(crate) fn tail(&self, limit: usize) -> String {
        let bytes = &self.0.writer().0;
        let skip = bytes.len().saturating_sub(limit);
        let tail: Vec<u8> = bytes.iter().skip(skip).copied().collect();
        let mut text = String::with_capacity(tail.len());
        for character in String::from_utf8_lossy(&tail).chars() {
            match character {
                '\r' => {} // the guest's kernel ends lines so
                '\n' | '\t' => text.push(character),
                control if control.is_control() => text.extend(control.escape_unicode()),
                other => text.push(other),
            }
        }
        text
    }
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        INTERRUPTS.add();
        self.0.write(1)
    }
}

/// The last [`RING`] bytes.
#[derive(Default)]
struct Ring(VecDeque<u8>);

impl Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kept = &bytes[bytes.len().saturating_sub(RING)..];
        let excess = (self.0.len() + kept.len()).saturating_sub(RING);
        self.0.drain(..excess);
        self.0.extend(kept);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_output() {
        let mut port = SerialPort::new().unwrap();
        for byte in b"first".iter().chain(&[b'x'; RING]).chain(b"last \xff") {
            port.write(0, *byte);
        }
        assert_eq!(port.tail(6), "last \u{fffd}");
        let all = port.tail(usize::MAX);
        assert!(all.starts_with('x') && all.len() == RING - 1 + '\u{fffd}'.len_utf8());
        assert_eq!(port.tail(0), "");
    }

    #[test]
    fn a_restored_port_has_the_registers() {
        let mut port = SerialPort::new().unwrap();
        for (offset, value) in [(3, 0x80), (0, 7), (1, 1), (3, 3), (1, 2), (4, 0xb), (7, 0x5a)] {
            port.write(offset, value);
        }
        let again = SerialPort::restore(&port.registers()).unwrap();
        assert_eq!(again.registers(), port.registers());
        assert_eq!((again.registers().baud_divisor, again.registers().scratch), ([7, 1], 0x5a));
    }

    #[test]
    fn control_characters_are_escaped() {
        let mut port = SerialPort::new().unwrap();
        b"a\r\n\x1b[2Jb\0".iter().for_each(|byte| port.write(0, *byte));
        assert_eq!(port.tail(100), "a\n\\u{1b}[2Jb\\u{0}");
    }

    #[test]
    fn any_register_access_is_harmless() {
        let mut port = SerialPort::new().unwrap();
        for value in 0..=255 {
            for offset in 0..8 {
                port.write(offset, value);
                port.read(offset);
            }
        }
    }
}

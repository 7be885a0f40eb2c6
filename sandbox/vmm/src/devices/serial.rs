//! The serial port (a 16550A at 0x3f8, interrupt 4): the kernel's last words in a ring. No input.

use std::collections::VecDeque;
use std::io::{self, Write};

use vm_superio::serial::NoEvents;
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

/// The port.
pub(crate) struct SerialPort(Serial<Irq, NoEvents, Ring>);

impl SerialPort {
    /// A port whose interrupt is an eventfd: see [`Self::irqfd`].
    pub(crate) fn new() -> io::Result<Self> {
        let irq = Irq(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self(Serial::new(irq, Ring::default())))
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

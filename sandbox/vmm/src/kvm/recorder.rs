//! The last exits of a vCPU, for the report of a VM that crashed: they tell how far its guest had come.

use std::collections::VecDeque;
use std::fmt;

/// How many different exits in a row are kept.
const KEPT: usize = 16;

/// Why a vCPU came out of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// IN from a port.
    PortIn(u16),
    /// OUT to a port.
    PortOut(u16),
    /// A read of memory that is no RAM.
    Read(u64),
    /// A write to memory that is no RAM.
    Write(u64),
    /// A signal, or KVM wanted to be called again.
    Interrupted,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PortIn(port) => write!(f, "in {port:#x}"),
            Self::PortOut(port) => write!(f, "out {port:#x}"),
            Self::Read(address) => write!(f, "read {address:#x}"),
            Self::Write(address) => write!(f, "write {address:#x}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// What a vCPU did last. The same exit several times in a row takes one place.
pub(super) struct Recorder {
    last: VecDeque<(Exit, u64)>,
}

impl Recorder {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self { last: VecDeque::with_capacity(KEPT) }
    }

    /// Notes `exit`.
    pub(super) fn note(&mut self, exit: Exit) {
        match self.last.back_mut() {
            Some((same, count)) if *same == exit => *count = count.saturating_add(1),
            _ => {
                if self.last.len() == KEPT {
                    self.last.pop_front();
                }
                self.last.push_back((exit, 1));
            }
        }
    }
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.last.is_empty() {
            return f.write_str("no exit before");
        }
        f.write_str("exits before: ")?;
        for (number, (exit, count)) in self.last.iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            let times = if *count > 1 { format!(" x{count}") } else { String::new() };
            write!(f, "{separator}{exit}{times}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_exits_are_told_in_order_and_bounded() {
        let mut recorder = Recorder::new();
        assert_eq!(recorder.to_string(), "no exit before");
        for _ in 0..1200 {
            recorder.note(Exit::PortOut(0x3f8));
        }
        recorder.note(Exit::Read(0xd000_0060));
        recorder.note(Exit::Write(0xd000_0064));
        recorder.note(Exit::PortIn(0x3fd));
        let text = "exits before: out 0x3f8 x1200, read 0xd0000060, write 0xd0000064, in 0x3fd";
        assert_eq!(recorder.to_string(), text);
        for address in 0..10_000 {
            recorder.note(Exit::Read(address));
            recorder.note(Exit::Interrupted);
        }
        assert_eq!((recorder.last.len(), recorder.last.capacity() < 2 * KEPT), (KEPT, true));
        assert!(recorder.to_string().ends_with("read 0x270f, interrupted"));
    }
}

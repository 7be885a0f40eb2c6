//! Architectures whose programs this kernel runs, and the numbers of their system calls.

use syscalls::{x86, x86_64};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// Programs of 64 bits.
    X86_64,
    /// Programs of 32 bits (i386).
    X86,
}

impl Arch {
    /// As the kernel names it to a filter.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
        }
    }

    /// Whether arguments have 64 bits.
    pub fn wide(self) -> bool {
        self == Self::X86_64
    }

    /// Number of a system call, if it has one of that name.
    pub fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => name.parse::<x86_64::Sysno>().ok()?.id(),
            Self::X86 => name.parse::<x86::Sysno>().ok()?.id(),
        };
        u32::try_from(number).ok()
    }
}

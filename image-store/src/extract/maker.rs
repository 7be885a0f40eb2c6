//! What a new file has by its creation, and need not be given: that is a third of the system calls
//! of a layer of small files.

use std::fs;

use rustix::fs::Stat;
use rustix::process::{getegid, geteuid};

/// Bits that creation does not give.
const SPECIAL: u32 = 0o7000;

/// This process, as the kernel sees it when it makes a file.
pub(crate) struct Maker {
    owner: (u32, u32),
    umask: u32,
}

/// What is right already.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Has {
    pub(crate) owner: bool,
    pub(crate) mode: bool,
    pub(crate) time: bool,
}

impl Maker {
    pub(crate) fn this_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self { owner: (geteuid().as_raw(), getegid().as_raw()), umask: umask(&status).unwrap_or(0o777) }
    }

    /// Whether something can be made with this mode.
    pub(crate) fn gives(&self, mode: u32) -> bool {
        mode & (self.umask | SPECIAL) == 0
    }

    /// The mode to make something with that is to have `mode`: itself, or `private` where it has to
    /// be set afterwards anyway.
    pub(crate) fn asks(&self, mode: u32, private: u32) -> u32 {
        if self.gives(mode) { mode } else { private }
    }

    /// Whether something that was made with the mode `asked` in the directory `dir` has that mode
    /// and this process' ids, and whether everything made there will: nothing is inherited from the
    /// directory, be it a group, an access control list, or by an option of the mount.
    pub(crate) fn is_plain(&self, dir: &Stat, made: &Stat, asked: u32) -> bool {
        dir.st_mode & SPECIAL & !0o1000 == 0
            && (made.st_uid, made.st_gid) == self.owner
            && made.st_mode & 0o7777 == asked
    }

    /// Whether these are the process' ids.
    pub(crate) fn is(&self, uid: u32, gid: u32) -> bool {
        self.owner == (uid, gid)
    }
}

fn umask(status: &str) -> Option<u32> {
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(value.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_that_the_umask_cuts_are_set_afterwards() {
        let maker = Maker { owner: (0, 0), umask: 0o022 };
        for (mode, asks) in [(0o644, 0o644), (0o755, 0o755), (0o400, 0o400), (0o664, 0o600), (0o4755, 0o600)] {
            assert_eq!(maker.asks(mode, 0o600), asks, "{mode:o}");
        }
        let unknown = Maker { owner: (0, 0), umask: umask("Name:\tx\n").unwrap_or(0o777) };
        assert_eq!(unknown.asks(0o644, 0o600), 0o600);
        assert_eq!(umask("Name:\tx\nUmask:\t0027\nState:\tR\n"), Some(0o027));
    }
}

//! Devices of the node, opened for a monitor.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Doing, SandboxError};
use crate::share;

/// /dev, through a mount of our own that takes no changes.
static DEV: OnceLock<OwnedFd> = OnceLock::new();

/// Opens `/dev/<name>` to read and write. Whoever has the descriptor can use the device, but not
/// change its file's mode, owner, times or attributes, which would count for the whole node: the
/// kernel refuses that on the mount that the file was opened through.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn open(name: &str) -> Result<OwnedFd, SandboxError> {
    let step = || format!("open /dev/{name}");
    let dev = match DEV.get() {
        Some(dev) => dev,
        None => {
            let made = share::unchangeable("/dev".as_ref())?;
            DEV.get_or_init(|| made)
        }
    };
    openat(dev, name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).doing(step)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use rustix::fs::AtFlags;
    use rustix::io::Errno;

    use super::*;
    use crate::testing::on_a_node;

    #[test]
    fn a_device_can_be_used_and_its_file_not_changed() {
        on_a_node(|_| async {
            let null = File::from(open("null").unwrap());
            (&null).write_all(b"x").unwrap();
            assert_eq!(rustix::fs::fchmod(&null, Mode::RUSR), Err(Errno::ROFS));
            let root = Some(rustix::fs::Uid::ROOT);
            assert_eq!(rustix::fs::chownat(&null, "", root, None, AtFlags::EMPTY_PATH), Err(Errno::ROFS));
            let link = format!("/proc/self/fd/{}", null.as_raw_fd());
            let mode = Mode::from_raw_mode(0o666);
            assert_eq!(rustix::fs::chmodat(rustix::fs::CWD, &link, mode, AtFlags::empty()), Err(Errno::ROFS));
            assert!(open("no such device").is_err());
        });
    }
}

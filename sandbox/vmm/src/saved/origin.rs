//! What a clone must have in common with the VM that was saved. The processor is not here: each
//! vCPU's state has it.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use crate::launch::Settings;

/// By whom a state was made: version and sources of the monitor.
const MONITOR: &str = concat!(env!("CARGO_PKG_VERSION"), " of sources ", env!("COFFERDAM_VMM_SOURCES"));

/// A file of the node, as long as nobody changes or replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(file: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
            changed: (stat.st_ctime, stat.st_ctime_nsec.cast_signed()),
        })
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, inode, size, changed: (seconds, nanos), .. } = self;
        write!(f, "the file {inode} of device {device:#x} with {size} bytes, changed at {seconds}.{nanos:09}")
    }
}

/// Where a state comes from, and its shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    monitor: String,
    kernel: FileIdentity,
    initramfs: FileIdentity,
    vcpus: u8,
    vcpus_max: u8,
    memory_mib: u32,
    hotplug_mib: u32,
    cmdline: String,
}

/// A state that this VM cannot go on with.
#[derive(Debug, thiserror::Error)]
#[error("the state was saved with another {what}: {saved}, and this VM has {now}")]
pub(crate) struct Mismatch {
    what: &'static str,
    saved: String,
    now: String,
}

impl Origin {
    /// That of a VM with `settings`, which boots or booted `kernel` with `initramfs`.
    pub(crate) fn new(settings: &Settings, kernel: impl AsFd, initramfs: impl AsFd) -> io::Result<Self> {
        Ok(Self {
            monitor: MONITOR.to_owned(),
            kernel: FileIdentity::of(kernel)?,
            initramfs: FileIdentity::of(initramfs)?,
            vcpus: settings.vcpus,
            vcpus_max: settings.vcpus_max,
            memory_mib: settings.memory_mib,
            hotplug_mib: settings.hotplug_mib,
            cmdline: settings.cmdline.clone(),
        })
    }

    /// The same of a VM that has got `vcpus` by now.
    pub(crate) fn with_vcpus(&self, vcpus: u8) -> Self {
        Self { vcpus, ..self.clone() }
    }

    /// Checks that a VM of `now` can go on where one of this origin was saved.
    pub(crate) fn check(&self, now: &Self) -> Result<(), Mismatch> {
        let Self { monitor, kernel, initramfs, vcpus, vcpus_max, memory_mib, hotplug_mib, cmdline } = self;
        same("monitor", monitor, &now.monitor)?;
        same("kernel", kernel, &now.kernel)?;
        same("initramfs", initramfs, &now.initramfs)?;
        same("number of vCPUs", vcpus, &now.vcpus)?;
        same("number of vCPUs that can be made", vcpus_max, &now.vcpus_max)?;
        same("size of memory (MiB)", memory_mib, &now.memory_mib)?;
        same("size of memory that can be plugged (MiB)", hotplug_mib, &now.hotplug_mib)?;
        same("kernel command line", cmdline, &now.cmdline)
    }
}

fn same<T: PartialEq + ToString>(what: &'static str, saved: &T, now: &T) -> Result<(), Mismatch> {
    if saved == now { Ok(()) } else { Err(Mismatch { what, saved: saved.to_string(), now: now.to_string() }) }
}

#[cfg(test)]
impl Origin {
    /// One for tests.
    pub(crate) fn sample() -> Self {
        let file = tempfile::tempfile().unwrap();
        let identity = FileIdentity::of(file).unwrap();
        Self {
            monitor: MONITOR.to_owned(),
            kernel: identity.clone(),
            initramfs: identity,
            vcpus: 1,
            vcpus_max: 4,
            memory_mib: 64,
            hotplug_mib: 128,
            cmdline: "a=b".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_differs_is_named() {
        let saved = Origin::sample();
        saved.check(&saved.clone()).unwrap();
        let other = FileIdentity { inode: saved.kernel.inode + 1, ..saved.kernel.clone() };
        let renewed = FileIdentity { changed: (7, 8), ..saved.kernel.clone() };
        for (now, expected) in [
            (Origin { monitor: "0.0.1 of sources ab".into(), ..saved.clone() }, "another monitor"),
            (Origin { kernel: other.clone(), ..saved.clone() }, "another kernel: the file"),
            (Origin { kernel: renewed, ..saved.clone() }, "changed at 7.000000008"),
            (Origin { initramfs: other, ..saved.clone() }, "another initramfs: the file"),
            (saved.with_vcpus(2), "another number of vCPUs: 1, and this VM has 2"),
            (Origin { vcpus_max: 1, ..saved.clone() }, "vCPUs that can be made: 4"),
            (Origin { memory_mib: 65, ..saved.clone() }, "another size of memory (MiB): 64, and this VM has 65"),
            (Origin { hotplug_mib: 0, ..saved.clone() }, "plugged (MiB): 128, and this VM has 0"),
            (Origin { cmdline: "c".into(), ..saved.clone() }, "another kernel command line: a=b, and this VM has c"),
        ] {
            let why = saved.check(&now).unwrap_err().to_string();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn a_file_is_another_one_when_it_was_changed() {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        let before = FileIdentity::of(&file).unwrap();
        assert_eq!(FileIdentity::of(&file).unwrap(), before);
        file.write_all_at(b"x", 0).unwrap();
        assert_ne!(FileIdentity::of(&file).unwrap(), before);
    }
}

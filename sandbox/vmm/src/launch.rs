#![allow(unsafe_code)] // descriptors come as numbers
//! What the launcher hands over: the [`LaunchConfig`] and its descriptors.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

use cofferdam_proto::monitor::{API_VERSION, LaunchConfig, MAX_CARDS, MAX_VCPUS};

use crate::memory::{MAX_MEMORY_MIB, MIN_MEMORY_MIB};

/// Longest configuration, bytes.
const MAX_CONFIG: u64 = 64 << 10;
/// First descriptor that may be handed over; those before are the standard streams.
const FIRST_FD: i32 = 3;

/// What is wrong with what was handed over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// The command line.
    #[error("usage: cofferdam-vmm --config-fd N")]
    Usage,
    /// A descriptor that is not there, or twice.
    #[error("cannot take descriptor {fd} for {what} over")]
    Fd {
        /// Its number.
        fd: i32,
        /// What it is for.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration cannot be read.
    #[error("cannot read the launch configuration")]
    Read(#[source] io::Error),
    /// The configuration is no `LaunchConfig`.
    #[error("malformed launch configuration")]
    Json(#[from] serde_json::Error),
    /// Another version.
    #[error("the launcher speaks version {0} of the monitor's API, this monitor {API_VERSION}")]
    Version(u32),
    /// A number is out of bounds.
    #[error("{what} must be between {min} and {max}, not {value}")]
    Bounds {
        /// Name of the value.
        what: &'static str,
        /// The value.
        value: u32,
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// A command line with other than printable ASCII.
    #[error("the kernel command line must be printable ASCII")]
    Cmdline,
}

/// A checked launch configuration, without descriptors.
pub(crate) struct Settings {
    /// Name of the pod, for log lines.
    pub(crate) name: String,
    /// vCPUs at the start.
    pub(crate) vcpus: u8,
    /// vCPUs that the guest can have later, at least those of the start.
    pub(crate) vcpus_max: u8,
    /// Guest memory.
    pub(crate) memory_mib: u32,
    /// What can be plugged later.
    pub(crate) hotplug_mib: u32,
    /// The launcher's part of the kernel command line.
    pub(crate) cmdline: String,
}

/// The descriptors, owned; none is inherited by anything.
pub(crate) struct Handed {
    /// /dev/kvm.
    pub(crate) kvm: OwnedFd,
    /// The kernel.
    pub(crate) kernel: OwnedFd,
    /// The initramfs.
    pub(crate) initrd: OwnedFd,
    /// The control socket, listening.
    pub(crate) control: OwnedFd,
    /// The vsock socket, listening.
    pub(crate) vsock: OwnedFd,
    /// The pod's share directory.
    pub(crate) share: OwnedFd,
    /// A mount namespace whose root is the share; absent when the launcher knows of none.
    pub(crate) mounts: Option<OwnedFd>,
    /// The pod's disk.
    pub(crate) disk: OwnedFd,
    /// The taps, none without a network.
    pub(crate) taps: Vec<OwnedFd>,
    /// A saved VM to go on with.
    pub(crate) restore: Option<Restore>,
}

/// A saved VM.
pub(crate) struct Restore {
    /// Its RAM.
    pub(crate) memory: OwnedFd,
    /// Everything else.
    pub(crate) state: OwnedFd,
    /// Pages that its guest will write to soon, as [`cofferdam_proto::monitor::Restore::written`].
    pub(crate) written: Vec<(u32, u32)>,
}

/// What was read from `--config-fd`.
pub(crate) struct Launch {
    config: LaunchConfig,
    taken: BTreeSet<i32>,
    /// Where the exit report goes.
    pub(crate) exit: File,
}

impl Launch {
    /// Reads the configuration that `arguments` (without the program's name) point to.
    pub(crate) fn read(arguments: impl IntoIterator<Item = String>) -> Result<Self, LaunchError> {
        let arguments: Vec<String> = arguments.into_iter().collect();
        let [flag, number] = &arguments[..] else { return Err(LaunchError::Usage) };
        let number = number.parse().ok().filter(|_| flag == "--config-fd").ok_or(LaunchError::Usage)?;
        let mut taken = BTreeSet::new();
        let file = File::from(take(&mut taken, number, "the configuration")?);
        let mut bytes = Vec::new();
        file.take(MAX_CONFIG).read_to_end(&mut bytes).map_err(LaunchError::Read)?;
        let config: LaunchConfig = serde_json::from_slice(&bytes)?;
        let exit = File::from(take(&mut taken, config.exit_fd, "the exit report")?);
        Ok(Self { config, taken, exit })
    }

    /// Checks everything and takes the descriptors over.
    pub(crate) fn check(&mut self) -> Result<(Settings, Handed), LaunchError> {
        let config = &self.config;
        let settings = settings(config)?;
        let mut take = |fd, what| take(&mut self.taken, fd, what);
        let handed = Handed {
            kvm: take(config.kvm_fd, "/dev/kvm")?,
            kernel: take(config.kernel_fd, "the kernel")?,
            initrd: take(config.initrd_fd, "the initramfs")?,
            control: take(config.control_fd, "the control socket")?,
            vsock: take(config.vsock_fd, "the vsock socket")?,
            share: take(config.share_fd, "the share directory")?,
            mounts: config.mounts_fd.map(|fd| take(fd, "the mount namespace")).transpose()?,
            disk: take(config.disk_fd, "the disk")?,
            taps: config
                .tap_fd
                .iter()
                .chain(&config.more_tap_fds)
                .map(|fd| take(*fd, "a tap"))
                .collect::<Result<_, _>>()?,
            restore: match &config.restore {
                Some(restore) => Some(Restore {
                    memory: take(restore.memory_fd, "the saved memory")?,
                    state: take(restore.state_fd, "the saved state")?,
                    written: restore.written.clone(),
                }),
                None => None,
            },
        };
        Ok((settings, handed))
    }
}

/// Checks everything that is no descriptor.
pub(crate) fn settings(config: &LaunchConfig) -> Result<Settings, LaunchError> {
    if config.api_version != API_VERSION {
        return Err(LaunchError::Version(config.api_version));
    }
    bounds("vcpus", u32::from(config.vcpus), 1, u32::from(MAX_VCPUS))?;
    bounds("vcpus_max", u32::from(config.vcpus_max), 0, u32::from(MAX_VCPUS))?;
    bounds("memory_mib", config.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
    bounds("hotplug_mib", config.hotplug_mib, 0, MAX_MEMORY_MIB)?;
    bounds("hotplug_mib modulo 2", config.hotplug_mib % 2, 0, 0)?;
    let cards = u32::try_from(config.more_tap_fds.len()).unwrap_or(u32::MAX);
    bounds("more_tap_fds", cards, 0, MAX_CARDS as u32 - 1)?;
    if !config.cmdline.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(LaunchError::Cmdline);
    }
    Ok(Settings {
        name: config.name.clone(),
        vcpus: config.vcpus,
        vcpus_max: config.vcpus_max.max(config.vcpus),
        memory_mib: config.memory_mib,
        hotplug_mib: config.hotplug_mib,
        cmdline: config.cmdline.clone(),
    })
}

fn bounds(what: &'static str, value: u32, min: u32, max: u32) -> Result<(), LaunchError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(LaunchError::Bounds { what, value, min, max }) }
}

/// Takes descriptor `fd` over: it must be open, no standard stream, and not taken before.
fn take(taken: &mut BTreeSet<i32>, fd: i32, what: &'static str) -> Result<OwnedFd, LaunchError> {
    let failed = |source| LaunchError::Fd { fd, what, source };
    if fd < FIRST_FD || !taken.insert(fd) {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is a standard stream, or given twice")));
    }
    // SAFETY: fcntl with F_SETFD touches no memory, and answers EBADF for what is not open.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: it is open; the launcher gave it to this process, and `taken` sees that it gets one owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::fd::IntoRawFd;

    use cofferdam_proto::monitor;

    use super::*;

    /// A descriptor that nothing in this test process owns.
    fn loose() -> i32 {
        tempfile::tempfile().unwrap().into_raw_fd()
    }

    fn config() -> LaunchConfig {
        LaunchConfig {
            api_version: API_VERSION,
            name: "test".into(),
            vcpus: 2,
            vcpus_max: 4,
            memory_mib: 64,
            hotplug_mib: 128,
            kernel_fd: loose(),
            initrd_fd: loose(),
            cmdline: "a=b".into(),
            control_fd: loose(),
            vsock_fd: loose(),
            exit_fd: loose(),
            kvm_fd: loose(),
            share_fd: loose(),
            mounts_fd: None,
            disk_fd: loose(),
            tap_fd: None,
            more_tap_fds: Vec::new(),
            restore: None,
        }
    }

    fn launch(config: &LaunchConfig) -> Result<(Settings, Handed), LaunchError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&serde_json::to_vec(config).unwrap()).unwrap();
        file.rewind().unwrap();
        Launch::read(["--config-fd".to_owned(), file.into_raw_fd().to_string()])?.check()
    }

    #[test]
    fn a_whole_configuration_is_taken() {
        let (settings, handed) = launch(&LaunchConfig { tap_fd: Some(loose()), ..config() }).ok().unwrap();
        assert_eq!((settings.vcpus, settings.memory_mib, settings.cmdline.as_str()), (2, 64, "a=b"));
        assert_eq!(handed.taps.len(), 1);
        assert_eq!(settings.vcpus_max, 4);
        assert!(handed.restore.is_none());
        let restore = Some(monitor::Restore { memory_fd: loose(), state_fd: loose(), written: Vec::new() });
        assert!(launch(&LaunchConfig { restore, ..config() }).ok().unwrap().1.restore.is_some());
        let flags = rustix::io::fcntl_getfd(&handed.disk).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    /// Launchers that know of no later ones say 0.
    #[test]
    fn a_guest_can_have_what_it_starts_with() {
        for vcpus_max in [0, 1] {
            let (settings, _) = launch(&LaunchConfig { vcpus_max, ..config() }).ok().unwrap();
            assert_eq!((settings.vcpus, settings.vcpus_max), (2, 2));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let twice = config();
        for (config, expected) in [
            (LaunchConfig { api_version: 9, ..config() }, "version 9"),
            (LaunchConfig { vcpus: 0, ..config() }, "vcpus must be between 1 and 32, not 0"),
            (LaunchConfig { vcpus: 33, ..config() }, "not 33"),
            (LaunchConfig { vcpus_max: 33, ..config() }, "vcpus_max must be between 0 and 32, not 33"),
            (LaunchConfig { memory_mib: 31, ..config() }, "memory_mib must be between 32"),
            (LaunchConfig { cmdline: "a\nb".into(), ..config() }, "printable"),
            (LaunchConfig { kvm_fd: 1, ..config() }, "descriptor 1 for /dev/kvm"),
            (LaunchConfig { disk_fd: -1, ..config() }, "descriptor -1 for the disk"),
            (LaunchConfig { disk_fd: 1_000_000, ..config() }, "for the disk"),
            (LaunchConfig { disk_fd: twice.kernel_fd, ..twice }, "for the disk"),
        ] {
            let error = launch(&config).err().unwrap();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn other_arguments_are_refused() {
        for arguments in [&[][..], &["--config-fd"], &["--config-fd", "x"], &["-c", "3"], &["--config-fd", "3", "4"]] {
            let error = Launch::read(arguments.iter().map(|text| (*text).to_owned())).err().unwrap();
            assert!(matches!(error, LaunchError::Usage));
        }
    }
}

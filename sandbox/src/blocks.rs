//! Block devices of the node in a running microVM.
//!
//! ```text
//!  open(path) ── descriptor ──► monitor: Plug ── slot ──► agent: AttachDisk ── "/dev/vdb" ──► device
//!  unplug(serial) ────────────► agent: DetachDisk ──────► monitor: Unplug
//! ```
//!
//! What is plugged, the monitor knows, and nobody else has to: a disk's serial is made of the
//! device's number and of what may be done with it. So one device is one disk in a pod, or two if
//! it is given both ways. Who uses it is the caller's to count.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam_proto::agent::{AttachDiskReply, AttachDiskRequest, DISKS_SINCE, DetachDiskRequest};
use cofferdam_proto::monitor::{self, Disk, MAX_DISKS};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat};
use tonic::{Response, Status};

use crate::error::{Doing, SandboxError, blocking};
use crate::pod::Pod;
use crate::spec::Kind;
use crate::{connect, share};

/// How long the guest may take to find a disk, or to let go of it; its agent gives up before.
const GUEST_LIMIT: Duration = Duration::from_secs(60);
/// How long the node may take to finish what a disk was asked before it is taken out.
const BUSY_LIMIT: Duration = Duration::from_secs(20);
/// Longest path that a guest may say a disk has, bytes.
const LONGEST: usize = 64;

/// A block device of the node, open for one pod.
#[derive(Debug)]
pub struct BlockDevice {
    fd: OwnedFd,
    serial: String,
    read_only: bool,
    mode: u32,
    owner: (u32, u32),
}

impl BlockDevice {
    /// Opens the block device at `path`, to which symlinks may lead. Whoever has its descriptor can
    /// use the device, but not change its file's mode, owner or times. Blocks.
    ///
    /// # Errors
    /// [`SandboxError::Invalid`] when there is something else; when it cannot be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, SandboxError> {
        let step = || format!("open block device {}", path.display());
        let (place, looked) = look(path)?;
        let place = share::unchangeable_file(&place).doing(step)?;
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        // Through the mount: by a name of it there is no way to the file itself.
        let link = format!("/proc/self/fd/{}", place.as_raw_fd());
        #[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
        let opened = rustix::fs::open(link, access | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
        let fd = opened.doing(step)?;
        let stat = stat_of(&fd, path)?;
        if !is_block_device(&stat) || stat.st_rdev != looked.st_rdev {
            return Err(SandboxError::Invalid(format!("{} was replaced while it was opened", path.display())));
        }
        let serial = serial(stat.st_rdev, read_only);
        Ok(Self { fd, serial, read_only, mode: stat.st_mode & 0o777, owner: (stat.st_uid, stat.st_gid) })
    }

    /// By which the pod knows it: the same for the same device and access.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

/// Whether `path` leads to a block device. Blocks.
///
/// # Errors
/// When it leads nowhere.
pub fn leads_to_block_device(path: &Path) -> Result<bool, SandboxError> {
    match look(path) {
        Ok(_) => Ok(true),
        Err(SandboxError::Invalid(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn look(path: &Path) -> Result<(OwnedFd, Stat), SandboxError> {
    let place = share::path_fd(path)?;
    let stat = stat_of(&place, path)?;
    if !is_block_device(&stat) {
        return Err(SandboxError::Invalid(format!("{} is not a block device", path.display())));
    }
    Ok((place, stat))
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn stat_of(fd: &OwnedFd, path: &Path) -> Result<Stat, SandboxError> {
    fstat(fd).doing(|| format!("look at {}", path.display()))
}

fn is_block_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
}

/// Numbers of 12 and 20 bits: at most 11 of the 20 bytes that a serial may have.
fn serial(device: u64, read_only: bool) -> String {
    let access = if read_only { 'r' } else { 'w' };
    format!("b{:x}.{:x}{access}", rustix::fs::major(device), rustix::fs::minor(device))
}

impl Pod {
    /// Gives the guest of a microVM `device` as a disk, which it may have already; answers the path
    /// that it has for the pod's agent. [`Pod::unplug`] undoes it, also when it failed.
    ///
    /// # Errors
    /// [`SandboxError::Refused`] when the guest has no place for it, or its programs are too old
    /// for it.
    pub async fn plug(&self, device: BlockDevice) -> Result<String, SandboxError> {
        self.must_know_disks().await?;
        let disks = self.status().await?.disks;
        let serial = device.serial.clone();
        if disks.len() >= MAX_DISKS && !disks.iter().any(|disk| disk.serial == serial) {
            return Err(SandboxError::Refused(format!(
                "pod {} has {MAX_DISKS} block devices, and a microVM can have no more: give it fewer, or use the \
                 runtime handler \"host\"",
                self.id()
            )));
        }
        let BlockDevice { fd, read_only, mode, owner: (uid, gid), .. } = device;
        let (inner, sent) = (Arc::clone(&self.inner), serial.clone());
        let slot = blocking(move || connect::plug(&inner.dirs, &sent, read_only, fd.as_fd())).await?;
        let (mut agent, step) = (self.agent(), format!("have the guest find disk {serial}"));
        let request = AttachDiskRequest { slot, serial, mode, uid, gid };
        let reply = self.in_guest(&step, agent.attach_disk(request)).await?;
        guest_path(reply).map_err(|why| SandboxError::step(step, why))
    }

    /// Takes the disk `serial` from the guest, whether that lets go of it or not. Idempotent.
    ///
    /// # Errors
    /// When the monitor does not answer, or the node does not finish what the disk was asked.
    pub async fn unplug(&self, serial: &str) -> Result<(), SandboxError> {
        if self.kind() == Kind::Host || self.must_run().is_err() {
            return Ok(()); // a pod that has ended has none
        }
        let there = self.status().await?.disks.into_iter().find(|disk| disk.serial == serial);
        let Some(Disk { slot, .. }) = there else { return Ok(()) };
        let (mut agent, step) = (self.agent(), format!("have the guest let go of disk {serial}"));
        if let Err(error) = self.in_guest(&step, agent.detach_disk(DetachDiskRequest { slot })).await {
            tracing::warn!(pod = self.id(), serial, %error, "a disk is taken from a guest that does not let go of it");
        }
        let began = Instant::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let (inner, asked) = (Arc::clone(&self.inner), serial.to_owned());
            if blocking(move || connect::unplug(&inner.dirs, &asked)).await? {
                return Ok(());
            }
            if began.elapsed() > BUSY_LIMIT {
                let step = format!("waiting for the node's block device behind disk {serial}, which does not answer");
                return Err(SandboxError::TimedOut { step, seconds: BUSY_LIMIT.as_secs() });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }

    /// Takes all disks from the guest whose serials are not among `kept`; none of them keeps the
    /// others from being taken.
    ///
    /// # Errors
    /// The first one of them.
    pub async fn unplug_all_but(&self, kept: &BTreeSet<String>) -> Result<(), SandboxError> {
        if self.kind() == Kind::Host || self.must_run().is_err() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for disk in self.status().await?.disks.into_iter().filter(|disk| !kept.contains(&disk.serial)) {
            tracing::warn!(pod = self.id(), serial = disk.serial, "disk that no container has is taken out");
            outcome = outcome.and(self.unplug(&disk.serial).await);
        }
        outcome
    }

    /// Refuses pods whose programs do not know how to take a disk.
    async fn must_know_disks(&self) -> Result<(), SandboxError> {
        if self.kind() == Kind::Host {
            return Err(SandboxError::Invalid("a host pod has the node's block devices themselves".into()));
        }
        self.must_run()?;
        let (monitor, agent) = (self.monitor_api().await?, self.agent_api().await?);
        if monitor < monitor::DISKS_SINCE || agent < DISKS_SINCE {
            return Err(SandboxError::Refused(format!(
                "pod {} was started by a release whose microVMs cannot be given block devices: make the pod anew \
                 (docs/upgrade.md)",
                self.id()
            )));
        }
        Ok(())
    }

    /// Waits for the agent's answer for as long as its guest may take.
    async fn in_guest<T>(
        &self,
        step: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, SandboxError> {
        tokio::select! {
            answer = call => answer.map(Response::into_inner).map_err(|status| {
                SandboxError::step(step, status.message())
            }),
            () = tokio::time::sleep(GUEST_LIMIT) => {
                Err(SandboxError::TimedOut { step: format!("trying to {step}"), seconds: GUEST_LIMIT.as_secs() })
            }
            _ = self.ended() => Err(SandboxError::Ended { id: self.id().into() }),
        }
    }
}

/// A guest's word, which goes back to it and nowhere else, but for messages.
fn guest_path(reply: AttachDiskReply) -> Result<String, String> {
    let name = reply.path.strip_prefix("/dev/").unwrap_or_default();
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain && reply.path.len() <= LONGEST {
        Ok(reply.path)
    } else {
        Err(format!("its agent says that it is at {:?}", reply.path.chars().take(LONGEST).collect::<String>()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One whose descriptor is no block device's, for what must not get so far as to use it.
    pub(crate) fn any() -> BlockDevice {
        let fd = tempfile::tempfile().unwrap().into();
        BlockDevice { fd, serial: "b7.0w".into(), read_only: false, mode: 0o660, owner: (0, 6) }
    }

    #[test]
    fn a_serial_tells_device_and_access_and_fits() {
        let device = rustix::fs::makedev(7, 300);
        assert_eq!((serial(device, false).as_str(), serial(device, true).as_str()), ("b7.12cw", "b7.12cr"));
        let largest = serial(rustix::fs::makedev(0xfff, 0xf_ffff), true);
        assert!(largest.len() <= monitor::MAX_SERIAL, "{largest}");
    }

    #[test]
    fn only_block_devices_are_opened() {
        for (path, known) in [("/dev/null", true), ("/etc/passwd", true), ("/no/such/device", false)] {
            let path = Path::new(path);
            assert_eq!(leads_to_block_device(path).ok(), known.then_some(false), "{}", path.display());
            let error = BlockDevice::open(path, true).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_block_device_can_be_used_and_its_file_not_changed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let losetup = |args: &[&str]| std::process::Command::new("losetup").args(args).output();
        let made = losetup(&["--find", "--show", file.path().to_str().unwrap()]).ok().filter(|o| o.status.success());
        let Some(made) = made else { return println!("skipped: there is no loop device") };
        let node = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&node, &link).unwrap();
        assert!(leads_to_block_device(&link).unwrap());
        for read_only in [false, true] {
            let device = BlockDevice::open(&link, read_only).unwrap();
            assert_eq!(device.serial().ends_with('r'), read_only, "{device:?}");
            assert_eq!(rustix::io::write(&device.fd, &[0; 512]).is_err(), read_only);
            assert_eq!(rustix::fs::fchmod(&device.fd, Mode::RUSR), Err(rustix::io::Errno::ROFS));
        }
        losetup(&["--detach", &node]).unwrap();
    }

    #[test]
    fn a_guest_cannot_send_the_daemon_elsewhere() {
        let path = |path: &str| guest_path(AttachDiskReply { path: path.into() });
        assert_eq!(path("/dev/vdb").unwrap(), "/dev/vdb");
        for bad in ["", "/dev/", "vdb", "/dev/../etc", "/dev/a b", "/etc/passwd", &format!("/dev/{}", "x".repeat(99))] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
    }
}

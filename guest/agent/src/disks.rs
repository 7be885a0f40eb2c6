//! Disks that come into a running microVM: the monitor fills or empties a place of which the kernel
//! was told at its boot, and the kernel has to be asked to look at it again.
//!
//! The place is a platform device of the driver `virtio-mmio`, by whose files `bind` and `unbind`
//! that is done. An empty place has no driver.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::agent::{AttachDiskReply, AttachDiskRequest, DetachDiskRequest};

use crate::agent::{Agent, Mode};
use crate::apart;
use crate::error::{Doing, Error, Kind, Result};
use crate::sys;

/// Longest serial (virtio 1.3 section 5.2.6).
const MAX_SERIAL: usize = 20;
/// Most disks that are looked at; a privileged container may make as many as it likes.
const MAX_DISKS: usize = 4096;
/// How long the kernel may take: the disk is read for its partitions.
const LIMIT: Duration = Duration::from_secs(45);

/// Has the kernel find the disk in a place; answers where it is.
///
/// # Errors
/// When there is none, or not this one.
pub async fn attach(agent: &Agent, request: AttachDiskRequest) -> Result<AttachDiskReply> {
    must_be_vm(agent)?;
    let AttachDiskRequest { slot, serial, mode, uid, gid } = request;
    if !(1..=MAX_SERIAL).contains(&serial.len()) || !serial.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::invalid(format!("{serial:?} is not a disk's serial")));
    }
    let _changing = agent.disks.lock().await;
    let kernel = Kernel::default();
    let looked = kernel.clone();
    apart::run(agent, "finds a disk", LIMIT, move || looked.attach(slot, &serial)).await?;
    let node = kernel.node(slot)?;
    // As on the node: what a container may do there by the device's owner and mode, it may here.
    let step = || format!("give {} its owner and mode", node.display());
    chown(&node, Some(uid), Some(gid)).doing(step())?;
    fs::set_permissions(&node, fs::Permissions::from_mode(mode & 0o777)).doing(step())?;
    Ok(AttachDiskReply { path: node.display().to_string() })
}

/// Has the kernel let go of what is in a place.
///
/// # Errors
/// When it does not.
pub async fn detach(agent: &Agent, request: DetachDiskRequest) -> Result<()> {
    must_be_vm(agent)?;
    let _changing = agent.disks.lock().await;
    apart::run(agent, "lets go of a disk", LIMIT, move || Kernel::default().detach(request.slot)).await
}

fn must_be_vm(agent: &Agent) -> Result<()> {
    match agent.mode {
        Mode::Vm => Ok(()),
        Mode::Host => Err(Error::precondition("a host pod has the node's disks themselves")),
    }
}

/// What the kernel shows of its disks.
#[derive(Debug, Clone)]
struct Kernel {
    driver: PathBuf,
    blocks: PathBuf,
    dev: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            driver: PathBuf::from("/sys/bus/platform/drivers/virtio-mmio"),
            blocks: PathBuf::from("/sys/block"),
            dev: PathBuf::from("/dev"),
        }
    }
}

fn platform_device(slot: u32) -> String {
    format!("virtio-mmio.{slot}")
}

impl Kernel {
    /// Binds the place to its driver, anew if what it is bound to is another disk.
    fn attach(&self, slot: u32, serial: &str) -> Result<()> {
        if self.is_bound(slot) && self.has(slot, serial)? {
            return Ok(());
        }
        self.detach(slot)?;
        self.tell("bind", slot).doing(format!("have the kernel look for disk {serial} in place {slot}"))?;
        if self.has(slot, serial)? {
            return Ok(());
        }
        let _ = self.detach(slot);
        Err(Error::precondition(format!("there is no disk {serial} in place {slot}")))
    }

    fn detach(&self, slot: u32) -> Result<()> {
        if !self.is_bound(slot) {
            return Ok(());
        }
        self.tell("unbind", slot).doing(format!("have the kernel let go of the disk in place {slot}"))
    }

    fn tell(&self, what: &str, slot: u32) -> io::Result<()> {
        sys::write_knob(&self.driver.join(what), platform_device(slot))
    }

    fn is_bound(&self, slot: u32) -> bool {
        self.driver.join(platform_device(slot)).symlink_metadata().is_ok()
    }

    /// Whether the disk in a place has this serial.
    fn has(&self, slot: u32, serial: &str) -> Result<bool> {
        let Some(name) = self.name(slot)? else { return Ok(false) };
        let path = self.blocks.join(name).join("serial");
        let text = fs::read_to_string(&path).doing(format!("read {}", path.display()))?;
        Ok(text.trim_end_matches(['\n', '\0']) == serial)
    }

    /// The name of the disk in a place: the one whose link leads through the place.
    fn name(&self, slot: u32) -> Result<Option<String>> {
        let step = || format!("list {}", self.blocks.display());
        let device = platform_device(slot);
        for entry in fs::read_dir(&self.blocks).doing(step())?.take(MAX_DISKS) {
            let entry = entry.doing(step())?;
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if target.components().any(|part| part.as_os_str() == device.as_str()) {
                return Ok(entry.file_name().into_string().ok());
            }
        }
        Ok(None)
    }

    /// The node of the disk in a place, which the kernel makes with it.
    fn node(&self, slot: u32) -> Result<PathBuf> {
        let name = self.name(slot)?.ok_or_else(|| Error::precondition(format!("there is no disk in place {slot}")))?;
        let node = self.dev.join(name);
        if !Path::exists(&node) {
            return Err(Error::new(Kind::Internal, format!("the kernel made no {}", node.display())));
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// As the kernel shows the pod's own disk in place 0, and `serial` in place 7 if there is one.
    /// What is written to `bind` and `unbind` changes nothing here.
    fn kernel(serial: Option<&str>) -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let kernel = Kernel { driver: at("driver"), blocks: at("block"), dev: at("dev") };
        for folder in [&kernel.driver, &kernel.blocks, &kernel.dev] {
            fs::create_dir(folder).unwrap();
        }
        for knob in ["bind", "unbind"] {
            fs::write(kernel.driver.join(knob), "").unwrap();
        }
        let put = |slot: u32, name: &str, serial: &str| {
            let device = format!("devices/virtio-mmio-cmdline/virtio-mmio.{slot}");
            let block = format!("{device}/virtio{slot}/block/{name}");
            fs::create_dir_all(at(&block)).unwrap();
            fs::write(at(&block).join("serial"), serial).unwrap();
            symlink(format!("../{block}"), kernel.blocks.join(name)).unwrap();
            symlink(format!("../{device}"), kernel.driver.join(platform_device(slot))).unwrap();
            fs::write(kernel.dev.join(name), "").unwrap();
        };
        put(0, "vda", "cofferdam");
        if let Some(serial) = serial {
            put(7, "vdb", serial);
        }
        (dir, kernel)
    }

    fn told(kernel: &Kernel, knob: &str) -> String {
        fs::read_to_string(kernel.driver.join(knob)).unwrap()
    }

    #[test]
    fn a_disk_is_found_by_its_place_and_serial() {
        let (_dir, kernel) = kernel(Some("b7.0w"));
        kernel.attach(7, "b7.0w").unwrap();
        assert_eq!(told(&kernel, "bind"), "", "it was bound already");
        assert_eq!(kernel.node(7).unwrap(), kernel.dev.join("vdb"));
        kernel.detach(7).unwrap();
        assert_eq!(told(&kernel, "unbind"), "virtio-mmio.7");
    }

    #[test]
    fn another_disk_in_the_place_is_not_taken_for_it() {
        let (_dir, kernel) = kernel(Some("b7.1w"));
        let error = kernel.attach(7, "b7.0w").unwrap_err();
        assert_eq!(error.chain(), "there is no disk b7.0w in place 7");
        assert_eq!((told(&kernel, "unbind"), told(&kernel, "bind")), ("virtio-mmio.7".into(), "virtio-mmio.7".into()));
    }

    #[test]
    fn an_empty_place_has_nothing() {
        let (_dir, kernel) = kernel(None);
        assert_eq!(kernel.attach(7, "b7.0w").unwrap_err().kind(), Kind::Precondition);
        assert_eq!(kernel.node(7).unwrap_err().kind(), Kind::Precondition);
        kernel.detach(7).unwrap();
        assert_eq!(told(&kernel, "unbind"), "", "nothing is bound");
        // Numbers that begin alike are other places.
        assert_eq!(kernel.name(70).unwrap(), None);
    }

    #[test]
    fn a_kernel_that_refuses_is_quoted() {
        let (_dir, kernel) = kernel(None);
        fs::remove_file(kernel.driver.join("bind")).unwrap();
        let error = kernel.attach(8, "b7.0w").unwrap_err().chain();
        assert!(error.starts_with("cannot have the kernel look for disk b7.0w in place 8: "), "{error}");
    }
}

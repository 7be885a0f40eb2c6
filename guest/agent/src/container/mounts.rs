//! What is mounted in a container's root, besides the root itself.
//!
//! The agent makes the standard set: /proc, /dev (see [`super::dev`]), /sys, /sys/fs/cgroup, and the pod's /etc/resolv.conf,
//! /etc/hosts and /etc/hostname. A mount of the request with the same destination takes its place.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use super::paths;
use super::rootfs::{Layer, attach, mount_layers, new_mount};
use super::spec::{MountSpec, Propagation, Spec};
use crate::error::{Doing, Error, Result};
use crate::sys::mount_setattr;

pub(super) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(super) const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

const PROC_MAGIC: i64 = 0x9fa0;
/// Files of /proc that a mount may cover, as in runc: they tell of the machine's size or of settings that checkpoints and
/// cryptography look at. All else would fool runtimes and tools.
const PROC_FILES: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "uptime",
    "net/dev",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// Mounts taken from the agent's or the node's own tree before the container's namespace is made.
#[derive(Debug, Default)]
pub struct Trees {
    /// The pod's or the node's /dev/shm.
    pub shm: Option<OwnedFd>,
    /// Destination and file of what the pod gives to each container.
    pub pod_files: Vec<(PathBuf, OwnedFd)>,
    /// For each bind mount, image and memory volume of the request, in order.
    pub binds: Vec<OwnedFd>,
    /// For each memory volume, in order.
    pub memory: Vec<OwnedFd>,
}

/// Copies the mount at `path`, as this process sees it, into a tree that is mounted nowhere.
///
/// # Errors
/// When there is nothing.
pub fn take(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).asked(format!("take {} for a mount", path.display()))
}

/// Copies the mount that an open file is in, from that file down.
///
/// # Errors
/// When the kernel refuses.
pub fn again(fd: impl AsFd, recursive: bool) -> std::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(open_tree(fd, "", flags)?)
}

/// A directory that must not be a link in the image: /proc and the like are where everybody looks for them.
pub(super) fn plain_dir(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root, relative, flags, Mode::empty(), resolve) {
        Ok(dir) => Ok(dir),
        Err(rustix::io::Errno::NOENT) => paths::make_dir(root, Path::new(path)),
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
            Err(Error::invalid(format!("{path} is not a directory in the image")))
        }
        Err(e) => Err(e).doing(format!("open {path} in the container's root")),
    }
}

pub(super) fn parameters(list: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    list.iter().map(|(k, v)| ((*k).to_owned(), (!v.is_empty()).then(|| (*v).to_owned()))).collect()
}

/// Makes the standard mounts but /dev.
///
/// # Errors
/// When the image stands in the way or the kernel refuses.
pub fn standard(root: &OwnedFd, spec: &Spec, trees: &mut Trees) -> Result<()> {
    if !spec.mounts_over("/proc") {
        let proc = new_mount("proc", &[], NOSUID | NODEV | NOEXEC)?;
        attach(&proc, plain_dir(root, "/proc")?, Path::new("/proc"))?;
    }
    let sys_readonly = if spec.privileged { 0 } else { RDONLY };
    if !spec.mounts_over("/sys") {
        let sys = new_mount("sysfs", &[], NOSUID | NODEV | NOEXEC | sys_readonly)?;
        attach(&sys, plain_dir(root, "/sys")?, Path::new("/sys"))?;
        if !spec.mounts_over("/sys/fs/cgroup") {
            let cgroup = new_mount("cgroup2", &[], NOSUID | NODEV | NOEXEC | sys_readonly)?;
            let place = Path::new("/sys/fs/cgroup");
            attach(&cgroup, paths::mount_point(root, place, true)?, place)?;
        }
    }
    for (destination, tree) in trees.pod_files.drain(..) {
        if spec.mounts_over(&destination.to_string_lossy()) {
            continue;
        }
        if spec.readonly_rootfs {
            mount_setattr(&tree, false, RDONLY, 0, 0).doing("make a file of the pod read-only")?;
        }
        attach(&tree, paths::mount_point(root, &destination, false)?, &destination)?;
    }
    Ok(())
}

/// Mounts the layers of an image volume and takes what is asked of it. `layer` is the container's own, which has places for that;
/// the mount namespace is the container's already.
///
/// # Errors
/// When the image has no such path, or the kernel refuses.
pub fn image(m: &MountSpec, layer: &Layer) -> Result<OwnedFd> {
    let place = layer.place()?;
    let root = mount_layers(&m.lower, &layer.nothing()?, &place)?;
    let name = || format!("find {:?} in the image of the volume at {}", m.sub_path, m.destination.display());
    let target = paths::open(&root, &m.sub_path, OFlags::PATH).asked(name())?;
    let kind = paths::file_type(&target).asked(name())?;
    if !matches!(kind, FileType::Directory | FileType::RegularFile) {
        return Err(Error::invalid(format!("{:?} in the image is neither a file nor a directory", m.sub_path)));
    }
    let tree = again(&target, false).doing("copy the mount of an image volume")?;
    unmount(&place, UnmountFlags::DETACH).doing("unmount an image volume's place")?;
    mount_setattr(&tree, false, m.attributes | RDONLY, 0, 0).doing("set the attributes of an image volume")?;
    Ok(tree)
}

/// Makes the mounts of the request, in its order. `binds` are the trees of its bind mounts, image and memory volumes.
///
/// # Errors
/// When one does not fit.
pub fn requested(root: &OwnedFd, mounts: &[MountSpec], binds: Vec<OwnedFd>) -> Result<()> {
    let mut binds = binds.into_iter();
    for m in mounts {
        let (tree, directory) = if m.is_bind() || m.is_image() || m.is_memory() || m.is_image_volume() {
            let tree = binds.next().ok_or_else(|| Error::invalid("a bind mount has no source"))?;
            let kind = paths::file_type(&tree).doing(format!("look at {}", m.source.display()))?;
            if !m.is_image() && !m.is_image_volume() {
                shape_bind(&tree, m)?;
            }
            (tree, kind == FileType::Directory)
        } else {
            let readonly = if m.readonly { RDONLY } else { 0 };
            (new_mount(&m.kind, &m.data, m.attributes | readonly)?, true)
        };
        let target = paths::mount_point(root, &m.destination, directory)?;
        check_not_in_proc(root, &target, m)?;
        attach(&tree, target, &m.destination)?;
        for path in &m.writable_below {
            open_up(&tree, path, m)?;
        }
    }
    Ok(())
}

/// Makes what lies at `path` of a read-only mount writable. Who may really write is the file server's to say: it is on the node
/// and knows which mounts there are.
fn open_up(tree: &OwnedFd, path: &Path, m: &MountSpec) -> Result<()> {
    // Other containers may move things about in the volume meanwhile: nothing but what is in it can be found.
    let place = match paths::open_below(tree, path) {
        Ok(place) => place,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(()),
        Err(e) => return Err(e).doing(format!("open {} in {}", path.display(), m.source.display())),
    };
    let copy = again(&place, false).doing(format!("copy {} of {}", path.display(), m.source.display()))?;
    mount_setattr(&copy, false, 0, RDONLY, 0).doing(format!("make {} writable", path.display()))?;
    attach(&copy, &place, &m.destination.join(path))
}

fn shape_bind(tree: &OwnedFd, m: &MountSpec) -> Result<()> {
    let name = m.source.display();
    let propagation = match m.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Shared => 0,
    };
    if propagation != 0 {
        mount_setattr(tree, true, 0, 0, propagation).doing(format!("set the propagation of {name}"))?;
    }
    let readonly = if m.readonly { RDONLY } else { 0 };
    // A mount below that lets programs or devices in would be a hole in what was asked for.
    let below = m.attributes & (NOSUID | NODEV | NOEXEC);
    if below != 0 {
        mount_setattr(tree, true, below, 0, 0).doing(format!("set the attributes of what is below {name}"))?;
    }
    let mut set = (m.attributes & !below) | readonly;
    let atime = set & (libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_STRICTATIME) != 0;
    let clear = if atime { libc::MOUNT_ATTR__ATIME } else { 0 };
    if m.recursive_readonly {
        mount_setattr(tree, true, RDONLY, 0, 0).doing(format!("make {name} read-only with what is below"))?;
        set &= !RDONLY;
    }
    if set != 0 {
        mount_setattr(tree, false, set, clear, 0).doing(format!("set the attributes of {name}"))?;
    }
    Ok(())
}

/// A mount inside /proc could make tools and security modules believe anything.
fn check_not_in_proc(root: &OwnedFd, target: &OwnedFd, m: &MountSpec) -> Result<()> {
    let on = rustix::fs::fstatfs(target).doing(format!("look at {}", m.destination.display()))?.f_type;
    if on != PROC_MAGIC || m.destination == Path::new("/proc") {
        return Ok(());
    }
    let same = |name: &str| {
        let Ok(file) = paths::open(root, &Path::new("/proc").join(name), OFlags::PATH) else { return false };
        let stat = |fd: &OwnedFd| rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH).map(|s| (s.st_dev, s.st_ino)).ok();
        stat(&file).is_some_and(|s| stat(target) == Some(s))
    };
    if PROC_FILES.iter().any(|name| same(name)) {
        return Ok(());
    }
    Err(Error::invalid(format!("{} lies inside /proc, where nothing may be mounted", m.destination.display())))
}

/// Hides paths: a directory becomes an empty one, a file becomes the /dev/null of `dev`, or of the container if that is none.
///
/// # Errors
/// When the kernel refuses; a path that is not there is fine.
pub fn mask(root: &OwnedFd, dev: Option<&OwnedFd>, list: &[PathBuf]) -> Result<()> {
    for path in list {
        let Some(target) = existing(root, path)? else { continue };
        if paths::file_type(&target).doing(format!("look at {}", path.display()))? == FileType::Directory {
            let empty = new_mount(
                "tmpfs",
                &parameters(&[("size", "0"), ("nr_inodes", "2")]),
                RDONLY | NOSUID | NODEV | NOEXEC,
            )?;
            attach(empty, target, path)?;
            continue;
        }
        // The node that this agent made, or what a mount of the request put there, if it is the null device.
        let null = match dev {
            Some(dir) => {
                rustix::fs::openat(dir, "null", OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                    .doing("open /dev/null")?
            }
            None => paths::open(root, Path::new("/dev/null"), OFlags::PATH).doing("open /dev/null")?,
        };
        check_null(&null)?;
        attach(again(&null, false).doing("copy /dev/null")?, target, path)?;
    }
    Ok(())
}

fn check_null(fd: &OwnedFd) -> Result<()> {
    let stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH).doing("look at /dev/null")?;
    let is_null =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == rustix::fs::makedev(1, 3);
    if is_null { Ok(()) } else { Err(Error::invalid("the container's /dev/null is not the null device")) }
}

/// Makes paths read-only.
///
/// # Errors
/// When the kernel refuses; a path that is not there is fine.
pub fn make_readonly(root: &OwnedFd, list: &[PathBuf]) -> Result<()> {
    for path in list {
        let Some(target) = existing(root, path)? else { continue };
        let tree = again(&target, true).doing(format!("copy {}", path.display()))?;
        mount_setattr(&tree, true, RDONLY, 0, 0).doing(format!("make {} read-only", path.display()))?;
        attach(tree, target, path)?;
    }
    Ok(())
}

/// What is at `path`, if something is.
pub(super) fn existing(root: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match paths::open(root, path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(e) => Err(e).doing(format!("open {} in the container's root", path.display())),
    }
}

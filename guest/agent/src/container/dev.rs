//! A container's /dev: a tmpfs with the usual nodes, pts, shm and mqueue.
//!
//! A mount of the request may take its place, often the node's own /dev. What every program expects
//! below it is then mounted there, as containerd does: terminals of the container's own, the pod's
//! shared memory and message queues.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};

use super::devices::{Node, STANDARD};
use super::mounts::{NODEV, NOEXEC, NOSUID, Trees, again, existing, parameters, plain_dir};
use super::paths;
use super::rootfs::{attach, new_mount};
use super::spec::{Propagation, Spec};
use crate::error::{Doing, Error, Result};
use crate::users::Users;

/// Descriptors that outlive the set-up.
#[derive(Debug)]
pub struct Dev {
    /// Instance of devpts, for terminals. It is mounted nowhere if a mount of the request has its
    /// place.
    pub pts: OwnedFd,
    /// The /dev itself, unless it is a mount of the request.
    pub dir: Option<OwnedFd>,
}

/// Makes /dev, or only what will be mounted below that of the request.
///
/// # Errors
/// When the image stands in the way or the kernel refuses.
pub fn make(root: &OwnedFd, spec: &Spec, users: Option<&Users>, trees: &mut Trees) -> Result<Dev> {
    // The group of terminals, by its number in the pod.
    let root_user = users.map_or(0, Users::root);
    let gid = users.map_or(Ok(5), |users| users.on_node(5)).unwrap_or(root_user).to_string();
    let data = parameters(&[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", &gid)]);
    let pts = new_mount("devpts", &data, NOSUID | NOEXEC)?;
    if spec.mounts_over("/dev") {
        return Ok(Dev { pts, dir: None });
    }
    let dir = nodes_and_folders(root_user)?;
    attach(&dir, plain_dir(root, "/dev")?, Path::new("/dev"))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for (name, tree) in below(&pts, spec, trees)? {
        let place = rustix::fs::openat(&dir, name, flags, Mode::empty()).doing(format!("open /dev/{name}"))?;
        attach(tree, place, &Path::new("/dev").join(name))?;
    }
    Ok(Dev { pts, dir: Some(dir) })
}

/// A /dev with nothing mounted below, attached nowhere.
fn nodes_and_folders(root_user: u32) -> Result<OwnedFd> {
    let dev =
        new_mount("tmpfs", &parameters(&[("mode", "755"), ("size", "65536k")]), NOSUID | libc::MOUNT_ATTR_STRICTATIME)?;
    // Nobody else is in this mount namespace yet, and this file system is new: names are what they
    // seem.
    for (name, major, minor) in STANDARD {
        let node = Node {
            path: PathBuf::from(name),
            kind: FileType::CharacterDevice,
            number: (major, minor),
            mode: 0o666,
            owner: (root_user, root_user),
            asked: false,
        };
        make_node(&dev, Path::new(name), &node)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).doing(format!("make /dev/{name}"))?;
    }
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(mode)).doing(format!("make /dev/{name}"))?;
    }
    Ok(dev)
}

/// What is mounted below /dev, unless a mount of the request has its place.
fn below(pts: &OwnedFd, spec: &Spec, trees: &mut Trees) -> Result<Vec<(&'static str, OwnedFd)>> {
    let mut all = Vec::new();
    if !spec.mounts_over("/dev/pts") {
        all.push(("pts", pts.try_clone().doing("copy a descriptor")?));
    }
    if !spec.mounts_over("/dev/shm")
        && let Some(shm) = trees.shm.take()
    {
        all.push(("shm", shm));
    }
    if !spec.mounts_over("/dev/mqueue") {
        all.push(("mqueue", new_mount("mqueue", &[], NOSUID | NODEV | NOEXEC)?));
    }
    Ok(all)
}

/// Whether /dev is a mount of the request whose changes reach the node: what is mounted there would
/// cover the node's own.
fn is_the_nodes(spec: &Spec) -> bool {
    let shared =
        |m: &super::spec::MountSpec| m.destination == Path::new("/dev") && m.propagation == Propagation::Shared;
    spec.mounts.iter().any(shared)
}

/// Completes the /dev of the request, after its mounts. What has no place there stays away.
///
/// # Errors
/// When the kernel refuses.
pub fn complete(root: &OwnedFd, spec: &Spec, dev: &Dev, trees: &mut Trees) -> Result<()> {
    if dev.dir.is_some() || is_the_nodes(spec) {
        return Ok(());
    }
    for (name, tree) in below(&dev.pts, spec, trees)? {
        let path = Path::new("/dev").join(name);
        let Some(place) = existing(root, &path)? else { continue };
        if paths::file_type(&place).doing(format!("look at {}", path.display()))? == FileType::Directory {
            attach(tree, place, &path)?;
        }
    }
    Ok(())
}

fn make_node(dir: impl AsFd, name: &Path, node: &Node) -> Result<()> {
    let device = rustix::fs::makedev(node.number.0, node.number.1);
    match rustix::fs::mknodat(dir.as_fd(), name, node.kind, Mode::from_raw_mode(node.mode), device) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) if node.asked => return is_there(dir, name, node),
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        Err(e) => return Err(e).doing(format!("make device {}", node.path.display())),
    }
    let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .doing(format!("give away device {}", node.path.display()))
}

/// Whether what has the place of `node` is that device: a program that is to write to a disk must
/// not write to a file of its image.
fn is_there(dir: impl AsFd, name: &Path, node: &Node) -> Result<()> {
    let shown = node.path.display();
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).doing(format!("look at {shown}"))?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) == node.kind && number == node.number {
        return Ok(());
    }
    Err(Error::invalid(format!("cannot make device {shown}: something else is there, in the image or by itself")))
}

/// Makes the devices of the request.
///
/// # Errors
/// When the kernel refuses.
pub fn device_nodes(root: &OwnedFd, nodes: &[Node]) -> Result<()> {
    for node in nodes {
        let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else { continue };
        make_node(paths::make_dir(root, parent)?, Path::new(name), node)?;
    }
    Ok(())
}

/// Binds the terminal to /dev/console.
///
/// # Errors
/// When the kernel refuses.
pub fn console(root: &OwnedFd, spec: &Spec, dev: &Dev, terminal: &OwnedFd) -> Result<()> {
    let path = Path::new("/dev/console");
    let place = match &dev.dir {
        Some(dir) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(dir, "console", flags, Mode::from_raw_mode(0o600)).doing("make /dev/console")?;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(dir, "console", flags, Mode::empty()).doing("open /dev/console")?
        }
        None if is_the_nodes(spec) => return Ok(()),
        None => match existing(root, path)? {
            Some(place) if paths::file_type(&place).doing("look at /dev/console")? != FileType::Directory => place,
            _ => return Ok(()),
        },
    };
    attach(again(terminal, false).doing("copy the terminal")?, place, path)
}

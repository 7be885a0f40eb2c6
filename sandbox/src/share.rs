#![allow(unsafe_code)] // mount_setattr has no safe wrapper
//! The share of a vm pod: what of the node its guest can see.
//!
//! `tree/` is an ordinary directory that holds mount points. A read-only mount of it is the root of the pod's own mount namespace
//! ([`place`]), which is what the file server serves: so mount points can be made through `tree/`, while a guest can make nothing in it.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::GUEST_SHARE;
use cofferdam_proto::unshared;
use rustix::fs::{FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};

use crate::dirs::{Dirs, make_private};
use crate::error::{Doing, SandboxError};
use crate::{mountinfo, users};

mod place;
mod submounts;

use place::Place;
use submounts::Submounts;

/// Folder of the volumes; no container's id.
const VOLUMES: &str = "volumes";

/// What a container may do with an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// No writes. Enforced on the node.
    pub read_only: bool,
    /// Of read-only: none in what is mounted below either.
    pub recursive: bool,
    /// What is mounted below on the node later comes in.
    pub follow: bool,
    /// Owners are shown as the pod's users. A pod with those of its machine shows them as they are.
    pub mapped: bool,
    /// Only the pod's own containers write to it (an emptyDir), so a microVM may believe for longer what it knows of it.
    pub alone: bool,
}

/// How the agent reaches an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    /// The agent's path.
    pub path: String,
    /// Below a read-only `path` that the agent sees as one mount, because it follows the node's: what stays writable
    /// (`agent::Mount.writable_below`).
    pub writable_below: Vec<PathBuf>,
    /// What was mounted below `path`, which is without it; each after those that it lies in.
    pub submounts: Vec<Submount>,
}

/// A mount below an export's source, which is an export too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submount {
    /// Its place below the source.
    pub below: PathBuf,
    /// The agent's path.
    pub path: String,
    /// No writes. Enforced on the node.
    pub read_only: bool,
}

/// A new share, for the monitor.
pub(crate) struct Share {
    /// Its root.
    pub(crate) root: OwnedFd,
    /// The mount namespace whose root that is.
    pub(crate) mounts: OwnedFd,
}

/// Makes an empty share.
pub(crate) fn create(dirs: &Dirs) -> Result<Share, SandboxError> {
    make_private(&dirs.tree())?;
    let root = copy(&path_fd(&dirs.tree())?, Access { read_only: true, ..Access::default() }, None)?;
    let mounts = place::create(&root)?;
    Ok(Share { root, mounts })
}

/// Opens a folder with all that is mounted below through mounts of our own that take no changes.
pub(crate) fn unchangeable(folder: &Path) -> Result<OwnedFd, SandboxError> {
    let step = || format!("make a read-only mount of {}", folder.display());
    let below = OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(rustix::fs::CWD, folder, below).doing(step)?;
    set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, libc::MS_PRIVATE, true).doing(step)?;
    Ok(tree)
}

/// The file that `place` is, as [`unchangeable`] shows folders.
pub(crate) fn unchangeable_file(place: &OwnedFd) -> Result<OwnedFd, SandboxError> {
    copy(place, Access { read_only: true, ..Access::default() }, None)
}

/// Shows `source`, a path without symlinks, to the pod for `container`.
///
/// ```text
/// volumes/<device>-<inode>-<rw|ro|rro>[-<p|s|e><view>]
/// ```
///
/// One source is one mount in a pod, whichever containers see it: to the file server and so to the guest it is one file, and containers
/// share its sockets, locks and mappings. What is mounted below is exported for itself: copied along, it would make its place a mount
/// point of the node, which nobody there could remove or rename as long as the pod lives. Only a source that follows the node's mounts
/// has them in it: it is another one when those have changed (`s`), and a source also when it shows its owners as the pod's users (`p`).
/// `e` says that it is the pod's alone.
/// `tree/<container>/<key>` marks who uses it. A folder's mount stays as long as the pod: a
/// container may have it read-only that another one, gone by now, had otherwise.
///
/// `users` are those of the pod's own.
pub(crate) fn export(
    dirs: &Dirs,
    container: &str,
    source: &Path,
    access: Access,
    users: Option<&OwnedFd>,
) -> Result<Exported, SandboxError> {
    let users = users.filter(|_| access.mapped);
    let access = Access { mapped: users.is_some(), ..access };
    plain(container)?;
    let from = path_fd(source)?;
    check_kind(&from, source)?;
    let below = Submounts::below(source)?;
    if access.follow {
        let path = export_mount(dirs, container, (&from, source), access, users, &below.view(access))?.0;
        let writable_below = if access.read_only && !access.recursive { below.writable() } else { Vec::new() };
        return Ok(Exported { path, writable_below, submounts: Vec::new() });
    }
    // The file server reads that.
    let view = |alone| match (access.mapped, alone) {
        (false, false) => "",
        (true, false) => "-p1",
        (mapped, true) => ["-e0", "-e1"][usize::from(mapped)],
    };
    let (path, _) = export_mount(dirs, container, (&from, source), access, users, view(access.alone))?;
    let access = Access { read_only: access.read_only && access.recursive, ..access };
    let mut submounts = Vec::new();
    let mut left_out: Vec<PathBuf> = Vec::new();
    for (below, point, from) in below.open() {
        // Nobody asked for this one by name: what is of no use to a guest is left out, and so is what lies on it.
        if left_out.iter().any(|above| below.starts_with(above)) || check_kind(&from, point).is_err() {
            left_out.push(below);
            continue;
        }
        let (path, read_only) = export_mount(dirs, container, (&from, point), access, users, view(false))?;
        submounts.push(Submount { below, path, read_only });
    }
    Ok(Exported { path, writable_below: Vec::new(), submounts })
}

/// Exports one mount, or with `access.follow` a tree of mounts; returns the agent's path and whether it is read-only.
fn export_mount(
    dirs: &Dirs,
    container: &str,
    (from, source): (&OwnedFd, &Path),
    access: Access,
    users: Option<&OwnedFd>,
    view: &str,
) -> Result<(String, bool), SandboxError> {
    let step = || format!("make a mount point for {}", source.display());
    let stat = rustix::fs::fstat(from).doing(step)?;
    let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    // A mount that takes no writes is not the one of another place of the node where the same folder takes them.
    let takes_none = rustix::fs::fstatvfs(from).doing(step)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    let read_only = access.read_only || takes_none;
    let mode = match (read_only, access.recursive) {
        (false, _) => "rw",
        (true, false) => "ro",
        (true, true) => "rro",
    };
    let key = format!("{:x}-{:x}-{mode}{view}", stat.st_dev, stat.st_ino);
    for folder in [dirs.tree().join(VOLUMES), dirs.tree().join(container)] {
        make_private(&folder)?;
    }
    let point = dirs.tree().join(VOLUMES).join(&key);
    let made = if is_folder { fs::create_dir(&point) } else { File::create_new(&point).map(drop) };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.doing(step)?,
    }
    let (place, target) = (Place::of(dirs)?, Path::new(VOLUMES).join(&key));
    if !place.has(&target, &stat)?
        && let Err(error) = copy(from, access, users).and_then(|tree| place.attach(&tree, &target))
    {
        let _ = if is_folder { fs::remove_dir(&point) } else { fs::remove_file(&point) };
        return Err(error);
    }
    File::create(dirs.tree().join(container).join(&key)).doing(|| format!("mark {} as used", source.display()))?;
    Ok((format!("{GUEST_SHARE}/{VOLUMES}/{key}"), read_only))
}

/// What a guest cannot use, though it would see it.
fn check_kind(from: &OwnedFd, source: &Path) -> Result<(), SandboxError> {
    let step = || format!("look at {}", source.display());
    let stat = rustix::fs::fstat(from).doing(step)?;
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => {
            match unshared::name(rustix::fs::fstatfs(from).doing(step)?.f_type) {
                None => return Ok(()),
                Some(name) => format!("lies on {name}, a file system of the node's kernel itself"),
            }
        }
        FileType::Socket => "is a unix socket, which only processes on the same kernel can connect to".to_owned(),
        FileType::Fifo => "is a named pipe, which only processes on the same kernel can share".to_owned(),
        _ => "is a device of the node".to_owned(),
    };
    Err(SandboxError::Invalid(format!(
        "{} {what}: it cannot be a volume of a microVM; use the runtime handler \"host\"",
        source.display()
    )))
}

/// As [`export`], read-only and mapped to `users`, for an image's layer, which never changes: the file server lets guests cache what has
/// such a name.
pub(crate) fn export_layer(
    dirs: &Dirs,
    container: &str,
    source: &Path,
    users: Option<&OwnedFd>,
) -> Result<String, SandboxError> {
    plain(container)?;
    let from = path_fd(source)?;
    let points = dirs.tree().join(container);
    make_private(&points)?;
    let name = claim(&points).doing(|| format!("make a mount point for {}", source.display()))?;
    let (place, target) = (Place::of(dirs)?, Path::new(container).join(&name));
    let access = Access { read_only: true, recursive: true, ..Access::default() };
    if let Err(error) = copy(&from, access, users).and_then(|tree| place.attach(&tree, &target)) {
        let _ = fs::remove_dir(points.join(&name));
        return Err(error);
    }
    Ok(format!("{GUEST_SHARE}/{container}/{name}"))
}

/// Takes back all exports of `container`. Idempotent.
pub(crate) fn unexport(dirs: &Dirs, container: &str) -> Result<(), SandboxError> {
    plain(container)?;
    let points = dirs.tree().join(container);
    let Ok(entries) = fs::read_dir(&points) else { return Ok(()) };
    let place = Place::of(dirs)?;
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            place.detach(&Path::new(container).join(entry.file_name()))?;
            fs::remove_dir(&path).doing(|| format!("remove mount point {}", path.display()))?;
        } else {
            release(dirs, &place, container, Path::new(&entry.file_name()))?;
            fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
        }
    }
    fs::remove_dir(&points).doing(|| format!("remove {}", points.display()))
}

/// `container` uses the volume `key` no more: unmounts it if it is a file and nobody else does.
fn release(dirs: &Dirs, place: &Place, container: &str, key: &Path) -> Result<(), SandboxError> {
    let point = dirs.tree().join(VOLUMES).join(key);
    if !point.is_file() {
        return Ok(());
    }
    let others = fs::read_dir(dirs.tree()).doing(|| format!("list {}", dirs.tree().display()))?;
    let mut others = others.flatten().filter(|entry| entry.file_name() != container && entry.file_name() != VOLUMES);
    if others.any(|other| other.path().join(key).exists()) {
        return Ok(());
    }
    place.detach(&Path::new(VOLUMES).join(key))?;
    fs::remove_file(&point).doing(|| format!("remove mount point {}", point.display()))
}

/// Unmounts everything at and below `folder`. Idempotent.
pub(crate) fn unmount_below(folder: &Path) -> Result<(), SandboxError> {
    let mut points: Vec<PathBuf> = mountinfo::read()?.into_iter().map(|mount| mount.point).collect();
    points.retain(|point| point.starts_with(folder));
    points.reverse(); // what was mounted last goes first
    for point in points {
        unmount_all(&point)?;
    }
    Ok(())
}

/// A name that is one plain component of a path.
fn plain(container: &str) -> Result<(), SandboxError> {
    let fits = !container.is_empty() && container.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits { Ok(()) } else { Err(SandboxError::Invalid(format!("container id {container:?} is not plain"))) }
}

pub(crate) fn path_fd(path: &Path) -> Result<OwnedFd, SandboxError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("open {}", path.display()))
}

/// Makes an empty mount point for a layer, under the first free number.
fn claim(points: &Path) -> io::Result<String> {
    let mut number = 0;
    loop {
        let name = format!("layer{number}");
        match fs::create_dir(points.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            other => return other.map(|()| name),
        }
    }
}

/// Copies the mount that `source` is in, private; or with all that is mounted below and as a slave, into which comes what is mounted on
/// the node later. Owners are shown as `users`, if any. The copy has no place yet.
fn copy(source: &OwnedFd, access: Access, users: Option<&OwnedFd>) -> Result<OwnedFd, SandboxError> {
    let step = || format!("copy the mount of {}", name_of(source));
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let below = if access.follow { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let tree = open_tree(source, "", flags | below).doing(step)?;
    let propagation = if access.follow { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    set_attributes(&tree, 0, propagation, true).doing(step)?;
    if let Some(users) = users {
        users::map_owners(&tree, users, true).map_err(|error| {
            SandboxError::Invalid(format!(
                "cannot show the owners of files as the pod's users in {}: its file system, and each mounted below it, must be able \
                 to (ext4, xfs, btrfs, tmpfs): {error}",
                name_of(source)
            ))
        })?;
    }
    if access.read_only {
        set_attributes(&tree, libc::MOUNT_ATTR_RDONLY, 0, access.recursive).doing(step)?;
    }
    Ok(tree)
}

/// The path of an open file, for messages.
fn name_of(file: &OwnedFd) -> String {
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    link.map_or_else(|_| "a volume".to_owned(), |path| path.display().to_string())
}

fn set_attributes(tree: &OwnedFd, set: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a literal, and the kernel reads one mount_attr of the size that is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Unmounts `point` until nothing is mounted there.
pub(crate) fn unmount_all(point: &Path) -> Result<(), SandboxError> {
    loop {
        match unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).doing(|| format!("unmount {}", point.display())),
        }
    }
}

#[cfg(test)]
mod tests;

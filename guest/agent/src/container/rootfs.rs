//! A container's root: an overlay over the image's layers, with its own writable layer on top.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, open_tree, unmount,
};
use rustix::process::{fchdir, pivot_root};

use crate::agent::Agent;
use crate::error::{Doing, Result};
use crate::users::Users;

/// Longest string that fsconfig takes.
const MAX_PARAMETER: usize = 255;
/// Folder of the image's volumes, beside the writable layer.
const VOLUMES: &str = "volumes";

/// The writable layer of one container on the pod's disk.
#[derive(Debug)]
pub struct Layer {
    dir: PathBuf,
}

impl Layer {
    /// Makes `<state>/<id>/{upper,work}`; `upper` becomes the root directory and so looks like the image's.
    ///
    /// # Errors
    /// When it cannot be made; nothing is left then.
    pub fn create(state: &Path, id: &str, topmost: &Path, users: Option<&Users>) -> Result<Self> {
        let layer = Self { dir: state.join(id) };
        layer.remove()?;
        let result = layer.fill(topmost, users);
        if result.is_err() {
            let _ = layer.remove();
        }
        result.map(|()| layer)
    }

    fn fill(&self, topmost: &Path, users: Option<&Users>) -> Result<()> {
        let make =
            |path: &Path| fs::DirBuilder::new().mode(0o700).create(path).doing(format!("make {}", path.display()));
        let meta = fs::metadata(topmost).asked(format!("look at layer {}", topmost.display()))?;
        make(&self.dir)?;
        make(&self.work())?;
        make(&self.upper())?;
        let upper = self.upper();
        let owner = |id: u32| users.map_or(id, |users| users.on_node(id).unwrap_or(users.root()));
        chown(&upper, Some(owner(meta.uid())), Some(owner(meta.gid())))
            .doing(format!("give away {}", upper.display()))?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(meta.mode() & 0o7777))
            .doing(format!("set the mode of {}", upper.display()))
    }

    /// What the container has written.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// The overlay's own place beside it.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// The folder of one of the image's volumes; made when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn volume(&self, number: usize) -> Result<PathBuf> {
        self.extra(&format!("{VOLUMES}/{number}"), 0o700)
    }

    /// An empty directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn nothing(&self) -> Result<PathBuf> {
        self.extra("nothing", 0o755)
    }

    /// A directory to mount something on for a moment.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn place(&self) -> Result<PathBuf> {
        self.extra("place", 0o700)
    }

    fn extra(&self, name: &str, mode: u32) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::DirBuilder::new().mode(mode).recursive(true).create(&path).doing(format!("make {}", path.display()))?;
        Ok(path)
    }

    /// For the quota.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.dir, flags, Mode::empty()).doing(format!("open {}", self.dir.display()))
    }

    /// Deletes it in a process of its own: it may be large, and the agent has other things to do. Idempotent.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub async fn remove_aside(&self, agent: &Agent) -> Result<()> {
        // Most containers have written nothing.
        let small = !self.dir.join(VOLUMES).exists() && fs::remove_dir(self.upper()).is_ok();
        if small || !self.dir.exists() {
            return self.remove();
        }
        let child = crate::sys::fork(0, None, || u8::from(self.remove().is_err())).doing("start a process")?;
        let exit = agent.reaper.watch(child.pid);
        if exit.await == Ok(0) {
            return Ok(());
        }
        self.remove()
    }

    /// Deletes it. Idempotent.
    ///
    /// # Errors
    /// When something cannot be deleted.
    pub fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).doing(format!("delete {}", self.dir.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Mounts each layer below `place` with its owners shown as the pod's users. The overlay takes copies of these mounts: they
/// only have to be there until it is mounted.
///
/// # Errors
/// When a layer is missing, or its file system cannot map owners.
pub fn map_layers(lower: &[PathBuf], users: &Users, place: &Path) -> Result<Vec<PathBuf>> {
    let trees = lower.iter().map(|path| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path, flags).asked(format!("open layer {}", path.display()))?;
        let what = || {
            format!("map the owners of layer {}: its file system must be able to (ext4, xfs, btrfs)", path.display())
        };
        users.map_mount(&tree, false).asked(what())?;
        Ok(tree)
    });
    let trees: Vec<OwnedFd> = trees.collect::<Result<_>>()?;
    fs::create_dir_all(place).doing(format!("make {}", place.display()))?;
    let names = new_mount("tmpfs", &[("mode".to_owned(), Some("700".to_owned()))], 0)?;
    attach_at(&names, place)?;
    let mut mapped = Vec::new();
    for (number, tree) in trees.iter().enumerate() {
        let path = place.join(number.to_string());
        fs::create_dir(&path).doing(format!("make {}", path.display()))?;
        attach_at(tree, &path)?;
        mapped.push(path);
    }
    Ok(mapped)
}

/// Mounts the overlay at `place`, which only has to be a directory of this process' mount namespace. Returns the root.
///
/// # Errors
/// When a layer is missing or the kernel refuses.
pub fn mount_overlay(lower: &[PathBuf], layer: &Layer, place: &Path) -> Result<OwnedFd> {
    // Each layer is opened once; long paths travel as descriptors.
    let mut held = Vec::new();
    let mut names = Vec::new();
    for path in lower {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).asked(format!("open layer {}", path.display()))?;
        let text = path.to_string_lossy();
        if text.len() > MAX_PARAMETER {
            names.push(descriptor_path(&fd));
            held.push(fd);
        } else {
            names.push(text.into_owned());
        }
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).doing("open an overlay")?;
    fsconfig_set_string(&context, "source", "overlay").doing("name the overlay")?;
    for name in &names {
        match fsconfig_set_string(&context, "lowerdir+", name) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) if name == &names[0] => return mount_overlay_old(lower, layer, place),
            Err(e) => return Err(e).doing(format!("add layer {name}: {}", kernel_messages(&context))),
        }
    }
    let text = |p: PathBuf| p.to_string_lossy().into_owned();
    for (key, value) in [("upperdir", text(layer.upper())), ("workdir", text(layer.work()))] {
        fsconfig_set_string(&context, key, &value).doing(format!("set the overlay's {key} to {value}"))?;
    }
    fsconfig_set_flag(&context, "userxattr").doing("set the overlay's userxattr")?;
    fsconfig_create(&context)
        .map_err(std::io::Error::from)
        .doing(format!("mount the layers: {}", kernel_messages(&context)))?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).doing("mount the layers")?;
    attach_at(&root, place)?;
    Ok(root)
}

/// Kernels before 6.5 take all layers in one string of a page: descriptors keep it short.
fn mount_overlay_old(lower: &[PathBuf], layer: &Layer, place: &Path) -> Result<OwnedFd> {
    let mut held = Vec::new();
    for path in lower {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        held.push(rustix::fs::open(path, flags, Mode::empty()).asked(format!("open layer {}", path.display()))?);
    }
    let open = |p: PathBuf| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&p, flags, Mode::empty()).doing(format!("open {}", p.display()))
    };
    let (upper, work) = (open(layer.upper())?, open(layer.work())?);
    let names: Vec<_> = held.iter().map(descriptor_path).collect();
    let data = format!(
        "userxattr,upperdir={},workdir={},lowerdir={}",
        descriptor_path(&upper),
        descriptor_path(&work),
        names.join(":")
    );
    let data = crate::sys::c_string(data).doing("name the layers")?;
    mount("overlay", place, "overlay", MountFlags::empty(), Some(data.as_c_str())).doing("mount the layers")?;
    rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing("open the root")
}

/// Mounts an image's layers at `place`, read-only and with no writable layer; returns the root. `nothing` is an empty directory: an
/// overlay wants two layers, and even a single one is not mounted as it is, since what it deletes of lower ones are files in it.
///
/// # Errors
/// When a layer is missing, there are more than fit in a page, or the kernel refuses.
pub fn mount_layers(lower: &[PathBuf], nothing: &Path, place: &Path) -> Result<OwnedFd> {
    let mut held = Vec::new();
    for path in lower.iter().map(PathBuf::as_path).chain([nothing]) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        held.push(rustix::fs::open(path, flags, Mode::empty()).asked(format!("open layer {}", path.display()))?);
    }
    let names: Vec<_> = held.iter().map(descriptor_path).collect();
    let data = crate::sys::c_string(format!("userxattr,lowerdir={}", names.join(":"))).doing("name the layers")?;
    mount("overlay", place, "overlay", MountFlags::RDONLY, Some(data.as_c_str())).doing("mount an image's layers")?;
    rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing("open an image's root")
}

fn descriptor_path(fd: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What the kernel says about a failed file system context.
fn kernel_messages(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0u8; 512];
    while let Ok(n @ 1..) = rustix::io::read(context, &mut buffer) {
        text.push_str(String::from_utf8_lossy(&buffer[..n]).trim());
        if text.len() > 2048 {
            break;
        }
        text.push_str("; ");
    }
    text.trim_end_matches("; ").to_owned()
}

fn attach_at(tree: &OwnedFd, place: &Path) -> Result<()> {
    move_mount(tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing(format!("mount on {}", place.display()))
}

/// Mounts `tree` on the open `target`.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(tree: impl AsFd, target: impl AsFd, name: &Path) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", flags).doing(format!("mount on {}", name.display()))
}

/// A new instance of a file system, not mounted anywhere yet.
///
/// # Errors
/// When the kernel refuses.
pub fn new_mount(kind: &str, data: &[(String, Option<String>)], attributes: u64) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).doing(format!("open a {kind}"))?;
    if !data.iter().any(|(key, _)| key == "source") {
        // What `mount` shows in the first column.
        fsconfig_set_string(&context, "source", kind).doing(format!("name a {kind}"))?;
    }
    for (key, value) in data {
        let result = match value {
            Some(value) => fsconfig_set_string(&context, key.as_str(), value.as_str()),
            None => fsconfig_set_flag(&context, key.as_str()),
        };
        result.asked(format!("set {key} of a {kind}"))?;
    }
    fsconfig_create(&context).doing(format!("make a {kind}: {}", kernel_messages(&context)))?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).doing(format!("mount a {kind}"))
}

/// Makes `root`, a mount of this namespace, the root directory; what was there before is gone from this namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn pivot(root: &OwnedFd) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old = rustix::fs::open("/", flags, Mode::empty()).doing("open the old root")?;
    fchdir(root).doing("enter the new root")?;
    pivot_root(".", ".").doing("change the root")?;
    fchdir(&old).doing("enter the old root")?;
    unmount(".", UnmountFlags::DETACH).doing("let go of the old root")?;
    rustix::process::chdir("/").doing("enter the new root")
}

//! The files that a guest knows.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_proto::unshared;
use fuse_backend_rs::api::filesystem::{Entry, ROOT_ID};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatVfsMountFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::descriptors::{Descriptors, Held};
use super::errno;
use super::stamp::Stamp;
use crate::devices::virtio::fs::places::Place;
use crate::event_loop::lock;

/// Files that a guest may know at once. Each holds a descriptor and keeps the node's kernel from
/// dropping the file's inode, together some 1.5 KiB that count as the pod's memory.
const MAX_NODES: usize = 1 << 18;
/// File systems below a share, for inode numbers.
const MAX_DEVICES: usize = 1 << 14;
/// `STATX_MNT_ID_UNIQUE`: a mount's number that is never used again (Linux 6.8; older ones answer
/// the old number).
const MOUNT_ID_UNIQUE: u32 = 0x4000;
/// Mounts of which it is remembered whether they may be written.
const MAX_MOUNTS: usize = 4096;
/// How long a guest may believe what it knows of a layer.
const LAYER_VALID: Duration = Duration::from_secs(24 * 3600);
/// How long it may believe what it knows of a volume, which others may change.
const VOLUME_VALID: Duration = Duration::from_secs(1);
/// How long it may believe what it knows of a volume that is its pod's alone. Somebody on the node
/// may still change a file there by hand.
const OWN_VALID: Duration = Duration::from_secs(60);

/// What kind of export a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// None: the share's own directories.
    Share,
    /// A layer of an image.
    Layer,
    /// Something else.
    Volume(View),
}

/// Volumes whose folders hold the same mounts and whose files show the same owners. In others the
/// same file is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct View {
    number: u64,
    /// Mounts come and go in it, so nothing that a guest knows of it stays true.
    changes: bool,
    /// Only the pod's own containers write to it (an emptyDir).
    alone: bool,
}

impl View {
    /// Of an export's name, which the daemon gave: `<device>-<inode>-<access>`, then unless it is
    /// one plain mount `-p`, `-s` or, if it is the pod's alone, `-e`, and a number in hexadecimal.
    fn of(name: &[u8]) -> Self {
        let last = std::str::from_utf8(name).ok().and_then(|name| name.splitn(4, '-').nth(3)).unwrap_or_default();
        let view = |digits, changes, alone| Self {
            number: u64::from_str_radix(digits, 16).unwrap_or_default(),
            changes,
            alone,
        };
        match last.split_at_checked(1) {
            Some(("p", digits)) => view(digits, false, false),
            Some(("s", digits)) => view(digits, true, false),
            Some(("e", digits)) => view(digits, false, true),
            _ => view("0", false, false),
        }
    }
}

impl Class {
    /// How long attributes of a file are valid.
    pub(super) fn attributes_valid(self) -> Duration {
        match self {
            Self::Share => Duration::ZERO,
            Self::Layer => LAYER_VALID,
            Self::Volume(view) if view.changes => Duration::ZERO,
            Self::Volume(view) if view.alone => OWN_VALID,
            Self::Volume(_) => VOLUME_VALID,
        }
    }

    /// How long a guest may believe that a name is not there. In a volume it may not: somebody
    /// outside may be about to make it.
    fn absence_valid(self) -> Duration {
        if self == Self::Layer { LAYER_VALID } else { Duration::ZERO }
    }

    /// By which files are told apart: not by who else writes to them.
    fn identity(self) -> Self {
        match self {
            Self::Volume(view) => Self::Volume(View { alone: false, ..view }),
            other => other,
        }
    }

    /// Refuses changes where there are none, whatever the mount says.
    pub(super) fn check_writable(self) -> io::Result<()> {
        if self.is_volume() { Ok(()) } else { Err(errno(libc::EROFS)) }
    }

    fn is_volume(self) -> bool {
        matches!(self, Self::Volume(_))
    }
}

/// What makes a file the same file.
///
/// A volume's is the same however it is reached: containers of a pod share its sockets, pipes,
/// locks and mappings, and what the pod may write through one mount it may write. A layer's is
/// another in each mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    class: Class,
    /// Zero in a volume.
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

/// A file that the guest knows.
pub(super) struct Node {
    /// Opened `O_PATH`.
    pub(super) file: OwnedFd,
    pub(super) kind: FileType,
    pub(super) class: Class,
    /// The mount through which it was found last, or a volume's writable one.
    mount_writable: bool,
    identity: Identity,
    /// What the file was when the guest opened it last, if it had not changed for a while then.
    stable: Mutex<Option<Stamp>>,
    /// Counts its descriptor; nothing for the root, and for one that the guest was not told of yet.
    held: Option<Held>,
}

impl Node {
    /// Whether a guest that opens the file now may keep what it knows of its contents: the file is
    /// the one that the guest opened the last time. A change that comes with the same length and
    /// the same times is none of long ago: times are as coarse as the node's clock tick, so only
    /// what had been left alone for a while ([`Stamp::is_settled`]) counts as known.
    pub(super) fn is_unchanged(&self) -> io::Result<bool> {
        let now = Stamp::of(&status(&self.file)?);
        let known = std::mem::replace(&mut *lock(&self.stable), now.is_settled().then_some(now));
        Ok(known == Some(now))
    }

    /// Whose file system is asked about it.
    pub(super) fn place(&self) -> Place {
        Place::Device(self.identity.device.0, self.identity.device.1)
    }
}

/// Finds `name` in `parent`, and counts that the guest knows it. The file system is asked without
/// the lock.
pub(super) fn look_up(nodes: &Mutex<Nodes>, parent: &Node, name: &CStr) -> io::Result<Entry> {
    check_name(name)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&parent.file, name, flags, Mode::empty()) {
        Ok(file) => add(nodes, parent.class, name, file),
        // Number 0: there is none, and the guest may remember so.
        Err(Errno::NOENT) if !parent.class.absence_valid().is_zero() => {
            Ok(Entry { inode: 0, entry_timeout: parent.class.absence_valid(), ..Entry::default() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Counts that the guest knows `file` (opened `O_PATH`), which is `name` in a directory of
/// `parent`'s. The file system is asked without the lock.
pub(super) fn add(nodes: &Mutex<Nodes>, parent: Class, name: &CStr, file: OwnedFd) -> io::Result<Entry> {
    let stat = status(&file)?;
    let (class, identity, known) = {
        let nodes = lock(nodes);
        let class = nodes.class(parent, name, &stat);
        let identity = identity(&stat, class);
        (class, identity, nodes.mount_writable(&identity, &stat))
    };
    let mount_writable = known.map_or_else(|| is_writable(&file), Ok)?;
    let node = Node { file, kind: kind(&stat), class, mount_writable, identity, stable: Mutex::default(), held: None };
    let (attr, inserted) = {
        let mut nodes = lock(nodes);
        nodes.remember_mount(&stat, known, mount_writable);
        (nodes.attributes(&stat), nodes.insert(node))
    };
    let (inode, _unused) = inserted?;
    // A name of the share itself may be another mount at any time.
    let entry_timeout = parent.attributes_valid();
    Ok(Entry { inode, attr, attr_timeout: class.attributes_valid(), entry_timeout, ..Entry::default() })
}

/// All of them.
pub(super) struct Nodes {
    root: Arc<Node>,
    /// The mount that the share's own directories are in.
    root_mount: u64,
    /// Number to node, and how often the guest was told of it.
    by_number: HashMap<u64, (Arc<Node>, u64)>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    devices: Vec<(u32, u32)>,
    /// Which mounts may be written.
    mounts: HashMap<u64, bool>,
    descriptors: Descriptors,
}

impl Nodes {
    /// Only `root`; each other one will count among `descriptors`.
    pub(super) fn new(root: OwnedFd, descriptors: Descriptors) -> io::Result<Self> {
        let stat = status(&root)?;
        let kind = kind(&stat);
        if kind != FileType::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        let identity = identity(&stat, Class::Share);
        let devices = vec![identity.device];
        let class = Class::Share;
        let root =
            Node { file: root, kind, class, mount_writable: false, identity, stable: Mutex::default(), held: None };
        let root_mount = stat.stx_mnt_id;
        Ok(Self {
            root: Arc::new(root),
            root_mount,
            by_number: HashMap::new(),
            by_identity: HashMap::new(),
            next: ROOT_ID + 1,
            devices,
            mounts: HashMap::new(),
            descriptors,
        })
    }

    /// Forgets all but the root. Numbers go on. Drop what it answers without the lock.
    pub(super) fn clear(&mut self) -> Vec<(Arc<Node>, u64)> {
        self.by_identity = HashMap::new();
        std::mem::take(&mut self.by_number).into_values().collect()
    }

    /// The node with this number.
    pub(super) fn get(&self, number: u64) -> io::Result<Arc<Node>> {
        if number == ROOT_ID {
            return Ok(self.root.clone());
        }
        self.by_number.get(&number).map(|(node, _)| node.clone()).ok_or_else(|| errno(libc::EBADF))
    }

    /// What kind of export a file is in that was found as `name` in a directory of `parent`'s.
    fn class(&self, parent: Class, name: &CStr, stat: &Statx) -> Class {
        match parent {
            Class::Share if stat.stx_mnt_id == self.root_mount => Class::Share,
            Class::Share if name.to_bytes().starts_with(b"layer") => Class::Layer,
            Class::Share => Class::Volume(View::of(name.to_bytes())),
            inherited => inherited,
        }
    }

    /// Whether the mount of a file that was found may be written, as far as that matters; nothing
    /// if its file system must be asked.
    fn mount_writable(&self, identity: &Identity, stat: &Statx) -> Option<bool> {
        let known = self.by_identity.get(identity).and_then(|number| self.by_number.get(number));
        if !identity.class.is_volume() || known.is_some_and(|(node, _)| node.mount_writable) {
            return Some(false);
        }
        is_for_ever(stat).then(|| self.mounts.get(&stat.stx_mnt_id).copied()).flatten()
    }

    /// Remembers what a file system was asked.
    fn remember_mount(&mut self, stat: &Statx, known: Option<bool>, writable: bool) {
        if known.is_none() && is_for_ever(stat) {
            if self.mounts.len() >= MAX_MOUNTS {
                self.mounts.clear();
            }
            self.mounts.insert(stat.stx_mnt_id, writable);
        }
    }

    /// Adds a node, or counts that the guest knows it once more. Answers its number, and the node
    /// that is not needed any more.
    fn insert(&mut self, mut node: Node) -> io::Result<(u64, Option<Arc<Node>>)> {
        if node.identity == self.root.identity {
            return Ok((ROOT_ID, Some(Arc::new(node))));
        }
        if let Some(number) = self.by_identity.get(&node.identity)
            && let Some((old, known)) = self.by_number.get_mut(number)
        {
            let mut unused = Arc::new(node);
            if unused.mount_writable && !old.mount_writable {
                if let Some(better) = Arc::get_mut(&mut unused) {
                    better.held = Some(self.descriptors.hold()?);
                }
                std::mem::swap(old, &mut unused);
            }
            *known = known.saturating_add(1);
            return Ok((*number, Some(unused)));
        }
        if self.by_number.len() >= MAX_NODES {
            return Err(errno(libc::ENFILE));
        }
        node.held = Some(self.descriptors.hold()?);
        let number = self.fresh_number();
        self.by_identity.insert(node.identity, number);
        self.by_number.insert(number, (Arc::new(node), 1));
        Ok((number, None))
    }

    /// A number that no file had.
    pub(super) fn fresh_number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The guest forgot `number` as often as `count` lookups told of it. Answers the node if it is
    /// not known any more, to be dropped without the lock.
    pub(super) fn forget(&mut self, number: u64, count: u64) -> Option<Arc<Node>> {
        let (node, known) = self.by_number.get_mut(&number)?;
        *known = known.saturating_sub(count);
        if *known > 0 {
            return None;
        }
        self.by_identity.remove(&node.identity);
        self.by_number.remove(&number).map(|(node, _)| node)
    }

    /// What its files count among.
    #[cfg(test)]
    pub(super) fn descriptors(&self) -> &Descriptors {
        &self.descriptors
    }

    /// Lets files that come count among `descriptors`.
    #[cfg(test)]
    pub(super) fn set_descriptors(&mut self, descriptors: Descriptors) {
        self.descriptors = descriptors;
    }

    /// How many there are, the root apart.
    pub(super) fn count(&self) -> usize {
        self.by_number.len()
    }

    /// A file's attributes as FUSE wants them. All exports are one file system to the guest, so the
    /// numbers of other devices than the share's are moved out of each other's way.
    pub(super) fn attributes(&mut self, stat: &Statx) -> libc::stat64 {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let index = match self.devices.iter().position(|known| *known == device) {
            Some(index) => index,
            None if self.devices.len() < MAX_DEVICES => {
                self.devices.push(device);
                self.devices.len() - 1
            }
            None => 0,
        };
        let mut attr = Entry::default().attr;
        attr.st_ino = stat.stx_ino ^ (index as u64) << 48;
        attr.st_mode = u32::from(stat.stx_mode);
        attr.st_nlink = u64::from(stat.stx_nlink);
        attr.st_uid = stat.stx_uid;
        attr.st_gid = stat.stx_gid;
        attr.st_rdev = libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
        attr.st_size = stat.stx_size as i64;
        attr.st_blksize = i64::from(stat.stx_blksize);
        attr.st_blocks = stat.stx_blocks as i64;
        (attr.st_atime, attr.st_atime_nsec) = (stat.stx_atime.tv_sec, i64::from(stat.stx_atime.tv_nsec));
        (attr.st_mtime, attr.st_mtime_nsec) = (stat.stx_mtime.tv_sec, i64::from(stat.stx_mtime.tv_nsec));
        (attr.st_ctime, attr.st_ctime_nsec) = (stat.stx_ctime.tv_sec, i64::from(stat.stx_ctime.tv_nsec));
        attr
    }
}

/// Attributes of an open file.
pub(super) fn status(file: &OwnedFd) -> io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::from_bits_retain(MOUNT_ID_UNIQUE);
    Ok(rustix::fs::statx(file, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, mask)?)
}

/// Whether the number of the file's mount will never be another mount's.
fn is_for_ever(stat: &Statx) -> bool {
    stat.stx_mask & MOUNT_ID_UNIQUE != 0
}

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

fn identity(stat: &Statx, class: Class) -> Identity {
    let mount = if class.is_volume() { 0 } else { stat.stx_mnt_id };
    Identity { class: class.identity(), mount, device: (stat.stx_dev_major, stat.stx_dev_minor), inode: stat.stx_ino }
}

/// Whether the mount of an open file of a volume may be written. A file of the node's kernel's own
/// file systems is refused: the daemon exports none, but one may be mounted below a volume that
/// follows the node's mounts.
fn is_writable(file: &OwnedFd) -> io::Result<bool> {
    let file_system = rustix::fs::fstatfs(file)?;
    if unshared::name(file_system.f_type).is_some() {
        return Err(errno(libc::EACCES));
    }
    Ok(!StatVfsMountFlags::from_bits_retain(file_system.f_flags as u64).contains(StatVfsMountFlags::RDONLY))
}

/// A name in a directory: one component, and none that leads elsewhere.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(()),
    }
}

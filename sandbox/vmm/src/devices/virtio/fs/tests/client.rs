//! A FUSE client on the raw queue, which says whatever it likes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};

use super::super::Fs;
use crate::devices::virtio::test_guest::{DATA, Guest, MEMORY, WRITE};
use crate::devices::virtio::{VIRTIO_F_VERSION_1, VirtioDevice};

pub(super) mod op {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const SETXATTR: u32 = 21;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const REMOVEXATTR: u32 = 24;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const IOCTL: u32 = 39;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const READDIRPLUS: u32 = 44;
    pub(in super::super) const RENAME2: u32 = 45;
    pub(in super::super) const SETUPMAPPING: u32 = 48;
    pub(in super::super) const TMPFILE: u32 = 51;
}

pub(super) const ROOT: u64 = 1;
pub(super) const REQUESTS: usize = 1;
const REPLY: u64 = DATA + 0x10_0000;
const REPLY_SIZE: u32 = 0x1_0000;
/// Space of a request, or a reply, that is not awaited.
const POSTED_SIZE: u32 = 0x1000;

/// The fields of a request's body, little endian.
pub(super) fn fields(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A name as FUSE has it.
pub(super) fn name(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// The node's directories, and the device that shares one of them.
pub(super) struct Client {
    pub(super) dir: tempfile::TempDir,
    pub(super) guest: Guest,
    pub(super) fs: Fs,
    unique: u64,
    pub(super) uid: u32,
}

/// A reply: the error number (positive), or what follows the header.
pub(super) type Reply = Result<Vec<u8>, i32>;

impl Client {
    /// `None` where the test may not mount.
    ///
    /// ```text
    /// secret           not shared
    /// share/layer0     read-only mount of layer
    /// share/config     read-only mount of config
    /// share/volume     mount of volume
    /// ```
    pub(super) fn new() -> Option<Self> {
        if !private_mounts() {
            eprintln!("skipped: mounts need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        for export in ["layer", "config", "volume"] {
            let path = dir.path().join(export);
            std::fs::create_dir_all(path.join("dir")).unwrap();
            std::fs::write(path.join("file"), "content").unwrap();
            std::os::unix::fs::symlink("../secret", path.join("link")).unwrap();
        }
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(dir.path().join("share")).unwrap();
        mount(dir.path(), "layer", "layer0", true);
        mount(dir.path(), "config", "config", true);
        mount(dir.path(), "volume", "volume", false);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(dir.path().join("share"), flags, Mode::empty()).unwrap();
        let mut fs = Fs::new("test", root).unwrap();
        let guest = Guest::new(&super::super::QUEUE_SIZES);
        fs.activate(guest.activation(VIRTIO_F_VERSION_1)).unwrap();
        let mut client = Self { dir, guest, fs, unique: 0, uid: 0 };
        client.call(op::INIT, 0, &fields(&[7, 31, 0x2_0000, !(1 << 30)])).unwrap();
        Some(client)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One request and its reply.
    pub(super) fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Reply {
        let length = 40 + body.len() as u32;
        self.raw(length, opcode, node, body).expect("every request has a reply")
    }

    /// One request of which no reply is awaited; `slot` tells those apart that are under way at once.
    pub(super) fn post(&mut self, slot: u64, opcode: u32, node: u64, body: &[u8]) {
        self.unique += 1;
        let mut request = fields(&[40 + body.len() as u32, opcode]);
        request.extend_from_slice(&self.unique.to_le_bytes());
        request.extend_from_slice(&node.to_le_bytes());
        request.extend_from_slice(&fields(&[self.uid, self.uid, 1, 0]));
        request.extend_from_slice(body);
        let at = (slot + 1) * u64::from(POSTED_SIZE);
        self.guest.write(DATA + at, &request);
        let reply = (REPLY + u64::from(REPLY_SIZE) + at, POSTED_SIZE, WRITE);
        self.guest.chain(REQUESTS, &[(DATA + at, request.len() as u32, 0), reply]);
        self.guest.kick(REQUESTS);
    }

    /// Eight bytes at `offset` of the reply to what was posted to `slot`.
    pub(super) fn posted_number(&self, slot: u64, offset: u64) -> u64 {
        let at = REPLY + u64::from(REPLY_SIZE) + (slot + 1) * u64::from(POSTED_SIZE) + offset;
        number(&self.guest.read(at, 8))
    }

    /// Resets the device and starts it again, with empty queues.
    pub(super) fn restart(&mut self) {
        self.fs.reset();
        self.guest = Guest::new(&super::super::QUEUE_SIZES);
        self.fs.activate(self.guest.activation(VIRTIO_F_VERSION_1)).unwrap();
    }

    /// A request that may say a wrong length; `None` without a reply.
    pub(super) fn raw(&mut self, length: u32, opcode: u32, node: u64, body: &[u8]) -> Option<Reply> {
        self.unique += 1;
        let mut request = fields(&[length, opcode]);
        request.extend_from_slice(&self.unique.to_le_bytes());
        request.extend_from_slice(&node.to_le_bytes());
        request.extend_from_slice(&fields(&[self.uid, self.uid, 1, 0]));
        request.extend_from_slice(body);
        self.guest.write(DATA, &request);
        self.guest.write(REPLY, &[0; 16]);
        let before = self.guest.used_count(REQUESTS);
        self.guest.chain(REQUESTS, &[(DATA, request.len() as u32, 0), (REPLY, REPLY_SIZE, WRITE)]);
        self.guest.kick(REQUESTS);
        self.guest.wait_used(REQUESTS, before.wrapping_add(1));
        let (_, used) = self.guest.used_entry(REQUESTS, before);
        assert!(used <= REPLY_SIZE);
        let header = self.guest.read(REPLY, 16);
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| header[at + index]));
        if word(0) == 0 {
            return None;
        }
        assert_eq!(header[8..], self.unique.to_le_bytes());
        Some(match word(4) as i32 {
            0 => Ok(self.guest.read(REPLY + 16, word(0) as usize - 16)),
            error => Err(-error),
        })
    }

    /// A request whose body is followed by `count` descriptors of 2.5 MiB each; answers the error and the reply's length.
    pub(super) fn long(&mut self, opcode: u32, node: u64, body: &[u8], count: usize) -> (i32, u32) {
        const REST: u64 = DATA + 0x8_0000;
        let mut request = fields(&[40 + body.len() as u32, opcode]);
        request.extend_from_slice(&[7; 8]);
        request.extend_from_slice(&node.to_le_bytes());
        request.extend_from_slice(&fields(&[0, 0, 1, 0]));
        request.extend_from_slice(body);
        self.guest.write(DATA, &request);
        let before = self.guest.used_count(REQUESTS);
        let mut parts = vec![(DATA, request.len() as u32, 0)];
        parts.extend(std::iter::repeat_n((REST, (MEMORY - REST) as u32, 0), count));
        parts.push((DATA + 4096, 4096, WRITE));
        self.guest.chain(REQUESTS, &parts);
        self.guest.kick(REQUESTS);
        self.guest.wait_used(REQUESTS, before.wrapping_add(1));
        let reply = self.guest.read(DATA + 4096, 16);
        assert_eq!(reply[8..], [7; 8]);
        let error = i32::from_le_bytes(std::array::from_fn(|at| reply[4 + at]));
        (-error, self.guest.used_entry(REQUESTS, before).1)
    }

    /// The number of `path`, one lookup per component.
    pub(super) fn find(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |node, part| {
            let entry =
                self.call(op::LOOKUP, node, &name(part)).unwrap_or_else(|error| panic!("{path}: error {error}"));
            number(&entry)
        })
    }

    /// Opens a node; answers the handle.
    pub(super) fn open(&mut self, opcode: u32, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(opcode, node, &fields(&[flags as u32, 0])).map(|reply| number(&reply))
    }

    pub(super) fn read(&mut self, node: u64, handle: u64, size: u32) -> Reply {
        self.call(op::READ, node, &[&handle.to_le_bytes()[..], &fields(&[0, 0, size, 0, 0, 0, 0, 0])].concat())
    }

    pub(super) fn write(&mut self, node: u64, handle: u64, data: &[u8], flags: u32) -> Reply {
        let fields = fields(&[0, 0, data.len() as u32, flags, 0, 0, 0, 0]);
        self.call(op::WRITE, node, &[&handle.to_le_bytes()[..], &fields, data].concat())
    }

    /// Sets `valid` attributes; all numbers of them are `value`.
    pub(super) fn set(&mut self, node: u64, valid: u32, value: u32) -> Reply {
        let mut body =
            fields(&[valid, 0, 0, 0, value, 0, 0, 0, value, 0, value, 0, 0, 0, 0, 0, 0, value, 0, value, value, 0]);
        assert_eq!(body.len(), 88);
        body[16..20].copy_from_slice(&value.to_le_bytes());
        self.call(op::SETATTR, node, &body)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.fs.reset();
        for export in ["layer0", "layer1", "config", "volume", "late", "1-2-rw-e0"] {
            let path = self.dir.path().join("share").join(export);
            let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// The first u64 of a reply: a node's number, or a handle.
pub(super) fn number(reply: &[u8]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| reply[index]))
}

/// Mounts `source` at `share/target`.
pub(super) fn mount(dir: &Path, source: &str, target: &str, read_only: bool) {
    let target = dir.join("share").join(target);
    std::fs::create_dir_all(&target).unwrap();
    mount_bind(dir.join(source), &target).unwrap();
    if read_only {
        mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    }
}

/// Gives this thread, and what it starts, mounts of its own.
fn private_mounts() -> bool {
    #![allow(unsafe_code)] // unshare
    // SAFETY: touches no memory; mounts, root and working directory stop being shared with other threads.
    let unshared = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) } == 0;
    unshared && mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).is_ok()
}

/// Everything below `dir` that a guest could change: names, kinds, owners, times, contents.
pub(super) fn snapshot(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(path) = open.pop() {
        let stat = path.symlink_metadata().unwrap();
        let content = if stat.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        let text = format!(
            "{:o} {}:{} {} {}.{} {content:?} {:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.nlink(),
            stat.mtime(),
            stat.mtime_nsec(),
            std::fs::read_link(&path).ok(),
        );
        if stat.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path, text);
    }
    all
}

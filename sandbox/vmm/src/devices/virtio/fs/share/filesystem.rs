//! FUSE's requests, one method each.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, GetxattrReply, ListxattrReply, OpenOptions, SetattrValid,
};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RawMode, RenameFlags, SeekFrom, StatxFlags, Timespec, Timestamps,
};
use rustix::io::Errno;

use super::credentials::{ActingFor, Umask, WithoutSetid};
use super::nodes::{Class, Node, check_name, look_up, status};
use super::{Share, errno, nothing, sys, xattr};
use crate::devices::virtio::{Direction, Slices, transfer};
use crate::event_loop::lock;

/// What a guest may ask of an open file; `O_DIRECT` would want aligned guest memory, the rest is not the guest's to say.
pub(super) const OPEN_FLAGS: OFlags =
    OFlags::RWMODE.union(OFlags::APPEND).union(OFlags::TRUNC).union(OFlags::DSYNC).union(OFlags::SYNC);
/// `SEEK_DATA` and `SEEK_HOLE`; other positions are the guest's kernel's business.
const SEEK_DATA: u32 = libc::SEEK_DATA as u32;
const SEEK_HOLE: u32 = libc::SEEK_HOLE as u32;

impl Share {
    /// Opens a node's file, by its descriptor.
    fn open_node(&self, node: &Node, flags: OFlags) -> io::Result<File> {
        if !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            return Err(errno(libc::EBADF)); // opening a device or pipe does things
        }
        if flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC) {
            node.class.check_writable()?;
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(&self.proc_fd, path(node), flags, Mode::empty())?.into())
    }

    pub(super) fn look_up(&self, parent: &Node, name: &CStr) -> io::Result<Entry> {
        look_up(&self.nodes, parent, name)
    }

    /// The guest does not know `number` any more by one lookup.
    fn forget_once(&self, number: u64) {
        let unused = lock(&self.nodes).forget(number, 1);
        drop(unused); // without the lock
    }

    /// Keeps a file open of which the guest is told by `entry`. If that cannot be, the guest is
    /// told of nothing.
    pub(super) fn keep_open(&self, entry: &Entry, file: File) -> io::Result<u64> {
        let kept = lock(&self.handles).insert(entry.inode, file);
        kept.inspect_err(|_| self.forget_once(entry.inode))
    }

    /// The directory in which `name` is to be made, changed or removed.
    fn directory(&self, number: u64, name: &CStr) -> io::Result<std::sync::Arc<Node>> {
        check_name(name)?;
        let node = self.node(number)?;
        node.class.check_writable()?;
        Ok(node)
    }

    fn attributes(&self, node: &Node) -> io::Result<(libc::stat64, Duration)> {
        let stat = status(&node.file)?;
        Ok((lock(&self.nodes).attributes(&stat), node.class.attributes_valid()))
    }

    fn remove(&self, parent: u64, name: &CStr, flags: AtFlags) -> io::Result<()> {
        let parent = self.directory(parent, name)?;
        match rustix::fs::unlinkat(&parent.file, name, flags) {
            // On a read-only mount the kernel does not look whether there is such a name. A guest that hears so forgets it.
            Err(Errno::ROFS) if self.is_gone(&parent, name) => Err(errno(libc::ENOENT)),
            other => Ok(other?),
        }
    }

    fn is_gone(&self, parent: &Node, name: &CStr) -> bool {
        let found = rustix::fs::statx(&parent.file, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
        found.is_err_and(|error| error == Errno::NOENT)
    }

    /// A change to what it is already changes nothing, so it may be made where nothing may change: whoever watches the file in the
    /// guest is told.
    fn change_mode(&self, node: &Node, mode: Mode) -> io::Result<()> {
        match rustix::fs::chmodat(&self.proc_fd, path(node), mode, AtFlags::empty()) {
            Err(Errno::ROFS) if u32::from(status(&node.file)?.stx_mode) & 0o7777 == mode.as_raw_mode() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Reads an open file from `offset` on into `data`; answers how many bytes, fewer only where it ends.
    pub(crate) fn read(&self, node: u64, handle: u64, offset: u64, data: &Slices<'_>) -> io::Result<usize> {
        let handle = lock(&self.handles).get(handle, node)?;
        transfer(&handle.file, Direction::FromFile, data, offset)
    }

    /// Writes `data` to an open file from `offset` on, or at its end if it is open for that; answers how many bytes. With
    /// `kill_setid` the file loses its set-user-id bits.
    pub(crate) fn write(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &Slices<'_>,
        kill_setid: bool,
    ) -> io::Result<usize> {
        let handle = lock(&self.handles).get(handle, node)?;
        let _without = WithoutSetid::new(kill_setid)?;
        transfer(&handle.file, Direction::ToFile, data, offset)
    }

    fn sync(&self, node: u64, handle: u64, data_only: bool) -> io::Result<()> {
        let handle = lock(&self.handles).get(handle, node)?;
        if data_only { handle.file.sync_data() } else { handle.file.sync_all() }
    }
}

/// The name of a node's file in `/proc/self/fd`.
fn path(node: &Node) -> String {
    node.file.as_raw_fd().to_string()
}

pub(super) fn mode(mode: u32) -> Mode {
    Mode::from_raw_mode((mode & 0o7777) as RawMode)
}

/// How a guest may cache what it reads of a directory.
fn directory_caching(class: Class) -> OpenOptions {
    match class {
        Class::Layer => OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR,
        _ => OpenOptions::empty(),
    }
}

/// How a guest may cache what it reads of a file that it opens: what it had cached before is dropped if the file has changed.
fn caching(node: &Node) -> io::Result<OpenOptions> {
    let keeps = match node.class {
        Class::Layer => true,
        _ => node.is_unchanged()?,
    };
    Ok(if keeps { OpenOptions::KEEP_CACHE } else { OpenOptions::empty() })
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    fn destroy(&self) {
        self.clear();
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        if nothing::is_folder(parent, name) {
            return Ok(nothing::folder());
        }
        if parent == nothing::FOLDER {
            return nothing::look_up(name, || lock(&self.nodes).fresh_number());
        }
        self.look_up(&*self.node(parent)?, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        let unused = lock(&self.nodes).forget(inode, count);
        drop(unused); // without the lock
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        let mut nodes = lock(&self.nodes);
        let unused: Vec<_> = requests.into_iter().filter_map(|(inode, count)| nodes.forget(inode, count)).collect();
        drop(nodes);
        drop(unused);
    }

    fn getattr(&self, _: &Context, inode: u64, _handle: Option<u64>) -> io::Result<(libc::stat64, Duration)> {
        if inode == nothing::FOLDER {
            let folder = nothing::folder();
            return Ok((folder.attr, folder.attr_timeout));
        }
        self.attributes(&*self.node(inode)?)
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attr: libc::stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(libc::stat64, Duration)> {
        let node = self.node(inode)?;
        node.class.check_writable()?;
        if valid.contains(SetattrValid::MODE) {
            self.change_mode(&node, mode(attr.st_mode))?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let uid = valid.contains(SetattrValid::UID).then(|| rustix::fs::Uid::from_raw(attr.st_uid));
            let gid = valid.contains(SetattrValid::GID).then(|| rustix::fs::Gid::from_raw(attr.st_gid));
            rustix::fs::chownat(&node.file, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = u64::try_from(attr.st_size).map_err(|_| errno(libc::EINVAL))?;
            let _without = WithoutSetid::new(valid.contains(SetattrValid::KILL_SUIDGID))?;
            match handle {
                Some(handle) => {
                    let handle = lock(&self.handles).get(handle, inode)?;
                    handle.file.set_len(size)?;
                }
                None => self.open_node(&node, OFlags::WRONLY)?.set_len(size)?,
            }
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let time = |set, now, seconds, nanos| Timespec {
                tv_sec: seconds,
                tv_nsec: match (valid.contains(set), valid.contains(now)) {
                    (_, true) => rustix::fs::UTIME_NOW,
                    (true, _) => nanos,
                    _ => rustix::fs::UTIME_OMIT,
                },
            };
            let times = Timestamps {
                last_access: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, attr.st_atime, attr.st_atime_nsec),
                last_modification: time(
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    attr.st_mtime,
                    attr.st_mtime_nsec,
                ),
            };
            rustix::fs::utimensat(&self.proc_fd, path(&node), &times, AtFlags::empty())?;
        }
        self.attributes(&node)
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let node = self.node(inode)?;
        Ok(rustix::fs::readlinkat(&node.file, "", Vec::new())?.into_bytes())
    }

    fn symlink(&self, context: &Context, linkname: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        let parent = self.directory(parent, name)?;
        {
            let _acting = ActingFor::new(self, context.uid, context.gid)?;
            rustix::fs::symlinkat(linkname, &parent.file, name)?;
        }
        self.look_up(&parent, name)
    }

    fn mknod(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        raw_mode: u32,
        _rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        let kind = match FileType::from_raw_mode(raw_mode) {
            FileType::Unknown => FileType::RegularFile,
            kind @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => kind,
            _ => return Err(errno(libc::EPERM)), // a device would be the node's
        };
        let parent = self.directory(parent, name)?;
        {
            let _acting = ActingFor::new(self, context.uid, context.gid)?;
            let _masked = Umask::new(umask);
            rustix::fs::mknodat(&parent.file, name, kind, mode(raw_mode), 0)?;
        }
        self.look_up(&parent, name)
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, raw_mode: u32, umask: u32) -> io::Result<Entry> {
        let parent = self.directory(parent, name)?;
        {
            let _acting = ActingFor::new(self, context.uid, context.gid)?;
            let _masked = Umask::new(umask);
            rustix::fs::mkdirat(&parent.file, name, mode(raw_mode))?;
        }
        self.look_up(&parent, name)
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _: &Context,
        olddir: u64,
        oldname: &CStr,
        newdir: u64,
        newname: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        let allowed = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE; // a whiteout would be a device
        let flags = RenameFlags::from_bits(flags).filter(|flags| allowed.contains(*flags));
        let flags = flags.ok_or_else(|| errno(libc::EINVAL))?;
        if olddir == nothing::FOLDER && flags.is_empty() {
            self.directory(newdir, newname)?;
            return nothing::look_up(oldname, || 0).map(drop);
        }
        let (old, new) = (self.directory(olddir, oldname)?, self.directory(newdir, newname)?);
        Ok(rustix::fs::renameat_with(&old.file, oldname, &new.file, newname, flags)?)
    }

    fn link(&self, _: &Context, inode: u64, newparent: u64, newname: &CStr) -> io::Result<Entry> {
        let (node, parent) = (self.node(inode)?, self.directory(newparent, newname)?);
        node.class.check_writable()?;
        rustix::fs::linkat(&self.proc_fd, path(&node), &parent.file, newname, AtFlags::SYMLINK_FOLLOW)?;
        self.look_up(&parent, newname)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        let node = self.node(inode)?;
        let flags = OFlags::from_bits_retain(flags) & OPEN_FLAGS;
        let file = {
            let kill = flags.contains(OFlags::TRUNC) && fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
            let _without = WithoutSetid::new(kill)?;
            self.open_node(&node, flags)?
        };
        let options = caching(&node)?;
        let handle = lock(&self.handles).insert(inode, file)?;
        Ok((Some(handle), options, None))
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        let parent = self.directory(parent, name)?;
        let asked = OFlags::from_bits_retain(args.flags);
        let flags = asked & OPEN_FLAGS;
        let made = {
            let _acting = ActingFor::new(self, context.uid, context.gid)?;
            let _masked = Umask::new(args.umask);
            let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&parent.file, name, flags, mode(args.mode)) {
                Ok(file) => Some(File::from(file)),
                Err(Errno::EXIST) if !asked.contains(OFlags::EXCL) => None,
                Err(error) => return Err(error.into()),
            }
        };
        let entry = self.look_up(&parent, name)?;
        let opened = match made {
            Some(file) => Ok(file),
            None => {
                let kill = flags.contains(OFlags::TRUNC) && args.fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
                let opened = WithoutSetid::new(kill).and_then(|_without| {
                    let node = self.node(entry.inode)?;
                    self.open_node(&node, flags)
                });
                opened.inspect_err(|_| self.forget_once(entry.inode))
            }
        };
        let handle = self.keep_open(&entry, opened?)?;
        Ok((entry, Some(handle), OpenOptions::empty(), None))
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
        handle: u64,
        _flush: bool,
        _flock_release: bool,
        _lock_owner: Option<u64>,
    ) -> io::Result<()> {
        let closed = lock(&self.handles).remove(handle, inode)?;
        drop(closed); // without the lock
        Ok(())
    }

    fn fsync(&self, _: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.sync(inode, handle, datasync)
    }

    fn fsyncdir(&self, _: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.sync(inode, handle, datasync)
    }

    fn fallocate(&self, _: &Context, inode: u64, handle: u64, raw: u32, offset: u64, length: u64) -> io::Result<()> {
        let allowed = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let flags = FallocateFlags::from_bits(raw).filter(|flags| allowed.contains(*flags));
        let flags = flags.ok_or_else(|| errno(libc::EOPNOTSUPP))?;
        let handle = lock(&self.handles).get(handle, inode)?;
        Ok(rustix::fs::fallocate(&handle.file, flags, offset, length)?)
    }

    fn lseek(&self, _: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let position = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        let handle = lock(&self.handles).get(handle, inode)?;
        let _position = lock(&handle.position);
        Ok(rustix::fs::seek(&handle.file, position)?)
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        sys::statvfs(self.node(inode)?.file.as_fd())
    }

    fn opendir(&self, _: &Context, inode: u64, _flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        let node = self.node(inode)?;
        let file = self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let handle = lock(&self.handles).insert(inode, file)?;
        Ok((Some(handle), directory_caching(node.class)))
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory(inode, handle, size, offset, |entry, _| add_entry(entry))
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory(inode, handle, size, offset, |mut listed, name| {
            let entry = self.entry_in(inode, name);
            if entry.inode != 0 {
                listed.ino = entry.attr.st_ino;
            }
            let added = add_entry(listed, entry);
            if entry.inode != 0 && !matches!(added, Ok(1..)) {
                self.forget_once(entry.inode); // the guest did not learn of it
            }
            added
        })
    }

    fn releasedir(&self, _: &Context, inode: u64, _flags: u32, handle: u64) -> io::Result<()> {
        let closed = lock(&self.handles).remove(handle, inode)?;
        drop(closed); // without the lock
        Ok(())
    }

    fn getxattr(&self, _: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        xattr::get(&*self.node(inode)?, name, size)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        xattr::list(&*self.node(inode)?, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        xattr::remove(&*self.node(inode)?, name)
    }
}

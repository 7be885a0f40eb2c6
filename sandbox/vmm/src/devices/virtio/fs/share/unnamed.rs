//! Files without a name (`O_TMPFILE`), which may get one later.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::abi::fuse_abi::CreateIn;
use fuse_backend_rs::api::filesystem::{Context, Entry, OpenOptions};
use rustix::fs::{Mode, OFlags};

use super::Share;
use super::credentials::{ActingFor, Umask};
use super::filesystem::{OPEN_FLAGS, mode};
use super::nodes::add;

impl Share {
    /// Makes a file without a name on the file system of the directory `parent`, and opens it. It
    /// is gone when the guest neither knows it nor has it open, unless it was linked before;
    /// `O_EXCL` forbids that it is ever linked.
    pub(crate) fn create_unnamed(
        &self,
        context: &Context,
        parent: u64,
        arguments: CreateIn,
    ) -> io::Result<(Entry, u64, OpenOptions)> {
        let parent = self.node(parent)?;
        parent.class.check_writable()?;
        let asked = OFlags::from_bits_retain(arguments.flags) & OPEN_FLAGS.union(OFlags::EXCL);
        let file = {
            let _acting = ActingFor::new(self, context.uid, context.gid)?;
            let _masked = Umask::new(arguments.umask);
            let flags = asked | OFlags::TMPFILE | OFlags::CLOEXEC;
            File::from(rustix::fs::openat(&parent.file, c".", flags, mode(arguments.mode))?)
        };
        // There is no name by which to find it, as for other files, but its descriptor.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let known = rustix::fs::openat(&self.proc_fd, file.as_raw_fd().to_string(), flags, Mode::empty())?;
        let entry = add(&self.nodes, parent.class, c"", known)?;
        let handle = self.keep_open(&entry, file)?;
        Ok((entry, handle, OpenOptions::empty()))
    }
}

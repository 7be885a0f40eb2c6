//! The file server: what a guest may see and do below one directory.
//!
//! ```text
//! share            the daemon's own: read-only for the guest, never cached, mounts come and go
//!   <name>         an export: anything mounted below the share
//!   <d>-<i>-<a>-<view>   an export that is the pod's alone, or one that consists of several mounts:
//!                        its files are the same as those of others of that view only
//!   layer<name>    a mount whose name begins so: an image's layer, which never changes; cached for long, read-only here too
//!   .nothing/link  a link that is not there, for the agent to rename over names of volumes
//! ```
//!
//! - A file is reached only by one component after another from a descriptor that the guest was given, without following
//!   symlinks and without `.` and `..`; so nothing outside can be named, however the guest's names look and whatever moves on the node.
//! - Whether a volume may be written is the mount's to say: the node's kernel answers EROFS, whatever the guest's flags.
//! - Only regular files and directories are ever opened; device nodes cannot be made.
//! - A node's number is used once. What the guest forgets is closed. Files that it knows and files that it has open are bounded together.

mod credentials;
mod descriptors;
mod directory;
mod filesystem;
mod handles;
mod nodes;
mod nothing;
mod stamp;
mod sys;
mod unnamed;
mod xattr;

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::Mode;

use super::places::Place;
use crate::event_loop::lock;
use crate::process;
use descriptors::Descriptors;
use handles::Handles;
use nodes::{Class, Node, Nodes};
pub(super) use xattr::NewAttribute;

/// Where a request's own number is, of the bytes of a request.
const UNIQUE: usize = 8;
/// Bytes of a request's header.
const HEADER: usize = 40;

/// A file server for one directory.
///
/// Several threads serve. None holds a lock of the tables while it asks a file system, which may never answer.
pub(crate) struct Share {
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
    /// `/proc/self/fd`, by which a node is opened: by its descriptor, not by a name.
    proc_fd: OwnedFd,
    /// Whether this process may act for other users.
    privileged: bool,
    /// The guest's kernel sends the longer form of requests to set an attribute.
    extended: AtomicBool,
}

impl Share {
    /// Serves `root`.
    pub(crate) fn new(root: OwnedFd) -> io::Result<Self> {
        Self::bounded(root, Descriptors::of_process())
    }

    /// As [`Self::new`], with a bound for the descriptors that the guest makes it hold.
    fn bounded(root: OwnedFd, descriptors: Descriptors) -> io::Result<Self> {
        let proc_fd = process::descriptors()?;
        let privileged = rustix::process::geteuid().is_root();
        let nodes = Mutex::new(Nodes::new(root, descriptors.clone())?);
        let handles = Mutex::new(Handles::new(descriptors));
        Ok(Self { nodes, handles, proc_fd, privileged, extended: AtomicBool::new(false) })
    }

    /// Makes the calling thread one that may serve: its working directory and umask are its own, and serve this.
    pub(crate) fn enter_thread(&self) -> io::Result<()> {
        sys::unshare_fs()?;
        rustix::process::fchdir(&self.proc_fd)?;
        rustix::process::umask(Mode::empty());
        Ok(())
    }

    /// Begins anew, with a guest's kernel that sends the longer form of requests to set an
    /// attribute, or not.
    pub(super) fn begin(&self, extended: bool) {
        self.clear();
        self.extended.store(extended, Ordering::Relaxed);
    }

    /// Whether requests to set an attribute have the longer form.
    pub(super) fn sets_attributes_extended(&self) -> bool {
        self.extended.load(Ordering::Relaxed)
    }

    /// Forgets everything but the root, and closes it.
    pub(crate) fn clear(&self) {
        let handles = lock(&self.handles).clear();
        let nodes = lock(&self.nodes).clear();
        drop((handles, nodes)); // which closes files, so it may take long
    }

    /// Whether the guest knows no file but the root, and has none open.
    pub(super) fn knows_only_root(&self) -> bool {
        lock(&self.nodes).count() == 0 && lock(&self.handles).count() == 0
    }

    /// Which file system is asked by a request about the node `number`; `request` is how it begins.
    pub(super) fn place(&self, number: u64, request: &[u8]) -> Place {
        match self.node(number) {
            Ok(node) if node.class != Class::Share => node.place(),
            _ => {
                let mut hasher = DefaultHasher::new();
                // All but the fields that differ each time: the number of the request, and who asks.
                hasher.write(request.get(..UNIQUE).unwrap_or_default());
                hasher.write(request.get(HEADER..).unwrap_or_default());
                Place::Share(hasher.finish())
            }
        }
    }

    /// Makes it hold `most` descriptors at most from now on, with none held.
    #[cfg(test)]
    pub(super) fn limit(&self, most: usize) {
        let descriptors = Descriptors::new(most);
        lock(&self.nodes).set_descriptors(descriptors.clone());
        *lock(&self.handles) = Handles::new(descriptors);
    }

    /// How many descriptors it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        lock(&self.nodes).descriptors().count()
    }

    /// How many files the guest knows and has open.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (lock(&self.nodes).count(), lock(&self.handles).count())
    }

    fn node(&self, number: u64) -> io::Result<Arc<Node>> {
        lock(&self.nodes).get(number)
    }
}

/// An error by its number.
fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

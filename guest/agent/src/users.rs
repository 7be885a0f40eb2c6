//! The pod's own users: a user namespace in which its root is an ordinary user of the node.
//!
//! ```text
//!  in the container   0 ............ length-1
//!  on the node        host_id ...... host_id+length-1      files of layers and volumes are shown through mapped mounts
//! ```
//!
//! In a microVM the node's file server shows files through such mounts; the guest's kernel sees the mapped numbers. There "the
//! node" is the guest.
//!
//! The agent stays outside, as the node's root. A container is set up from there too; what that makes belongs to the pod's root
//! ([`Users::own_what_is_made`]). Then its process enters for good, and takes a copy of its mounts that belongs to the pod's users: what is masked or
//! read-only is locked in it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cofferdam_proto::supervisor::UserRange;
use rustix::thread::{CapabilitiesSecureBits, LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Doing, Error, Result};
use crate::{guest, network, sys};

/// The namespace and its map, the same for users and groups.
#[derive(Debug)]
pub struct Users {
    namespace: OwnedFd,
    range: UserRange,
}

impl Users {
    /// The users of `namespace`, whose map is `range`.
    pub fn new(namespace: OwnedFd, range: UserRange) -> Self {
        Self { namespace, range }
    }

    /// Makes users in a microVM, with all its network cards, and enters their network, IPC and host name for good: a namespace belongs
    /// to the users among whom it was made, and only in those may the pod's root bind to port 80 or send pings.
    ///
    /// # Errors
    /// When they could not be told from the guest's root, or the kernel refuses.
    pub async fn make(range: UserRange) -> Result<Self> {
        let last = range.length.checked_sub(1).and_then(|more| range.host_id.checked_add(more));
        if range.host_id == 0 || last.is_none_or(|last| last == u32::MAX) {
            return Err(Error::invalid(format!("no pod can have {} users from {} on", range.length, range.host_id)));
        }
        let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        let child = sys::fork(flags, None, || {
            let _ = sys::close_range(0, u32::MAX);
            sys::pause_for_ever()
        })
        .doing("start a process with users of the pod's own")?;
        let made = Self::of_process(child.pid.as_raw_nonzero().get(), range);
        let _ = sys::pidfd_kill(&child.pidfd, libc::SIGKILL);
        let (users, spaces) = made?;
        network::hand_over(&spaces[0]).await?;
        for (namespace, kind) in spaces.iter().zip([
            LinkNameSpaceType::Network,
            LinkNameSpaceType::InterProcessCommunication,
            LinkNameSpaceType::HostNameAndNISDomainName,
        ]) {
            move_into_link_name_space(namespace.as_fd(), Some(kind)).doing("enter a namespace of the pod's users")?;
        }
        guest::mount_sys()?;
        network::loopback().await?;
        Ok(users)
    }

    /// Writes the map of the users of process `pid`, and opens its namespaces: network, IPC, host name.
    fn of_process(pid: i32, range: UserRange) -> Result<(Self, [OwnedFd; 3])> {
        let folder = Path::new("/proc").join(pid.to_string());
        let line = format!("0 {} {}\n", range.host_id, range.length);
        for name in ["uid_map", "gid_map"] {
            // One write: the kernel takes the first for the whole.
            fs::write(folder.join(name), &line).doing(format!("write the {name} of the pod's users"))?;
        }
        let open = |name: &str| -> Result<OwnedFd> {
            let file = fs::File::open(folder.join("ns").join(name));
            file.map(OwnedFd::from).doing(format!("open the {name} namespace of the pod's users"))
        };
        Ok((Self::new(open("user")?, range), [open("net")?, open("ipc")?, open("uts")?]))
    }

    /// Its map.
    pub fn range(&self) -> UserRange {
        self.range
    }

    /// The number on the node of a user or group of the pod.
    ///
    /// # Errors
    /// When the pod has none of this number.
    pub fn on_node(&self, id: u32) -> Result<u32> {
        let host = if id < self.range.length { self.range.host_id.checked_add(id) } else { None };
        host.ok_or_else(|| {
            Error::invalid(format!(
                "user or group {id} is not one of the pod's, which are 0 to {}",
                self.range.length.saturating_sub(1)
            ))
        })
    }

    /// Pod's root on the node.
    pub fn root(&self) -> u32 {
        self.range.host_id
    }

    /// Descriptor's number, for who closes all others.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.namespace
    }

    /// Makes a mount that is not mounted anywhere yet show its files' owners as the pod's users.
    ///
    /// # Errors
    /// When a file system in it cannot do that.
    pub fn map_mount(&self, tree: impl AsFd, recursive: bool) -> std::io::Result<()> {
        sys::map_owners(tree, recursive, &self.namespace)
    }

    /// From now on, what this process makes belongs to the pod's root; it stays the node's root otherwise. Ended by [`Users::enter`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn own_what_is_made(&self) -> Result<()> {
        // Or another user would not have root's capabilities over files. Entering the namespace takes it back.
        rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
            .doing("keep capabilities while files are made for the pod's users")?;
        sys::files_owner(self.range.host_id);
        Ok(())
    }

    /// Becomes one of the pod's processes, with all rights there and none on the node.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::User))
            .doing("enter the pod's user namespace")?;
        // Its root: else it would stay the node's, which is nobody in here.
        rustix::thread::set_thread_groups(&[]).doing("leave the node's groups")?;
        let (uid, gid) = (rustix::thread::Uid::ROOT, rustix::thread::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).doing("become the pod's root group")?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).doing("become the pod's root")
    }

    /// As [`Users::enter`], then takes a copy of all mounts: the container's own, in which none of the node's can be undone.
    ///
    /// # Errors
    /// When the kernel refuses.
    #[allow(unsafe_code)] // unshare
    pub fn enter_with_mounts(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the flag makes neither descriptors nor memory unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.doing("take the mounts over for the pod's users")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_within_the_map() {
        let users = |host_id, length| {
            Users::new(std::fs::File::open("/dev/null").unwrap().into(), UserRange { host_id, length })
        };
        for (host_id, length, id, expected) in [
            (1000, 100, 0, Some(1000)),
            (1000, 100, 99, Some(1099)),
            (1000, 100, 100, None),
            (1000, 100, u32::MAX, None),
            (u32::MAX - 1, 10, 1, Some(u32::MAX)),
            (u32::MAX - 1, 10, 2, None),
        ] {
            assert_eq!(users(host_id, length).on_node(id).ok(), expected, "{host_id} {length} {id}");
        }
    }
}

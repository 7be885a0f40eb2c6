//! For whom the calling thread acts.

use std::io;

use rustix::fs::{Mode, RawMode};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::{Share, errno, sys};

/// New files belong to this user and group while it lives.
///
/// The guest's kernel has checked the user's permissions, with groups that the server does not know; so the thread keeps the
/// capability to pass those checks.
pub(super) struct ActingFor {
    user: bool,
    group: bool,
}

impl ActingFor {
    pub(super) fn new(share: &Share, uid: u32, gid: u32) -> io::Result<Self> {
        let mut acting = Self { user: false, group: false };
        if [uid, gid].contains(&u32::MAX) {
            // The system call takes it for "as it is", so the way back to all capabilities would not be one.
            return Err(errno(libc::EINVAL));
        }
        if !share.privileged {
            return Ok(acting);
        }
        if gid != 0 {
            sys::set_effective_gid(gid)?;
            acting.group = true;
        }
        if uid != 0 {
            let before = capabilities(None)?;
            sys::set_effective_uid(uid)?; // which takes away all effective capabilities
            acting.user = true;
            let effective = before.effective & CapabilitySet::DAC_OVERRIDE;
            set_capabilities(None, CapabilitySets { effective, ..before })?;
        }
        Ok(acting)
    }
}

impl Drop for ActingFor {
    fn drop(&mut self) {
        // Back to user 0 gives the permitted capabilities back.
        let user = if self.user { sys::set_effective_uid(0) } else { Ok(()) };
        let group = if self.group { sys::set_effective_gid(0) } else { Ok(()) };
        if let Err(error) = user.and(group) {
            // Going on for another user would be wrong for every later request.
            complain!("fs: cannot act as oneself again: {error}");
            std::process::abort();
        }
    }
}

/// While it lives, changed content takes set-user and set-group bits away, as for any user without privileges.
pub(super) struct WithoutSetid(Option<CapabilitySets>);

impl WithoutSetid {
    /// Does nothing unless `wanted`.
    pub(super) fn new(wanted: bool) -> io::Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let before = capabilities(None)?;
        let effective = before.effective - CapabilitySet::FSETID;
        set_capabilities(None, CapabilitySets { effective, ..before })?;
        Ok(Self(Some(before)))
    }
}

impl Drop for WithoutSetid {
    fn drop(&mut self) {
        if let Some(before) = self.0.take()
            && let Err(error) = set_capabilities(None, before)
        {
            complain!("fs: cannot take a capability up again: {error}");
        }
    }
}

/// What a program's umask takes off the modes of the files that it makes, while this lives. The
/// node's kernel applies it, as it knows whether a default ACL of the directory takes its place.
/// The calling thread's own umask is none.
pub(super) struct Umask;

impl Umask {
    pub(super) fn new(umask: u32) -> Self {
        rustix::process::umask(Mode::from_raw_mode((umask & 0o777) as RawMode));
        Self
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(Mode::empty());
    }
}

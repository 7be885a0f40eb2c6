//! The monitor locks itself in: once everything is open and before the first instruction of the guest.
//!
//! From here on, the process and all threads that it starts are in a mount namespace whose root is the share, can open files below the
//! share only (Landlock), have no capabilities beyond what acting for a guest's users needs, and each thread can make only the system
//! calls that [`calls`] lists for its kind. Nothing of this can be taken back. The PID namespace that they are alone in is the
//! launcher's to make.

mod calls;
mod landlock;
mod seccomp;
#[cfg(test)]
mod tests;
mod threads;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, move_into_link_name_space,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

pub(crate) use calls::ThreadKind;
#[cfg(test)]
pub(crate) use threads::run_as;
pub(crate) use threads::start as start_thread;

/// What the file server needs to make files for any user and to pass the checks that the guest's kernel made. Not among
/// them: making devices, mounting, tracing, signalling, the network.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP);

/// Why it could not.
#[derive(Debug, thiserror::Error)]
#[error("cannot lock the monitor in: {step}")]
pub(crate) struct LockInError {
    step: &'static str,
    #[source]
    source: io::Error,
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> LockInError {
    move |source| LockInError { step, source: source.into() }
}

/// Locks the calling thread, the main one, in, and every thread that is started later; `share` is what may be opened below, and the
/// root of the mount namespace `mounts`.
pub(crate) fn lock_in(share: BorrowedFd<'_>, mounts: Option<OwnedFd>) -> Result<(), LockInError> {
    // A guest may know as many files as its memory holds; a crash's core would be the guest's memory.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })
        .map_err(step("raise its limit of files"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(step("forbid core dumps"))?;
    match mounts {
        // Fails if there is another thread, which would stay in the node's namespace.
        Some(mounts) => enter(mounts.as_fd()).map_err(step("enter its mount namespace"))?,
        None => eprintln!("the launcher handed over no mount namespace: the monitor stays in that of the node"),
    }
    set_no_new_privs(true).map_err(step("give up new privileges"))?;
    drop_capabilities().map_err(step("drop capabilities"))?;
    let missing = landlock::restrict(share).map_err(io::Error::other).map_err(step("restrict what it may open"))?;
    if let Some(missing) = missing {
        eprintln!("{missing}");
    }
    seccomp::restrict_process().map_err(step("restrict its system calls"))?;
    threads::divide().map_err(step("restrict the system calls of its main thread"))
}

/// Makes the root of the namespace `mounts` the root and working directory of the calling thread, which must share them with no other.
fn enter(mounts: BorrowedFd<'_>) -> rustix::io::Result<()> {
    move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))
}

fn drop_capabilities() -> rustix::io::Result<()> {
    let now = capabilities(None)?;
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(KEPT).iter() {
            match remove_capability_from_bounding_set(capability) {
                Ok(()) | Err(rustix::io::Errno::INVAL) => {} // one that this kernel does not know
                Err(error) => return Err(error),
            }
        }
    }
    let kept = now.permitted & KEPT;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

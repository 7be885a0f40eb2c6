//! What the targets of `fuzz/` reach of the agent: parsers of what an image or a profile says.
//! Behind the feature `fuzzing`, so the product has none of it.

use cofferdam_proto::agent::seccomp::Kind;
use cofferdam_proto::agent::{Seccomp, User};

use crate::container::capabilities::Caps;
use crate::container::{seccomp, user};

/// Compiles a seccomp profile for a container with the capabilities `bounding`.
pub fn seccomp_profile(json: &[u8], bounding: u64) {
    let request = Seccomp { kind: Kind::Profile.into(), profile: json.to_vec() };
    let caps = Caps { bounding, ..Caps::default() };
    let _ = seccomp::filter(Some(&request), &caps);
}

/// Looks a user up in an image's `/etc/passwd` and `/etc/group`.
///
/// # Panics
/// When a container would get a number that means "none" to the kernel.
pub fn user(passwd: &str, group: &str, user: &User) {
    let Ok(found) = user::resolve_in(passwd, group, user) else { return };
    let none = |id: u32| id == u32::MAX;
    assert!(!none(found.uid) && !none(found.gid) && !found.groups.iter().any(|id| none(*id)), "{found:?}");
    assert_eq!(found.groups.first(), Some(&found.gid), "{found:?}");
}

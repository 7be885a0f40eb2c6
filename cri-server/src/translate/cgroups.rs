//! How a container sees its cgroups: `cgroupns_options` and `cgroup_mount_mode`, new in CRI of Kubernetes 1.38.
//!
//! A container has a cgroup namespace of its own and a read-only /sys/fs/cgroup; a privileged one is in its machine's cgroup namespace (the
//! node's, or the guest's) and may write. Neither can be chosen: another wish is refused, and the status does not promise more.

use cofferdam_proto::cri::{CgroupMountMode, LinuxContainerSecurityContext, NamespaceMode};

use crate::error::CriError;

/// Refuses what the container would not get.
pub(crate) fn check(context: &LinuxContainerSecurityContext) -> Result<(), CriError> {
    let privileged = context.privileged;
    let who = if privileged { "a privileged container" } else { "a container that is not privileged" };
    let asked = context.namespace_options.as_ref().and_then(|options| options.cgroupns_options.as_ref());
    if let Some(asked) = asked {
        let mode = NamespaceMode::try_from(asked.mode)
            .map_err(|_| CriError::invalid(format!("unknown cgroup namespace mode {}", asked.mode)))?;
        match (mode, privileged) {
            (NamespaceMode::Container, false) | (NamespaceMode::Node, true) => {}
            _ => return Err(CriError::invalid(format!("{who} cannot have the cgroup namespace {mode:?}"))),
        }
    }
    let mode = CgroupMountMode::try_from(context.cgroup_mount_mode)
        .map_err(|_| CriError::invalid(format!("unknown cgroup mount mode {}", context.cgroup_mount_mode)))?;
    match (mode, privileged) {
        (CgroupMountMode::Unspecified, _) => Ok(()),
        (CgroupMountMode::ReadOnly, false) | (CgroupMountMode::ReadWrite, true) => Ok(()),
        _ => Err(CriError::invalid(format!("the cgroups of {who} cannot be mounted as {}", mode.as_str_name()))),
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_proto::cri::{CgroupNamespace, NamespaceOption};

    use super::*;

    #[test]
    fn only_what_is_so_anyway_can_be_asked_for() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let context = |mode: Option<i32>, mount: i32, privileged| LinuxContainerSecurityContext {
            privileged,
            cgroup_mount_mode: mount,
            namespace_options: Some(NamespaceOption {
                cgroupns_options: mode.map(|mode| CgroupNamespace { mode }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let (unspecified, read_only, read_write) = (0, 1, 2);
        for (mode, mount, plain, privileged) in [
            (None, unspecified, true, true),
            (Some(Container.into()), unspecified, true, false),
            (Some(Node.into()), unspecified, false, true),
            (Some(Pod.into()), unspecified, false, false),
            (Some(Target.into()), unspecified, false, false),
            (Some(9), unspecified, false, false),
            (None, read_only, true, false),
            (None, read_write, false, true),
            (None, 9, false, false),
        ] {
            for (is_privileged, fits) in [(false, plain), (true, privileged)] {
                let got = check(&context(mode, mount, is_privileged));
                assert_eq!(got.is_ok(), fits, "{mode:?}, {mount}, privileged {is_privileged}: {got:?}");
            }
        }
    }
}

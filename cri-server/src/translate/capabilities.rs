//! Capability sets of a container.

use cofferdam_proto::agent::Capabilities;
use cofferdam_proto::cri::Capability;

use crate::error::CriError;

/// Every capability of Linux 6.12.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has unless it asks otherwise: the set that Kubernetes documents by Docker's example.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

fn known(name: &str) -> Result<&'static str, CriError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.iter()
        .find(|c| **c == bare)
        .copied()
        .ok_or_else(|| CriError::invalid(format!("unknown capability {:?}", crate::node::shorten(name))))
}

/// The sets. Nothing is inheritable (CVE-2022-24769); ambient ones are those that were asked for.
pub(crate) fn sets(asked: Option<&Capability>, privileged: bool) -> Result<Capabilities, CriError> {
    let empty = Capability::default();
    let asked = asked.unwrap_or(&empty);
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL");
    let drop_all = asked.drop_capabilities.iter().any(is_all);
    // Of both ALLs the drop counts, as in containerd: what is then left is named one by one.
    let mut set: Vec<&'static str> = if privileged || (asked.add_capabilities.iter().any(is_all) && !drop_all) {
        ALL.to_vec()
    } else if drop_all {
        Vec::new()
    } else {
        DEFAULT.to_vec()
    };
    let add = |set: &mut Vec<&'static str>, names: &[String]| -> Result<Vec<&'static str>, CriError> {
        let names: Vec<_> = names.iter().filter(|n| !is_all(n)).map(|n| known(n)).collect::<Result<_, _>>()?;
        for name in &names {
            if !set.contains(name) {
                set.push(name);
            }
        }
        Ok(names)
    };
    add(&mut set, &asked.add_capabilities)?;
    let ambient = add(&mut set, &asked.add_ambient_capabilities)?;
    let dropped: Vec<_> =
        asked.drop_capabilities.iter().filter(|n| !is_all(n)).map(|n| known(n)).collect::<Result<_, _>>()?;
    if !privileged {
        set.retain(|c| !dropped.contains(c));
    }
    let names = |list: &[&str]| list.iter().map(|c| format!("CAP_{c}")).collect::<Vec<_>>();
    let ambient: Vec<_> = ambient.into_iter().filter(|c| set.contains(c)).collect();
    Ok(Capabilities {
        bounding: names(&set),
        permitted: names(&set),
        effective: names(&set),
        inheritable: names(&ambient),
        ambient: names(&ambient),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(add: &[&str], drop: &[&str], ambient: &[&str]) -> Capability {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Capability { add_capabilities: own(add), drop_capabilities: own(drop), add_ambient_capabilities: own(ambient) }
    }

    #[test]
    fn sets_follow_add_drop_and_all() {
        let count = |a: &Capability| sets(Some(a), false).unwrap().effective.len();
        assert_eq!(sets(None, false).unwrap().bounding.len(), 14);
        assert_eq!(count(&asked(&["NET_ADMIN"], &[], &[])), 15);
        assert_eq!(count(&asked(&["cap_net_admin", "CAP_CHOWN"], &[], &[])), 15);
        assert_eq!(count(&asked(&[], &["NET_RAW"], &[])), 13);
        assert_eq!(count(&asked(&["ALL"], &[], &[])), 41);
        assert_eq!(count(&asked(&[], &["ALL"], &[])), 0);
        assert_eq!(count(&asked(&["NET_ADMIN"], &["ALL"], &[])), 1);
        assert_eq!(count(&asked(&["ALL", "NET_ADMIN"], &["ALL"], &[])), 1);
        assert_eq!(count(&asked(&["ALL"], &["SYS_ADMIN"], &[])), 40);
        assert_eq!(sets(Some(&asked(&[], &["ALL"], &[])), true).unwrap().effective.len(), 41);
        assert!(sets(None, false).unwrap().inheritable.is_empty());
    }

    #[test]
    fn ambient_ones_are_in_every_set() {
        let sets = sets(Some(&asked(&[], &["ALL"], &["NET_BIND_SERVICE"])), false).unwrap();
        for set in [sets.ambient, sets.inheritable, sets.permitted, sets.effective, sets.bounding] {
            assert_eq!(set, ["CAP_NET_BIND_SERVICE"]);
        }
    }

    #[test]
    fn unknown_ones_are_refused() {
        assert!(sets(Some(&asked(&["ROOT"], &[], &[])), false).is_err());
        assert!(sets(Some(&asked(&[], &["CAP_"], &[])), false).is_err());
    }
}

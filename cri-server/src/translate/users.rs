//! Users of a pod's own: a user namespace, as CRI asks for it.

use cofferdam_proto::cri::{IdMapping, NamespaceMode, UserNamespace};
use cofferdam_sandbox::UserRange;

use super::namespaces::Placement;
use crate::error::CriError;

/// The range of a pod's users; `None` for those of its machine.
pub(crate) fn of_pod(asked: Option<&UserNamespace>, placement: &Placement) -> Result<Option<UserRange>, CriError> {
    let Some(range) = range(asked)? else { return Ok(None) };
    let shared = [("network", placement.node_network), ("PID", placement.node_pid), ("IPC", placement.node_ipc)];
    if let Some((what, _)) = shared.iter().find(|(_, shared)| *shared) {
        return Err(CriError::invalid(format!(
            "a pod with a user namespace cannot share the node's {what} namespace, which belongs to the node's users"
        )));
    }
    Ok(Some(range))
}

/// A container's users are its pod's; it may say so.
pub(crate) fn of_container(asked: Option<&UserNamespace>, pod: Option<UserRange>) -> Result<(), CriError> {
    if asked.is_none() || range(asked)? == pod {
        return Ok(());
    }
    Err(CriError::invalid("the container asks for another user namespace than its pod sandbox has"))
}

/// Whether a volume's owners are to be shown as the pod's users.
pub(crate) fn of_mount(uids: &[IdMapping], gids: &[IdMapping], pod: Option<UserRange>) -> Result<bool, CriError> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(false);
    }
    match pod {
        Some(pod) if one("uid", uids)? == pod && one("gid", gids)? == pod => Ok(true),
        Some(_) => Err(CriError::invalid("maps owners to others than the pod's users")),
        None => Err(CriError::invalid("maps owners, and the pod has no user namespace")),
    }
}

/// As it is echoed in the status.
pub(crate) fn status(range: UserRange) -> UserNamespace {
    let map = vec![IdMapping { container_id: 0, host_id: range.host_id, length: range.length }];
    UserNamespace { mode: NamespaceMode::Pod.into(), uids: map.clone(), gids: map }
}

fn range(asked: Option<&UserNamespace>) -> Result<Option<UserRange>, CriError> {
    let Some(asked) = asked else { return Ok(None) };
    match NamespaceMode::try_from(asked.mode) {
        Ok(NamespaceMode::Node) if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        Ok(NamespaceMode::Node) => Err(CriError::invalid("the node's user namespace has no mappings to choose")),
        Ok(NamespaceMode::Pod) => {
            let (uids, gids) = (one("uid", &asked.uids)?, one("gid", &asked.gids)?);
            if uids != gids {
                return Err(CriError::invalid("the mappings of users and groups differ; they must be the same"));
            }
            Ok(Some(uids))
        }
        Ok(mode) => Err(CriError::invalid(format!("a user namespace is the pod's or the node's, not {mode:?}"))),
        Err(_) => Err(CriError::invalid(format!("unknown user namespace mode {}", asked.mode))),
    }
}

fn one(what: &str, mappings: &[IdMapping]) -> Result<UserRange, CriError> {
    let refuse = |why: String| Err(CriError::invalid(format!("user namespace: {why}")));
    let [map] = mappings else {
        return refuse(format!("{} {what} mappings, where exactly one is supported", mappings.len()));
    };
    if map.container_id != 0 {
        return refuse(format!(
            "the {what} mapping starts at {} and not at 0, so the pod has no root",
            map.container_id
        ));
    }
    if map.host_id == 0 {
        return refuse(format!("the {what} mapping makes the pod's root the node's"));
    }
    // The last number means "none" to the kernel.
    let last = map.length.checked_sub(1).and_then(|more| map.host_id.checked_add(more));
    if last.is_none_or(|last| last == u32::MAX) {
        return refuse(format!(
            "the {what} mapping of {} from {} on is empty or leaves 32 bits",
            map.length, map.host_id
        ));
    }
    Ok(UserRange { host_id: map.host_id, length: map.length })
}

#[cfg(test)]
mod tests {
    use cofferdam_sandbox::Kind;

    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> IdMapping {
        IdMapping { container_id, host_id, length }
    }

    fn pod(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> UserNamespace {
        UserNamespace { mode: mode.into(), uids: uids.to_vec(), gids: gids.to_vec() }
    }

    fn placement(kind: Kind) -> Placement {
        Placement { kind, moved: false, node_network: false, node_pid: false, node_ipc: false }
    }

    #[test]
    fn one_range_from_root_on() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = [map(0, 1000, 100_000)];
        type Row<'a> = (NamespaceMode, &'a [IdMapping], &'a [IdMapping], Result<Option<(u32, u32)>, &'a str>);
        let rows: &[Row<'_>] = &[
            (Node, &[], &[], Ok(None)),
            (Node, &good, &good, Err("no mappings")),
            (Pod, &good, &good, Ok(Some((1000, 100_000)))),
            (Pod, &[map(0, 1, 1)], &[map(0, 1, 1)], Ok(Some((1, 1)))),
            (Pod, &[map(0, u32::MAX - 10, 10)], &[map(0, u32::MAX - 10, 10)], Ok(Some((u32::MAX - 10, 10)))),
            (Pod, &[], &[], Err("0 uid mappings")),
            (Pod, &good, &[], Err("0 gid mappings")),
            (Pod, &good, &[map(0, 2000, 100_000)], Err("differ")),
            (Pod, &[good[0], map(0, 2000, 5)], &[good[0], map(0, 2000, 5)], Err("2 uid mappings")),
            (Pod, &[good[0], map(100_000, 0, 5)], &good, Err("2 uid mappings")),
            (Pod, &[map(1, 1000, 5)], &[map(1, 1000, 5)], Err("not at 0")),
            (Pod, &[map(0, 0, 5)], &[map(0, 0, 5)], Err("the node's")),
            (Pod, &[map(0, 1000, 0)], &[map(0, 1000, 0)], Err("empty")),
            (Pod, &[map(0, u32::MAX, 1)], &[map(0, u32::MAX, 1)], Err("32 bits")),
            (Pod, &[map(0, u32::MAX - 9, 10)], &[map(0, u32::MAX - 9, 10)], Err("32 bits")),
            (Pod, &[map(0, 1000, u32::MAX)], &[map(0, 1000, u32::MAX)], Err("32 bits")),
            (Pod, &[map(0, 1 << 31, 1 << 31)], &[map(0, 1 << 31, 1 << 31)], Err("32 bits")),
            (Container, &[], &[], Err("not Container")),
            (Target, &good, &good, Err("not Target")),
        ];
        for (mode, uids, gids, expected) in rows {
            let got = of_pod(Some(&pod(*mode, uids, gids)), &placement(Kind::Host));
            match (got, expected) {
                (Ok(got), Ok(expected)) => {
                    assert_eq!(got.map(|r| (r.host_id, r.length)), *expected, "{mode:?} {uids:?}")
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{mode:?} {uids:?}: {error}"),
                (got, _) => panic!("{mode:?} {uids:?} {gids:?}: {got:?}"),
            }
        }
        let odd = UserNamespace { mode: 7, ..Default::default() };
        assert!(of_pod(Some(&odd), &placement(Kind::Host)).is_err());
        assert_eq!(of_pod(None, &placement(Kind::Vm)).unwrap(), None);
    }

    #[test]
    fn what_does_not_go_with_it() {
        let asked = pod(NamespaceMode::Pod, &[map(0, 1000, 10)], &[map(0, 1000, 10)]);
        assert!(of_pod(Some(&asked), &placement(Kind::Vm)).unwrap().is_some());
        for (network, pid, ipc) in [(true, false, false), (false, true, false), (false, false, true)] {
            let shared = Placement { node_network: network, node_pid: pid, node_ipc: ipc, ..placement(Kind::Host) };
            assert!(of_pod(Some(&asked), &shared).is_err());
        }
    }

    #[test]
    fn containers_and_volumes_follow_their_pod() {
        let own = UserRange { host_id: 1000, length: 10 };
        let asked = pod(NamespaceMode::Pod, &[map(0, 1000, 10)], &[map(0, 1000, 10)]);
        let other = pod(NamespaceMode::Pod, &[map(0, 2000, 10)], &[map(0, 2000, 10)]);
        let node = pod(NamespaceMode::Node, &[], &[]);
        for (asked, of, fits) in [
            (None, None, true),
            (None, Some(own), true),
            (Some(&node), None, true),
            (Some(&node), Some(own), false),
            (Some(&asked), Some(own), true),
            (Some(&asked), None, false),
            (Some(&other), Some(own), false),
        ] {
            assert_eq!(of_container(asked, of).is_ok(), fits, "{asked:?} in {of:?}");
        }
        let (fit, misfit) = ([map(0, 1000, 10)], [map(0, 1000, 11)]);
        assert!(!of_mount(&[], &[], Some(own)).unwrap());
        assert!(!of_mount(&[], &[], None).unwrap());
        assert!(of_mount(&fit, &fit, Some(own)).unwrap());
        for (uids, gids, of) in [(&fit[..], &fit[..], None), (&fit, &misfit, Some(own)), (&fit, &[], Some(own))] {
            assert!(of_mount(uids, gids, of).is_err());
        }
        assert_eq!(range(Some(&status(own))).unwrap(), Some(own));
    }
}

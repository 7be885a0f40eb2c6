//! Version, Status, RuntimeConfig: answered from memory, but for a look at CNI's directory.

use std::collections::HashMap;

use cofferdam_image_store::Failing;
use cofferdam_proto::cri;
use cofferdam_sandbox::Kind;
use serde_json::json;

use crate::config::{CgroupDriver, HANDLERS};
use crate::node::Node;

pub(super) fn version() -> cri::VersionResponse {
    cri::VersionResponse {
        // The kubelet's name for the API's generation, not for ours.
        version: "0.1.0".into(),
        runtime_name: "cofferdam".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: "v1".into(),
    }
}

pub(super) async fn status(node: &Node, request: &cri::StatusRequest) -> cri::StatusResponse {
    let unusable: Vec<String> = HANDLERS
        .iter()
        .filter_map(|(name, kind)| node.unusable(*kind).map(|why| format!("no {name} pods: {why}")))
        .collect();
    let network = node.without_network().await;
    let conditions = vec![
        runtime_ready(unusable, node.health.trouble()),
        condition(
            "NetworkReady",
            network.is_none(),
            if network.is_some() { "NetworkPluginNotReady" } else { "" },
            network.clone().unwrap_or_default(),
        ),
    ];
    let users = node.runtime.user_namespaces();
    let runtime_handlers = handlers(node.config.default_kind, |kind| node.unusable(kind).is_none(), users.is_none());
    let mut info = HashMap::new();
    if request.verbose {
        let kinds: serde_json::Map<_, _> =
            HANDLERS.iter().map(|(name, kind)| ((*name).to_owned(), json!(node.unusable(*kind)))).collect();
        let value = json!({
            "stateDir": node.config.state_dir,
            "runDir": node.config.run_dir,
            "defaultHandler": HANDLERS.iter().find(|(_, k)| *k == node.config.default_kind).map(|(n, _)| n),
            "unusable": kinds,
            "noUserNamespaces": users,
            "network": network,
        });
        info.insert("config".into(), value.to_string());
    }
    cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info,
        runtime_handlers,
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            mount_options: true,
            ..Default::default()
        }),
    }
}

/// A disk that is full does not make the node not ready: the kubelet would stop no pod any more and delete no image, which is how it
/// makes room. A disk that fails does: nothing can be started that a restart of the daemon would find again.
fn runtime_ready(mut unusable: Vec<String>, disk: Option<Failing>) -> cri::RuntimeCondition {
    let none = unusable.len() == HANDLERS.len();
    let failing = disk.as_ref().is_some_and(|disk| !disk.full);
    let reason = match (none, &disk) {
        (true, _) => "NoHandlerUsable",
        (false, Some(disk)) if disk.full => "StateDirFull",
        (false, Some(_)) => "StateDirFailing",
        (false, None) => "",
    };
    unusable.extend(disk.map(|disk| format!("state_dir: {}", disk.why)));
    condition("RuntimeReady", !none && !failing, reason, unusable.join("; "))
}

/// Each handler with what it offers. The kubelet does not start a pod on one that lacks what the pod needs; one that this node cannot run
/// offers nothing. Both keep read-only mounts whole and map owners of volumes, the guest's by the node's kernel too. Neither lets a
/// container choose its cgroup namespace (`translate::cgroups`).
fn handlers(default: Kind, usable: impl Fn(Kind) -> bool, users: bool) -> Vec<cri::RuntimeHandler> {
    let features = |kind| cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: usable(kind),
        user_namespaces: usable(kind) && users,
        cgroup_namespaces: false,
    };
    let all = [("", default)].into_iter().chain(HANDLERS);
    all.map(|(name, kind)| cri::RuntimeHandler { name: name.into(), features: Some(features(kind)) }).collect()
}

fn condition(kind: &str, status: bool, reason: &str, message: String) -> cri::RuntimeCondition {
    cri::RuntimeCondition { r#type: kind.into(), status, reason: reason.into(), message }
}

pub(super) fn runtime_config(node: &Node) -> cri::RuntimeConfigResponse {
    let driver = match node.config.cgroup_driver {
        CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
        CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
    };
    let linux = cri::LinuxRuntimeConfiguration { cgroup_driver: driver.into() };
    cri::RuntimeConfigResponse { linux: Some(linux) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_and_a_failing_one_makes_the_node_not_ready() {
        let disk = |full| Some(Failing { full, why: "no space left".into() });
        let one = vec!["no vm pods: no KVM".to_owned()];
        let ready = |unusable: &[String], disk| {
            let condition = runtime_ready(unusable.to_vec(), disk);
            (condition.status, condition.reason, condition.message)
        };
        assert_eq!(ready(&[], None), (true, String::new(), String::new()));
        let told = "state_dir: no space left".to_owned();
        assert_eq!(ready(&[], disk(true)), (true, "StateDirFull".into(), told.clone()));
        assert_eq!(ready(&[], disk(false)), (false, "StateDirFailing".into(), told.clone()));
        assert_eq!(ready(&one, disk(true)), (true, "StateDirFull".into(), format!("{}; {told}", one[0])));
        assert!(!ready(&[one.clone(), one].concat(), disk(true)).0);
    }

    #[test]
    fn a_handler_offers_what_this_node_can_do_with_it() {
        let offered = |default, vm: bool, users| -> Vec<(String, bool, bool)> {
            let all = handlers(default, |kind| kind == Kind::Host || vm, users).into_iter();
            let each = all.map(|h| (h.name, h.features.unwrap()));
            each.map(|(name, f)| (name, f.recursive_read_only_mounts, f.user_namespaces)).collect()
        };
        for (default, vm, users) in
            [(Kind::Vm, true, true), (Kind::Vm, false, true), (Kind::Host, false, true), (Kind::Vm, true, false)]
        {
            let got = offered(default, vm, users);
            assert_eq!(got.len(), 3, "{got:?}");
            for (name, read_only, mapped) in got {
                let kind = HANDLERS.iter().find(|(known, _)| *known == name).map_or(default, |(_, kind)| *kind);
                let usable = kind == Kind::Host || vm;
                assert_eq!((read_only, mapped), (usable, usable && users), "{name:?} of {default:?}, {vm}, {users}");
            }
        }
    }
}

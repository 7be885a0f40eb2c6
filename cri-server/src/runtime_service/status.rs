//! Version, Status, RuntimeConfig: answered from memory, but for a look at CNI's directory.

use std::collections::HashMap;

use cofferdam_image_store::Failing;
use cofferdam_proto::cri;
use serde_json::json;

use crate::config::{CgroupDriver, HANDLERS};
use crate::error::chain;
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

pub(super) fn status(node: &Node, request: &cri::StatusRequest) -> cri::StatusResponse {
    let unusable: Vec<String> = HANDLERS
        .iter()
        .filter_map(|(name, kind)| node.unusable(*kind).map(|why| format!("no {name} pods: {why}")))
        .collect();
    let network = node.runtime.network_ready().err().map(|e| chain(&e));
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
    let features = cri::RuntimeHandlerFeatures { recursive_read_only_mounts: true, user_namespaces: users.is_none() };
    let names = [""].into_iter().chain(HANDLERS.iter().map(|(name, _)| *name));
    let runtime_handlers =
        names.map(|name| cri::RuntimeHandler { name: name.into(), features: Some(features) }).collect();
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
}

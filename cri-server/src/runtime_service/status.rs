//! Version, Status, RuntimeConfig: answered from memory, but for a look at CNI's directory.

use std::collections::HashMap;

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
    let all = unusable.len() == HANDLERS.len();
    let conditions = vec![
        condition("RuntimeReady", !all, if all { "NoHandlerUsable" } else { "" }, unusable.join("; ")),
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

//! What the API server says of this node, asked with the kubelet's own credentials.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

use super::machine::Expect;
use crate::error::{Doing, Result, refuse};

/// Waits until node `name` is Ready with the runtime that is expected.
///
/// # Errors
/// When it is not within `limit`; the message says what was seen last.
pub(crate) async fn wait(kubeconfig: &str, name: &str, expect: Expect, limit: Duration) -> Result<()> {
    let mut last = "the API server did not answer".to_owned();
    let watch = async {
        loop {
            match look(kubeconfig, name).await {
                Ok(node) => match is_ready(&node, expect) {
                    Ok(()) => return,
                    Err(why) => last = why,
                },
                Err(error) => last = crate::error::chain(&error),
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    match tokio::time::timeout(limit, watch).await {
        Ok(()) => Ok(()),
        Err(_) => refuse(format!("node {name} was not Ready within {} s: {last}", limit.as_secs())),
    }
}

async fn look(kubeconfig: &str, name: &str) -> Result<Node> {
    let file = Kubeconfig::read_from(kubeconfig).doing(|| format!("read the kubelet's {kubeconfig}"))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let config = config.doing(|| format!("use the kubelet's {kubeconfig}"))?;
    let client = Client::try_from(config).doing(|| "make a client of the API server".into())?;
    Api::<Node>::all(client).get(name).await.doing(|| format!("get node {name}"))
}

/// Whether the node is Ready with that runtime; if not, why.
fn is_ready(node: &Node, expect: Expect) -> Result<(), String> {
    let Some(status) = &node.status else { return Err("it has no status".into()) };
    let runtime = status.node_info.as_ref().map(|info| info.container_runtime_version.as_str()).unwrap_or_default();
    if runtime.starts_with("cofferdam://") != (expect == Expect::Cofferdam) {
        return Err(format!("its kubelet still reports the runtime {runtime}"));
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    match conditions.iter().find(|condition| condition.type_ == "Ready") {
        Some(ready) if ready.status == "True" => Ok(()),
        Some(ready) => Err(ready.message.clone().unwrap_or_else(|| "it is not ready".into())),
        None => Err("it has no condition Ready".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(runtime: &str, ready: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n"},
            "status": {
                "conditions": [{"type": "Ready", "status": ready, "message": "no network"}],
                "nodeInfo": {"architecture": "amd64", "bootID": "", "containerRuntimeVersion": runtime,
                    "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "",
                    "operatingSystem": "linux", "osImage": "", "systemUUID": ""},
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_status_from_before_the_switch_does_not_count() {
        let cofferdam = node("cofferdam://0.1.0", "True");
        assert!(is_ready(&cofferdam, Expect::Cofferdam).is_ok());
        assert!(is_ready(&cofferdam, Expect::Other).unwrap_err().contains("still reports"));
        assert!(is_ready(&node("containerd://2.1", "True"), Expect::Cofferdam).is_err());
        assert!(is_ready(&node("containerd://2.1", "True"), Expect::Other).is_ok());
        assert_eq!(is_ready(&node("cofferdam://1", "False"), Expect::Cofferdam).unwrap_err(), "no network");
    }
}

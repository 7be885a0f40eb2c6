//! The pods of a runtime, over CRI.

use std::time::Duration;

use cofferdam_proto::cri::runtime_service_client::RuntimeServiceClient;
use cofferdam_proto::cri::{
    ListPodSandboxRequest, NamespaceMode, PodSandboxStatusRequest, RemovePodSandboxRequest, StatusRequest,
    StopPodSandboxRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Doing, Result, refuse};

/// As the kubelet's own client has it.
const MAX_MESSAGE: usize = 16 << 20;
/// How long one call may take: a pod's grace period is in StopPodSandbox.
const CALL_LIMIT: Duration = Duration::from_secs(150);
/// How often the pods are gone through: a runtime may need a second StopPodSandbox.
const ROUNDS: u32 = 3;

async fn connect(endpoint: &str) -> Result<RuntimeServiceClient<Channel>> {
    let Some(socket) = endpoint.strip_prefix("unix://").map(str::to_owned) else {
        return refuse(format!(
            "the endpoint {endpoint:?} is no unix socket, such as unix:///run/containerd/containerd.sock"
        ));
    };
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://runtime").timeout(CALL_LIMIT).connect_with_connector(connector).await;
    let channel = channel.doing(|| format!("connect to {endpoint}"))?;
    Ok(RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Whether a runtime says that it is ready.
pub(crate) async fn runtime_ready(endpoint: &str) -> Result<()> {
    let mut client = connect(endpoint).await?;
    let answer =
        client.status(StatusRequest { verbose: false }).await.doing(|| format!("ask {endpoint} for its status"))?;
    let conditions = answer.into_inner().status.map(|status| status.conditions).unwrap_or_default();
    match conditions.iter().find(|condition| condition.r#type == "RuntimeReady") {
        Some(condition) if condition.status => Ok(()),
        Some(condition) => refuse(format!("{endpoint} is not ready: {} {}", condition.reason, condition.message)),
        None => refuse(format!("{endpoint} says nothing about RuntimeReady")),
    }
}

/// Stops and removes every pod of a runtime: those with the node's network last, since they may be
/// what others' networks need to go.
///
/// # Errors
/// When a pod still runs after that.
pub(crate) async fn stop_all(endpoint: &str) -> Result<()> {
    let mut client = connect(endpoint).await?;
    let step = || format!("list the pods of {endpoint}");
    let mut trouble = String::new();
    for round in 0..ROUNDS {
        let listed = client.list_pod_sandbox(ListPodSandboxRequest::default()).await.doing(step)?;
        let pods = listed.into_inner().items;
        if pods.is_empty() {
            return Ok(());
        }
        tracing::info!(endpoint, round, pods = pods.len(), "stopping what the runtime runs");
        let mut order = Vec::with_capacity(pods.len());
        for pod in pods {
            order.push((on_host_network(&mut client, &pod.id).await, pod));
        }
        order.sort_by_key(|(last, _)| *last);
        for (_, pod) in order {
            let name = pod.metadata.map(|m| format!("{}/{}", m.namespace, m.name)).unwrap_or_default();
            let stop = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let stopped = client.stop_pod_sandbox(stop).await.map(drop);
            let remove = RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let removed = client.remove_pod_sandbox(remove).await.map(drop);
            if let Err(error) = stopped.and(removed) {
                tracing::warn!(pod = name, id = pod.id, error = error.message(), "cannot end the pod");
                trouble = format!("{name} ({}): {}", pod.id, error.message());
            }
        }
    }
    let left = client.list_pod_sandbox(ListPodSandboxRequest::default()).await.doing(step)?.into_inner().items;
    // 0 is SANDBOX_READY. One that is stopped and cannot be removed holds nothing that runs.
    match left.iter().filter(|pod| pod.state == 0).count() {
        0 => Ok(()),
        running => refuse(format!("{running} pods of {endpoint} do not end; the last one that failed: {trouble}")),
    }
}

async fn on_host_network(client: &mut RuntimeServiceClient<Channel>, id: &str) -> bool {
    let request = PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let Ok(answer) = client.pod_sandbox_status(request).await else { return false };
    let namespaces = answer.into_inner().status.and_then(|s| s.linux).and_then(|l| l.namespaces);
    namespaces.and_then(|n| n.options).is_some_and(|options| options.network == NamespaceMode::Node as i32)
}

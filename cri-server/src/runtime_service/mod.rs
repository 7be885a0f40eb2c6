//! CRI's runtime service: one file per verb; what is not there answers `Unimplemented` with a reason.

mod attach;
mod container_status;
mod create_container;
mod detached;
mod exec;
mod exec_sync;
mod list_containers;
mod list_pod_sandbox;
mod pod_sandbox_status;
mod port_forward;
mod remove_container;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod start_container;
mod stats;
mod status;
mod stop_container;
mod stop_pod_sandbox;
pub(crate) mod streamed;
mod update_container_resources;
mod update_pod_sandbox_resources;

use std::sync::Arc;

use cofferdam_proto::cri;
use cofferdam_proto::cri::runtime_service_server::RuntimeService;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status, async_trait};

use crate::error::CriError;
use crate::node::Node;
use crate::stats::metrics;

/// Serves the runtime service.
pub(crate) struct Runtime(pub(crate) Arc<Node>);

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(outcome: Result<T, CriError>) -> Answer<T> {
    Ok(Response::new(outcome?))
}

/// As [`answer`], with what failed written down: for verbs that change something.
fn done<T>(verb: &'static str, id: &str, outcome: Result<T, CriError>) -> Answer<T> {
    if let Err(error) = &outcome {
        let code = crate::error::code(error);
        tracing::warn!(verb, id, ?code, error = crate::error::message(error), "call failed");
    }
    answer(outcome)
}

fn missing<T>(why: &'static str) -> Answer<T> {
    Err(CriError::Unimplemented(why).into())
}

#[async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        answer(Ok(status::version()))
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        answer(Ok(status::status(&self.0, request.get_ref()).await))
    }

    async fn runtime_config(&self, _: Request<cri::RuntimeConfigRequest>) -> Answer<cri::RuntimeConfigResponse> {
        answer(Ok(status::runtime_config(&self.0)))
    }

    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        // The pods' addresses are the CNI plugins' business.
        answer(Ok(cri::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<cri::RunPodSandboxRequest>) -> Answer<cri::RunPodSandboxResponse> {
        let request = request.into_inner();
        let name = request.config.as_ref().and_then(|c| c.metadata.as_ref()).map(|m| m.name.clone());
        done("RunPodSandbox", &name.unwrap_or_default(), run_pod_sandbox::call(&self.0, request).await)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        done("StopPodSandbox", &id, stop_pod_sandbox::call(&self.0, &id).await)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        done("RemovePodSandbox", &id, remove_pod_sandbox::call(&self.0, &id).await)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        answer(pod_sandbox_status::call(&self.0, request.get_ref()))
    }

    async fn list_pod_sandbox(&self, request: Request<cri::ListPodSandboxRequest>) -> Answer<cri::EncodedList> {
        answer(list_pod_sandbox::call(&self.0, request.into_inner()))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let pod = request.pod_sandbox_id.clone();
        done("CreateContainer", &pod, create_container::call(&self.0, request).await)
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        done("StartContainer", &id, start_container::call(&self.0, &id).await)
    }

    async fn stop_container(&self, request: Request<cri::StopContainerRequest>) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        done("StopContainer", &request.container_id, stop_container::call(&self.0, &request).await)
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        done("RemoveContainer", &id, remove_container::call(&self.0, &id).await)
    }

    async fn list_containers(&self, request: Request<cri::ListContainersRequest>) -> Answer<cri::EncodedList> {
        answer(list_containers::call(&self.0, request.into_inner()))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        answer(container_status::call(&self.0, request.get_ref()).await)
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        done("ReopenContainerLog", &id, reopen_container_log::call(&self.0, &id).await)
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        answer(exec_sync::call(&self.0, request.into_inner()).await)
    }

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        answer(exec::call(&self.0, request.into_inner()))
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        answer(attach::call(&self.0, request.get_ref()))
    }

    async fn port_forward(&self, request: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        answer(port_forward::call(&self.0, request.get_ref()))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let id = request.container_id.clone();
        done("UpdateContainerResources", &id, update_container_resources::call(&self.0, request).await)
    }

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let stats = stats::container(&self.0, &request.get_ref().container_id).await?;
        answer(Ok(cri::ContainerStatsResponse { stats: Some(stats) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let stats = stats::containers(&self.0, request.into_inner().filter).await?;
        answer(Ok(cri::ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let stats = stats::pod(&self.0, &request.get_ref().pod_sandbox_id).await?;
        answer(Ok(cri::PodSandboxStatsResponse { stats: Some(stats) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let stats = stats::pods(&self.0, request.into_inner().filter).await?;
        answer(Ok(cri::ListPodSandboxStatsResponse { stats }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        missing("checkpoints are not supported")
    }

    async fn checkpoint_pod(&self, _: Request<cri::CheckpointPodRequest>) -> Answer<cri::CheckpointPodResponse> {
        missing("checkpoints are not supported")
    }

    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        missing("checkpoints are not supported")
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let id = request.pod_sandbox_id.clone();
        done("UpdatePodSandboxResources", &id, update_pod_sandbox_resources::call(&self.0, request).await)
    }

    type StreamPodSandboxesStream = BoxStream<'static, Result<cri::EncodedList, Status>>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let request = cri::ListPodSandboxRequest { filter: request.into_inner().filter };
        let all = list_pod_sandbox::call(&self.0, request)?.items;
        answer(Ok(streamed::stream(all, |items| cri::EncodedList { items })))
    }

    type StreamContainersStream = BoxStream<'static, Result<cri::EncodedList, Status>>;

    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let request = cri::ListContainersRequest { filter: request.into_inner().filter };
        let all = list_containers::call(&self.0, request)?.items;
        answer(Ok(streamed::stream(all, |items| cri::EncodedList { items })))
    }

    type StreamContainerStatsStream = BoxStream<'static, Result<cri::StreamContainerStatsResponse, Status>>;

    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let all = stats::containers(&self.0, request.into_inner().filter).await?;
        answer(Ok(streamed::stream(all, |container_stats| cri::StreamContainerStatsResponse { container_stats })))
    }

    type StreamPodSandboxStatsStream = BoxStream<'static, Result<cri::StreamPodSandboxStatsResponse, Status>>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let all = stats::pods(&self.0, request.into_inner().filter).await?;
        answer(Ok(streamed::stream(all, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    type StreamPodSandboxMetricsStream = BoxStream<'static, Result<cri::StreamPodSandboxMetricsResponse, Status>>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let all = stats::metrics(&self.0).await;
        let wrap = |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        answer(Ok(streamed::stream(all, wrap)))
    }

    type GetContainerEventsStream = BoxStream<'static, Result<cri::ContainerEventResponse, Status>>;

    async fn get_container_events(&self, _: Request<cri::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        answer(Ok(self.0.events.follow()))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        let descriptors = metrics::announced(metrics::has_pressure());
        answer(Ok(cri::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        answer(Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: stats::metrics(&self.0).await }))
    }
}

//! The agent's API on a connection: each call goes to the code of its verb.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent as proto;
use cofferdam_proto::agent::agent_server::Agent as Api;
use proto::{
    AttachDiskReply, AttachDiskRequest, AttachInput, AttachOutput, ClockReply, ClockRequest, ConfigurePodReply,
    ConfigurePodRequest, ContainerState, ContainerStatsReply, ContainerStatsRequest, CreateContainerReply,
    CreateContainerRequest, DetachDiskReply, DetachDiskRequest, EventsRequest, ExecInput, ExecOutput, HelloReply,
    HelloRequest, ListContainersReply, ListContainersRequest, MountPodReply, MountPodRequest, PodStatsReply,
    PodStatsRequest, PortForwardInput, PortForwardOutput, RemoveContainerReply, RemoveContainerRequest,
    ResizeGuestReply, ResizeGuestRequest, SettleReply, SettleRequest, ShutdownReply, ShutdownRequest,
    SignalContainerReply, SignalContainerRequest, StartContainerReply, StartContainerRequest, UpdateContainerReply,
    UpdateContainerRequest, VolumeSwappedReply, VolumeSwappedRequest,
};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::agent::{Agent, Mode};
use crate::container::{attach, create, exec, stats};
use crate::error::{Error, Kind};
use crate::{before_pod, clock, disks, pod, port_forward, vcpus};

/// Serves [`Api`].
#[derive(Debug, Clone)]
pub struct Service(pub Arc<Agent>);

type Answer<T> = Result<Response<T>, Status>;

/// Runs work that is finished even when the caller hangs up in the middle.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(Status::from),
        Err(e) => Err(Status::internal(format!("the agent failed: {e}"))),
    }
}

/// Whether this agent speaks version `theirs`. Without a pod yet, it speaks its own alone: a daemon of another version would launch the pod
/// with requests that miss what this one needs.
fn check_version(theirs: u32, configured: bool) -> Result<(), String> {
    let (oldest, newest) = proto::API_VERSIONS.into_inner();
    match configured {
        true if proto::API_VERSIONS.contains(&theirs) => Ok(()),
        true => Err(format!("this agent speaks versions {oldest} to {newest} of its API, not {theirs}")),
        false if theirs == newest => Ok(()),
        false => Err(format!(
            "this agent speaks version {newest} of its API to whoever launches a pod, not {theirs}: daemon, monitor and agent must be \
             of one installation (restart the daemon after an upgrade)"
        )),
    }
}

#[tonic::async_trait]
impl Api for Service {
    async fn hello(&self, request: Request<HelloRequest>) -> Answer<HelloReply> {
        let theirs = request.into_inner().api_version;
        let configured = self.0.pod.lock().await.is_some();
        check_version(theirs, configured).map_err(Status::failed_precondition)?;
        Ok(Response::new(HelloReply {
            api_version: theirs,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            mode: if self.0.mode == Mode::Vm { "vm" } else { "host" }.into(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        }))
    }

    async fn settle(&self, _: Request<SettleRequest>) -> Answer<SettleReply> {
        before_pod::settle(&self.0).await?;
        Ok(Response::new(SettleReply {}))
    }

    async fn mount_pod(&self, request: Request<MountPodRequest>) -> Answer<MountPodReply> {
        let agent = self.0.clone();
        whole(async move { before_pod::mount(&agent, &request.into_inner()).await }).await?;
        Ok(Response::new(MountPodReply {}))
    }

    async fn configure_pod(&self, request: Request<ConfigurePodRequest>) -> Answer<ConfigurePodReply> {
        let agent = self.0.clone();
        whole(async move { pod::configure(&agent, request.into_inner()).await }).await?;
        Ok(Response::new(ConfigurePodReply {}))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerReply> {
        let agent = self.0.clone();
        let reply = whole(async move {
            pod::configure_default(&agent).await?;
            create::create(agent, request.into_inner()).await
        });
        Ok(Response::new(reply.await?))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerReply> {
        let (agent, id) = (self.0.clone(), request.into_inner().id);
        whole(async move { agent.container(&id)?.start(&agent).await }).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        Ok(Response::new(StartContainerReply { started_at_unix_nanos: now }))
    }

    async fn signal_container(&self, request: Request<SignalContainerRequest>) -> Answer<SignalContainerReply> {
        let r = request.into_inner();
        self.0.container(&r.id).and_then(|c| c.signal(r.signal, r.all))?;
        Ok(Response::new(SignalContainerReply {}))
    }

    async fn update_container(&self, request: Request<UpdateContainerRequest>) -> Answer<UpdateContainerReply> {
        let (agent, request) = (self.0.clone(), request.into_inner());
        let resources = request.resources.unwrap_or_default();
        whole(async move { agent.container(&request.id)?.update(&agent, &resources).await }).await?;
        Ok(Response::new(UpdateContainerReply {}))
    }

    async fn volume_swapped(&self, request: Request<VolumeSwappedRequest>) -> Answer<VolumeSwappedReply> {
        let (agent, r) = (self.0.clone(), request.into_inner());
        whole(async move { agent.container(&r.container_id)?.volume_swapped(&r.destination, &r.data_link).await })
            .await?;
        Ok(Response::new(VolumeSwappedReply {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerReply> {
        let (agent, id) = (self.0.clone(), request.into_inner().id);
        whole(async move {
            match agent.container(&id) {
                Ok(container) => {
                    container.remove(&agent).await?;
                    agent.forget(&id);
                    Ok(())
                }
                Err(e) if e.kind() == Kind::NotFound => Ok(()),
                Err(e) => Err(e),
            }
        })
        .await?;
        Ok(Response::new(RemoveContainerReply {}))
    }

    async fn list_containers(&self, _: Request<ListContainersRequest>) -> Answer<ListContainersReply> {
        let containers = self.0.containers().iter().map(|c| c.change().message()).collect();
        Ok(Response::new(ListContainersReply { containers }))
    }

    type EventsStream = ReceiverStream<Result<ContainerState, Status>>;

    async fn events(&self, _: Request<EventsRequest>) -> Answer<Self::EventsStream> {
        let (send, receive) = mpsc::channel(64);
        let agent = self.0.clone();
        let mut changes = agent.changes();
        tokio::spawn(async move {
            let mut everything = true;
            loop {
                if std::mem::take(&mut everything) {
                    for container in agent.containers() {
                        if send.send(Ok(container.change().message())).await.is_err() {
                            return;
                        }
                    }
                }
                let change = tokio::select! {
                    change = changes.recv() => change,
                    () = send.closed() => return,
                    () = agent.stopped() => return,
                };
                match change {
                    Ok(change) => {
                        if send.send(Ok(change.message())).await.is_err() {
                            return;
                        }
                    }
                    // Too slow a caller: it gets the present state of all instead.
                    Err(broadcast::error::RecvError::Lagged(_)) => everything = true,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    type ExecStream = ReceiverStream<Result<ExecOutput, Status>>;

    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Answer<Self::ExecStream> {
        let mut input = request.into_inner();
        let start = match input.message().await? {
            Some(ExecInput { kind: Some(proto::exec_input::Kind::Start(start)) }) => start,
            _ => return Err(Status::invalid_argument("the first message of an exec is its start")),
        };
        let (send, receive) = mpsc::channel(8);
        tokio::spawn(exec::serve(self.0.clone(), start, input, send));
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    type AttachStream = ReceiverStream<Result<AttachOutput, Status>>;

    async fn attach(&self, request: Request<Streaming<AttachInput>>) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let start = match input.message().await? {
            Some(AttachInput { kind: Some(proto::attach_input::Kind::Start(start)) }) => start,
            _ => return Err(Status::invalid_argument("the first message of an attach is its start")),
        };
        let (container, joined) = attach::join(&self.0, &start)?;
        let (send, receive) = mpsc::channel(8);
        tokio::spawn(attach::serve(container, joined, start, input, send));
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    type PortForwardStream = ReceiverStream<Result<PortForwardOutput, Status>>;

    async fn port_forward(&self, request: Request<Streaming<PortForwardInput>>) -> Answer<Self::PortForwardStream> {
        let mut input = request.into_inner();
        let port = match input.message().await? {
            Some(PortForwardInput { kind: Some(proto::port_forward_input::Kind::Port(port)) }) => port,
            _ => return Err(Status::invalid_argument("the first message of a port-forward is its port")),
        };
        let stream = port_forward::dial(port).await?;
        let (send, receive) = mpsc::channel(8);
        tokio::spawn(port_forward::serve(stream, port, input, send));
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsReply> {
        Ok(Response::new(stats::stats(&self.0, &request.into_inner().id).await?))
    }

    async fn pod_stats(&self, request: Request<PodStatsRequest>) -> Answer<PodStatsReply> {
        Ok(Response::new(stats::pod(&self.0, request.get_ref()).await))
    }

    async fn resize_guest(&self, request: Request<ResizeGuestRequest>) -> Answer<ResizeGuestReply> {
        let (agent, wanted) = (self.0.clone(), request.into_inner().vcpus);
        Ok(Response::new(whole(async move { vcpus::resize(&agent, wanted).await }).await?))
    }

    async fn clock(&self, request: Request<ClockRequest>) -> Answer<ClockReply> {
        Ok(Response::new(clock::adjust(&self.0, request.into_inner().adjust_nanos)?))
    }

    async fn attach_disk(&self, request: Request<AttachDiskRequest>) -> Answer<AttachDiskReply> {
        let (agent, request) = (self.0.clone(), request.into_inner());
        Ok(Response::new(whole(async move { disks::attach(&agent, request).await }).await?))
    }

    async fn detach_disk(&self, request: Request<DetachDiskRequest>) -> Answer<DetachDiskReply> {
        let (agent, request) = (self.0.clone(), request.into_inner());
        whole(async move { disks::detach(&agent, request).await }).await?;
        Ok(Response::new(DetachDiskReply {}))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownReply> {
        let agent = self.0.clone();
        let result = whole(async move { pod::shut_down(&agent).await }).await;
        self.0.stop();
        result?;
        Ok(Response::new(ShutdownReply {}))
    }
}

/// Most bytes of input that wait to be taken on one connection; a single call's share is 64 KiB.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Serves connections until Shutdown; then waits a moment for the last answers.
///
/// # Errors
/// When accepting fails.
pub async fn serve<C, S>(agent: Arc<Agent>, incoming: S) -> Result<(), tonic::transport::Error>
where
    S: futures::Stream<Item = std::io::Result<C>>,
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite + tonic::transport::server::Connected + Unpin + Send + 'static,
{
    let api = proto::agent_server::AgentServer::new(Service(agent.clone()));
    let stopped = agent.stopped();
    let server = tonic::transport::Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(api)
        .serve_with_incoming_shutdown(incoming, stopped);
    let last_words = async {
        agent.stopped().await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    };
    tokio::select! {
        result = server => result,
        () = last_words => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_pod_speaks_older_versions_and_a_new_one_does_not() {
        for version in proto::API_VERSIONS {
            assert_eq!(check_version(version, true), Ok(()));
            assert_eq!(check_version(version, false).is_ok(), version == proto::API_VERSION);
        }
        for version in [0, proto::API_VERSION + 1, u32::MAX] {
            assert!(check_version(version, true).unwrap_err().contains("versions 1 to"));
            assert!(check_version(version, false).unwrap_err().contains("restart the daemon"));
        }
    }
}

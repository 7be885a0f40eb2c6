//! A small CRI client: a crictl process costs more than many of the calls that are measured.

use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Doing, Failure, Outcome};

/// How a benchmark's pod is networked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Net {
    /// The CNI chain.
    Cni,
    /// The node's own network.
    Node,
}

/// One runtime under measurement.
pub(super) struct Client {
    runtime: cri::runtime_service_client::RuntimeServiceClient<Channel>,
    image: cri::image_service_client::ImageServiceClient<Channel>,
    name: &'static str,
    number: u32,
}

/// What one pod's start took.
pub(super) struct Started {
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) run_pod: Duration,
    pub(super) create_start: Duration,
}

impl Client {
    /// Connects to the runtime on `socket`.
    pub(super) async fn connect(name: &'static str, socket: &'static str) -> Outcome<Self> {
        let connect = tower::service_fn(move |_: http::Uri| async move {
            Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(Path::new(socket)).await?))
        });
        let endpoint = Endpoint::from_static("http://runtime.invalid");
        let channel =
            endpoint.connect_with_connector(connect).await.doing(&format!("connect to {name} at {socket}"))?;
        Ok(Self {
            runtime: cri::runtime_service_client::RuntimeServiceClient::new(channel.clone()),
            image: cri::image_service_client::ImageServiceClient::new(channel),
            name,
            number: 0,
        })
    }

    fn failed(&self, what: &str, status: &tonic::Status) -> Failure {
        Failure(format!("{} {what}: {} ({:?})", self.name, status.message(), status.code()))
    }

    fn pod_config(&mut self, net: Net) -> cri::PodSandboxConfig {
        self.number += 1;
        let name = format!("bench-{}-{}", self.name, self.number);
        let mode = if net == Net::Node { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
        let options = cri::NamespaceOption {
            network: mode.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("{name}-{}", std::process::id()),
                namespace: "bench".into(),
                attempt: 0,
            }),
            hostname: if net == Net::Node { String::new() } else { name.clone() },
            log_directory: format!("/var/log/cofferdam-bench/{name}"),
            linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    /// Pod sandbox, container, started; timed.
    pub(super) async fn start(&mut self, handler: &str, net: Net, image: &str) -> Outcome<Started> {
        let config = self.pod_config(net);
        let began = Instant::now();
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer = self.runtime.run_pod_sandbox(request).await;
        let pod = answer.map_err(|s| self.failed("RunPodSandbox", &s))?.into_inner().pod_sandbox_id;
        let run_pod = began.elapsed();
        let began = Instant::now();
        let container = self.create_start(&pod, config, image).await?;
        Ok(Started { pod, container, run_pod, create_start: began.elapsed() })
    }

    async fn create_start(&mut self, pod: &str, sandbox: cri::PodSandboxConfig, image: &str) -> Outcome<String> {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "sleeper".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
            command: vec!["sleep".into(), "1000000".into()],
            log_path: "sleeper.log".into(),
            linux: Some(cri::LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let answer = self.runtime.create_container(request).await;
        let container_id = answer.map_err(|s| self.failed("CreateContainer", &s))?.into_inner().container_id;
        let request = cri::StartContainerRequest { container_id: container_id.clone() };
        self.runtime.start_container(request).await.map_err(|s| self.failed("StartContainer", &s))?;
        Ok(container_id)
    }

    /// Runs `true` in a container; timed.
    pub(super) async fn exec_true(&mut self, container: &str) -> Outcome<Duration> {
        let began = Instant::now();
        let request = cri::ExecSyncRequest { container_id: container.into(), cmd: vec!["true".into()], timeout: 120 };
        let answer = self.runtime.exec_sync(request).await.map_err(|s| self.failed("ExecSync", &s))?.into_inner();
        if answer.exit_code != 0 {
            return Err(format!("{}: `true` ended with {}", self.name, answer.exit_code).into());
        }
        Ok(began.elapsed())
    }

    /// Stops and removes a pod.
    pub(super) async fn remove(&mut self, pod: &str) -> Outcome {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.into() };
        self.runtime.stop_pod_sandbox(request).await.map_err(|s| self.failed("StopPodSandbox", &s))?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.into() };
        self.runtime.remove_pod_sandbox(request).await.map_err(|s| self.failed("RemovePodSandbox", &s))?;
        Ok(())
    }

    fn image_spec(image: &str) -> Option<cri::ImageSpec> {
        Some(cri::ImageSpec { image: image.into(), ..Default::default() })
    }

    /// Pulls an image; timed.
    pub(super) async fn pull(&mut self, image: &str) -> Outcome<Duration> {
        let began = Instant::now();
        let request = cri::PullImageRequest { image: Self::image_spec(image), ..Default::default() };
        self.image.pull_image(request).await.map_err(|s| self.failed("PullImage", &s))?;
        Ok(began.elapsed())
    }

    /// Removes an image, present or not.
    pub(super) async fn remove_image(&mut self, image: &str) -> Outcome {
        let request = cri::RemoveImageRequest { image: Self::image_spec(image) };
        self.image.remove_image(request).await.map_err(|s| self.failed("RemoveImage", &s))?;
        Ok(())
    }
}

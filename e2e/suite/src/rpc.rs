//! A small CRI client: a crictl process costs more than many of the calls that are measured or made by the hundred.

use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::crictl::LOGS;
use crate::failure::{Doing, Failure, Outcome};

/// How a pod is networked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Net {
    /// The CNI chain.
    Cni,
    /// The node's own network.
    Node,
}

/// One runtime, such as the one under measurement.
#[derive(Clone)]
pub(crate) struct Client {
    /// For calls that are not below.
    pub(crate) runtime: cri::runtime_service_client::RuntimeServiceClient<Channel>,
    /// For calls about images that are not below.
    pub(crate) image: cri::image_service_client::ImageServiceClient<Channel>,
    name: &'static str,
    number: u32,
}

/// A connection to the runtime on `socket`.
pub(crate) async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://runtime.invalid").connect_with_connector(connect).await
}

/// The configuration of a container with a log.
pub(crate) fn container_config(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig::default()),
        ..Default::default()
    }
}

/// What one pod's start took.
pub(crate) struct Started {
    pub(crate) pod: String,
    pub(crate) container: String,
    pub(crate) run_pod: Duration,
    pub(crate) create_start: Duration,
}

impl Client {
    /// Connects to the runtime on `socket`.
    pub(crate) async fn connect(name: &'static str, socket: &'static str) -> Outcome<Self> {
        let channel = channel(Path::new(socket)).await.doing(&format!("connect to {name} at {socket}"))?;
        Ok(Self {
            runtime: cri::runtime_service_client::RuntimeServiceClient::new(channel.clone()),
            image: cri::image_service_client::ImageServiceClient::new(channel),
            name,
            number: 0,
        })
    }

    /// A client for calls beside this one's, whose pods have other names.
    pub(crate) fn another(&mut self) -> Self {
        self.number += 1;
        let other = self.clone();
        self.number += 1;
        other
    }

    /// What a refused call says.
    pub(crate) fn failed(&self, what: &str, status: &tonic::Status) -> Failure {
        Failure(format!("{} {what}: {} ({:?})", self.name, status.message(), status.code()))
    }

    /// The configuration of a pod of its own name and uid.
    pub(crate) fn pod_config(&mut self, net: Net) -> cri::PodSandboxConfig {
        self.number += 1;
        let name = format!("{}-{}", self.name, self.number);
        let uid = format!("{name}-{}", std::process::id());
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
                uid: uid.clone(),
                namespace: "rpc".into(),
                attempt: 0,
            }),
            labels: [("io.kubernetes.pod.name", &name), ("io.kubernetes.pod.uid", &uid)]
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.clone()))
                .collect(),
            hostname: if net == Net::Node { String::new() } else { name.clone() },
            log_directory: format!("{LOGS}/{name}"),
            linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..Default::default()
        }
    }

    /// A pod sandbox without containers.
    pub(crate) async fn run_pod(&mut self, handler: &str, net: Net) -> Outcome<(String, cri::PodSandboxConfig)> {
        let config = self.pod_config(net);
        self.run_pod_of(handler, config).await
    }

    /// A pod sandbox of this configuration.
    pub(crate) async fn run_pod_of(
        &mut self,
        handler: &str,
        config: cri::PodSandboxConfig,
    ) -> Outcome<(String, cri::PodSandboxConfig)> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer = self.runtime.run_pod_sandbox(request).await;
        Ok((answer.map_err(|s| self.failed("RunPodSandbox", &s))?.into_inner().pod_sandbox_id, config))
    }

    /// Pod sandbox, container, started; timed.
    pub(crate) async fn start(&mut self, handler: &str, net: Net, image: &str) -> Outcome<Started> {
        let began = Instant::now();
        let (pod, config) = self.run_pod(handler, net).await?;
        let run_pod = began.elapsed();
        let began = Instant::now();
        let container = self.create_start(&pod, config, image).await?;
        Ok(Started { pod, container, run_pod, create_start: began.elapsed() })
    }

    async fn create_start(&mut self, pod: &str, sandbox: cri::PodSandboxConfig, image: &str) -> Outcome<String> {
        let config = container_config("sleeper", image, &["sleep", "1000000"]);
        let container = self.create(pod, sandbox, config).await?;
        self.start_container(&container).await?;
        Ok(container)
    }

    /// Creates a container.
    pub(crate) async fn create(
        &mut self,
        pod: &str,
        sandbox: cri::PodSandboxConfig,
        config: cri::ContainerConfig,
    ) -> Outcome<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        let answer = self.runtime.create_container(request).await;
        Ok(answer.map_err(|s| self.failed("CreateContainer", &s))?.into_inner().container_id)
    }

    /// Starts a container.
    pub(crate) async fn start_container(&mut self, container: &str) -> Outcome {
        let request = cri::StartContainerRequest { container_id: container.into() };
        self.runtime.start_container(request).await.map_err(|s| self.failed("StartContainer", &s))?;
        Ok(())
    }

    /// Runs `true` in a container; timed.
    pub(crate) async fn exec_true(&mut self, container: &str) -> Outcome<Duration> {
        let began = Instant::now();
        self.exec(container, &["true"]).await?;
        Ok(began.elapsed())
    }

    /// Runs a command in a container, which must succeed.
    pub(crate) async fn exec(&mut self, container: &str, command: &[&str]) -> Outcome {
        self.output(container, command).await.map(drop)
    }

    /// Runs a command in a container, which must succeed; answers what it wrote to its standard output.
    pub(crate) async fn output(&mut self, container: &str, command: &[&str]) -> Outcome<String> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: container.into(), cmd, timeout: 120 };
        let answer = self.runtime.exec_sync(request).await.map_err(|s| self.failed("ExecSync", &s))?.into_inner();
        if answer.exit_code != 0 {
            let errors = String::from_utf8_lossy(&answer.stderr).into_owned();
            return Err(
                format!("{}: `{}` ended with {}: {errors}", self.name, command.join(" "), answer.exit_code).into()
            );
        }
        String::from_utf8(answer.stdout).doing(&format!("read what `{}` wrote", command.join(" ")))
    }

    /// Stops and removes a pod.
    pub(crate) async fn remove(&mut self, pod: &str) -> Outcome {
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
    pub(crate) async fn pull(&mut self, image: &str) -> Outcome<Duration> {
        let began = Instant::now();
        let request = cri::PullImageRequest { image: Self::image_spec(image), ..Default::default() };
        self.image.pull_image(request).await.map_err(|s| self.failed("PullImage", &s))?;
        Ok(began.elapsed())
    }

    /// Removes an image, present or not.
    pub(crate) async fn remove_image(&mut self, image: &str) -> Outcome {
        let request = cri::RemoveImageRequest { image: Self::image_spec(image) };
        self.image.remove_image(request).await.map_err(|s| self.failed("RemoveImage", &s))?;
        Ok(())
    }
}

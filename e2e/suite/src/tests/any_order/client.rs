//! One client's program.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cofferdam_proto::{cri, legal};
use tonic::{Request, Response, Status};

use super::{Dice, World, lock, stuck};
use crate::crictl::BUSYBOX;
use crate::failure::{Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

/// What must have succeeded at least once.
pub(super) const VERBS: [&str; 11] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "ContainerStatus",
    "PodSandboxStatus",
    "ListContainers",
    "ListPodSandbox",
];

/// Pods that there are at most before no more are made, and how many of a hundred new ones are
/// microVMs, which are slow here.
const PODS: usize = 5;
const VM_PERCENT: u64 = 12;
/// No call may take longer, whatever goes on.
const LIMIT: Duration = Duration::from_secs(400);

/// What a call came to.
enum Came<T> {
    Answer(T),
    Refused,
    /// Hung up on: what it did is not known.
    Unheard,
}

/// A client and what it has seen.
pub(super) struct Program {
    client: Client,
    world: Arc<World>,
    dice: Dice,
    number: u32,
    made: u32,
    epoch: u32,
    containers: HashMap<String, cri::ContainerStatus>,
    pods: HashMap<String, cri::PodSandboxStatus>,
}

impl Program {
    pub(super) fn new(client: Client, world: Arc<World>, dice: Dice, number: u32) -> Self {
        let (containers, pods) = (HashMap::new(), HashMap::new());
        Self { client, world, dice, number, made: 0, epoch: 0, containers, pods }
    }

    /// Makes `least` calls, and more while no client has seen some call of [`VERBS`] succeed: some
    /// seeds kill the daemon or stop the pods around each start. Ends at `most` calls.
    pub(super) async fn run(mut self, least: u32, most: u32) -> Outcome {
        for call in 0..most {
            if call >= least && self.world.without_success().is_none() {
                break;
            }
            self.one().await?;
        }
        Ok(())
    }

    /// Forgets what was seen before a kill of the daemon: what was not yet on the disk then may be
    /// told anew. False during a kill.
    fn fresh(&mut self) -> bool {
        let epoch = self.world.epoch.load(Ordering::SeqCst);
        if epoch != self.epoch {
            self.containers.clear();
            self.pods.clear();
            self.epoch = epoch;
        }
        epoch.is_multiple_of(2)
    }

    async fn one(&mut self) -> Outcome {
        match self.dice.below(100) {
            0..12 => self.run_pod().await,
            12..30 => self.create().await,
            30..48 => self.start().await,
            48..56 => self.stop().await,
            56..63 => self.remove_container().await,
            63..67 => self.stop_pod().await,
            67..71 => self.remove_pod().await,
            71..80 => self.exec().await,
            80..90 => self.container_status().await,
            90..95 => self.pod_status().await,
            _ => self.list().await,
        }
    }

    /// Makes a call; one of four is hung up on at some moment, one of ten has a short deadline.
    async fn call<M, T, F>(
        &mut self,
        verb: &str,
        message: M,
        call: impl FnOnce(cri::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>, Request<M>) -> F,
    ) -> Outcome<Came<T>>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let patience = match self.dice.below(100) {
            0..25 => Duration::from_millis(self.dice.below(600)),
            _ => LIMIT,
        };
        let mut request = Request::new(message);
        if self.dice.percent(10) {
            request.set_timeout(Duration::from_millis(self.dice.below(400)));
        }
        let answer = tokio::time::timeout(patience, call(self.client.runtime.clone(), request)).await;
        let (code, came) = match answer {
            Ok(Ok(answer)) => ("Ok".to_owned(), Came::Answer(answer.into_inner())),
            Ok(Err(status)) => {
                if status.code() == tonic::Code::Unavailable {
                    self.until_it_is_back().await;
                }
                (format!("{:?}", status.code()), Came::Refused)
            }
            Err(_) if patience == LIMIT => {
                let report = stuck::report(&self.client).await;
                return Err(format!("{verb} has no answer after {LIMIT:?}; {report}").into());
            }
            Err(_) => ("hung up".to_owned(), Came::Unheard),
        };
        *lock(&self.world.outcomes).entry(format!("{verb} {code}")).or_default() += 1;
        Ok(came)
    }

    /// Waits for a daemon that was killed, so that a program is not spent on nobody.
    async fn until_it_is_back(&self) {
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.world.epoch.load(Ordering::SeqCst).is_multiple_of(2) {
                return;
            }
        }
    }

    fn a_pod(&mut self) -> Option<(String, cri::PodSandboxConfig)> {
        self.dice.pick(&lock(&self.world.pods)).cloned()
    }

    fn a_container(&mut self) -> String {
        let known = self.dice.pick(&lock(&self.world.containers)).cloned();
        known.unwrap_or_else(|| "0".repeat(64))
    }

    async fn run_pod(&mut self) -> Outcome {
        if lock(&self.world.pods).len() >= PODS {
            return self.list().await;
        }
        let vm = self.dice.percent(VM_PERCENT);
        let (handler, net) = if vm { ("vm", Net::Cni) } else { ("host", Net::Node) };
        let mut config = self.client.pod_config(net);
        if let Some(metadata) = &mut config.metadata {
            metadata.uid = format!("{}-client{}", metadata.uid, self.number);
        }
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let came = self.call("RunPodSandbox", request, |mut c, r| async move { c.run_pod_sandbox(r).await }).await?;
        if let Came::Answer(answer) = came {
            lock(&self.world.pods).push((answer.pod_sandbox_id, config));
        }
        Ok(())
    }

    async fn create(&mut self) -> Outcome {
        let Some((pod, sandbox)) = self.a_pod() else { return self.run_pod().await };
        self.made += 1;
        let commands: [&[&str]; 5] = [
            &["sleep", "1000000"],
            &["sleep", "1000000"],
            &["true"],
            &["sh", "-c", "sleep 1; exit 3"],
            &["/no/such/program"],
        ];
        let command = self.dice.pick(&commands).copied().unwrap_or_default();
        // A name may be taken: another client of the same number of containers wants it, too.
        let config = container_config(&format!("c{}", self.made), BUSYBOX, command);
        let request =
            cri::CreateContainerRequest { pod_sandbox_id: pod, config: Some(config), sandbox_config: Some(sandbox) };
        let came = self.call("CreateContainer", request, |mut c, r| async move { c.create_container(r).await }).await?;
        if let Came::Answer(answer) = came {
            lock(&self.world.containers).push(answer.container_id);
        }
        Ok(())
    }

    async fn start(&mut self) -> Outcome {
        let container_id = self.a_container();
        let request = cri::StartContainerRequest { container_id };
        self.call("StartContainer", request, |mut c, r| async move { c.start_container(r).await }).await.map(drop)
    }

    async fn stop(&mut self) -> Outcome {
        let container_id = self.a_container();
        let request = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
        let came = self.call("StopContainer", request, |mut c, r| async move { c.stop_container(r).await }).await?;
        if let Came::Answer(_) = came {
            self.look_at(&container_id, true).await?;
        }
        Ok(())
    }

    async fn remove_container(&mut self) -> Outcome {
        let container_id = self.a_container();
        let request = cri::RemoveContainerRequest { container_id };
        self.call("RemoveContainer", request, |mut c, r| async move { c.remove_container(r).await }).await.map(drop)
    }

    async fn stop_pod(&mut self) -> Outcome {
        let Some((pod_sandbox_id, _)) = self.a_pod() else { return Ok(()) };
        let request = cri::StopPodSandboxRequest { pod_sandbox_id };
        self.call("StopPodSandbox", request, |mut c, r| async move { c.stop_pod_sandbox(r).await }).await.map(drop)
    }

    async fn remove_pod(&mut self) -> Outcome {
        let Some((id, _)) = self.a_pod() else { return Ok(()) };
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
        let came =
            self.call("RemovePodSandbox", request, |mut c, r| async move { c.remove_pod_sandbox(r).await }).await?;
        if let Came::Answer(_) = came {
            lock(&self.world.pods).retain(|(known, _)| *known != id);
        }
        Ok(())
    }

    async fn exec(&mut self) -> Outcome {
        let container_id = self.a_container();
        let request = cri::ExecSyncRequest { container_id, cmd: vec!["true".into()], timeout: 60 };
        self.call("ExecSync", request, |mut c, r| async move { c.exec_sync(r).await }).await.map(drop)
    }

    async fn container_status(&mut self) -> Outcome {
        let id = self.a_container();
        self.look_at(&id, false).await
    }

    /// Looks at a container; one that ran and was `stopped` does not run.
    async fn look_at(&mut self, id: &str, stopped: bool) -> Outcome {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let came = self.call("ContainerStatus", request, |mut c, r| async move { c.container_status(r).await }).await?;
        let Came::Answer(cri::ContainerStatusResponse { status: Some(status), .. }) = came else { return Ok(()) };
        legal::container(&status)?;
        let quiet = self.fresh();
        if let Some(before) = self.containers.get(id) {
            legal::container_step(before, &status)?;
            let runs = status.state() == cri::ContainerState::ContainerRunning;
            // One that had not been started yet may have been started by another client since.
            ensure!(!(stopped && before.started_at != 0 && runs), "container {id} runs after its stop: {status:?}");
        }
        if quiet {
            self.containers.insert(id.to_owned(), status);
        }
        Ok(())
    }

    async fn pod_status(&mut self) -> Outcome {
        let Some((id, _)) = self.a_pod() else { return Ok(()) };
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let came =
            self.call("PodSandboxStatus", request, |mut c, r| async move { c.pod_sandbox_status(r).await }).await?;
        let Came::Answer(cri::PodSandboxStatusResponse { status: Some(status), .. }) = came else { return Ok(()) };
        legal::pod(&status)?;
        let quiet = self.fresh();
        if let Some(before) = self.pods.get(&id) {
            legal::pod_step(before, &status)?;
        }
        if quiet {
            self.pods.insert(id, status);
        }
        Ok(())
    }

    /// Lists; what a client that hung up never heard of is known to all from here on.
    async fn list(&mut self) -> Outcome {
        let request = cri::ListContainersRequest { filter: None };
        let came = self.call("ListContainers", request, |mut c, r| async move { c.list_containers(r).await }).await?;
        if let Came::Answer(answer) = came {
            let mut known = lock(&self.world.containers);
            // Some that are gone stay: calls with their ids belong to the programs, too.
            for item in answer.containers {
                if !known.contains(&item.id) {
                    known.push(item.id);
                }
            }
        }
        let request = cri::ListPodSandboxRequest { filter: None };
        let came = self.call("ListPodSandbox", request, |mut c, r| async move { c.list_pod_sandbox(r).await }).await?;
        if let Came::Answer(answer) = came {
            let mut known = lock(&self.world.pods);
            for item in answer.items {
                if !known.iter().any(|(id, _)| *id == item.id) {
                    known.push((item.id, cri::PodSandboxConfig { metadata: item.metadata, ..Default::default() }));
                }
            }
        }
        Ok(())
    }
}

//! A start whose agent says nothing: what is told of the container, and what is true, agree.

mod killed;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cofferdam_proto::{cri, legal};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tonic::Code;

use super::{HANDLERS, Test};
use crate::crictl::{self, BUSYBOX, LOGS};
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::rpc::{Client, Net, container_config};

pub(super) const TESTS: &[Test] =
    &[("start_without_an_answer", unanswered), ("start_in_whose_middle_the_daemon_is_killed", killed::in_the_middle)];

/// Where containers say that they run.
const FOLDER: &str = "/run/cofferdam-e2e/starts";
/// The daemon gives up after 110 s, as the kubelet does after 120.
const GIVES_UP: std::ops::Range<Duration> = Duration::from_secs(100)..Duration::from_secs(120);
/// How long a start may take to be taken back, and a silent pod to be killed: half a minute each for the signal and for its effect, and some.
const SETTLES: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_secs(1);

/// The daemon's limit is long, so all waits at once: each kind of pod, and for each a process that goes on too late and one that never does.
fn unanswered() -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.doing("start tokio")?.block_on(async {
        let mut cases = tokio::task::JoinSet::new();
        for handler in HANDLERS {
            for goes_on in [true, false] {
                cases.spawn(async move {
                    let what = if goes_on { "goes on" } else { "stays silent" };
                    let outcome = Case::run(handler, goes_on).await;
                    outcome.map_err(|f| Failure(format!("{handler} pod that {what}: {f}")))
                });
            }
        }
        let mut outcome = Ok(());
        while let Some(case) = cases.join_next().await {
            outcome = outcome.and(case.doing("run a case")?);
        }
        outcome
    });
    fs::remove_dir_all(FOLDER).doing(&format!("remove {FOLDER}"))?;
    outcome
}

/// One pod, its stopped process, and a container that writes a line each moment that it runs.
struct Case {
    client: Client,
    pod: String,
    config: cri::PodSandboxConfig,
    process: Pid,
    container: String,
    writer: cri::ContainerConfig,
    beat: PathBuf,
    bystander: String,
}

impl Case {
    async fn run(handler: &'static str, goes_on: bool) -> Outcome {
        let mut case = Self::make(handler, if goes_on { "late" } else { "silent" }).await?;
        case.send(Signal::STOP)?;
        let outcome = case.no_answer().await;
        if goes_on || outcome.is_err() {
            case.send(Signal::CONT)?;
        }
        outcome?;
        if goes_on {
            case.is_taken_back().await?
        } else {
            case.costs_the_pod_its_life().await?
        }
        case.client.remove(&case.pod).await
    }

    /// A pod with one container that runs and one that can be started.
    async fn make(handler: &'static str, name: &'static str) -> Outcome<Self> {
        let mut client = Client::connect(name, crictl::SOCKET).await?;
        let mut config = client.pod_config(Net::Cni);
        let name = format!("{handler}-{}", config.hostname);
        config.metadata.get_or_insert_default().uid.clone_from(&name);
        config.log_directory = format!("{LOGS}/{name}");
        let (pod, config) = client.run_pod_of(handler, config).await?;
        let sleeper = container_config("bystander", BUSYBOX, &["sleep", "1000000"]);
        let bystander = client.create(&pod, config.clone(), sleeper).await?;
        client.start_container(&bystander).await?;

        let folder = PathBuf::from(FOLDER).join(name);
        fs::create_dir_all(&folder).doing("make a folder for the container")?;
        let mut writer =
            container_config("late", BUSYBOX, &["sh", "-c", "while :; do echo x >> /beat/beat; sleep 0.2; done"]);
        writer.mounts.push(cri::Mount {
            host_path: folder.display().to_string(),
            container_path: "/beat".into(),
            ..Default::default()
        });
        let container = client.create(&pod, config.clone(), writer.clone()).await?;
        let process = process_of(&mut client, &pod).await?;
        Ok(Self { client, pod, config, process, container, writer, beat: folder.join("beat"), bystander })
    }

    fn send(&self, signal: Signal) -> Outcome {
        kill_process(self.process, signal).doing("signal the pod's process")
    }

    /// The container's status, and that the list says the same where nothing happened between the two.
    async fn status(&mut self, container: &str) -> Outcome<cri::ContainerStatus> {
        let mut status = self.status_alone(container).await?;
        loop {
            let filter = cri::ContainerFilter { id: container.into(), ..Default::default() };
            let request = cri::ListContainersRequest { filter: Some(filter) };
            let listed = self.client.runtime.list_containers(request).await;
            let listed = listed.map_err(|s| self.client.failed("ListContainers", &s))?.into_inner().containers;
            let [item] = listed.as_slice() else {
                return Err(format!("container {container} is listed as {listed:?}").into());
            };
            // States never go back, so the list was of this state, too, if both are.
            let after = self.status_alone(container).await?;
            if after.state() == status.state() {
                legal::container_listed(item, &status)?;
                return Ok(status);
            }
            status = after;
        }
    }

    async fn status_alone(&mut self, container: &str) -> Outcome<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: container.into(), verbose: false };
        let answer = self.client.runtime.container_status(request).await;
        let answer = answer.map_err(|s| self.client.failed("ContainerStatus", &s))?.into_inner();
        let status = answer.status.ok_or("a container's status is empty")?;
        legal::container(&status)?;
        Ok(status)
    }

    /// What the container has written.
    fn beats(&self) -> u64 {
        fs::metadata(&self.beat).map_or(0, |m| m.len())
    }

    async fn start(&mut self) -> Outcome<tonic::Status> {
        let request = cri::StartContainerRequest { container_id: self.container.clone() };
        let answer = self.client.runtime.start_container(request).await;
        Ok(answer.err().ok_or("a start that nobody answered succeeded")?)
    }

    /// The start fails by its time, and nobody is told that the container ended.
    async fn no_answer(&mut self) -> Outcome {
        let began = Instant::now();
        let error = self.start().await?;
        let took = began.elapsed();
        ensure!(error.code() == Code::DeadlineExceeded, "the start: {:?}: {}", error.code(), error.message());
        ensure!(
            error.message().contains("gave no answer"),
            "the start does not say why it failed: {}",
            error.message()
        );
        ensure!(GIVES_UP.contains(&took), "the start failed after {took:?}");
        let status = self.status(&self.container.clone()).await?;
        ensure!(status.state() == cri::ContainerState::ContainerUnknown, "after the start it is {status:?}");
        let again = self.start().await?;
        ensure!(again.code() == Code::FailedPrecondition, "a second start: {:?}: {}", again.code(), again.message());
        Ok(())
    }

    async fn exited(&mut self, container: &str) -> Outcome<cri::ContainerStatus> {
        let began = Instant::now();
        loop {
            let status = self.status(container).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(began.elapsed() < SETTLES, "after {SETTLES:?} container {container} is {status:?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The ended container's status is that of a failed start, and it does not run.
    async fn failed_to_start(&mut self) -> Outcome<cri::ContainerStatus> {
        let status = self.exited(&self.container.clone()).await?;
        let told = (status.reason.as_str(), status.exit_code != 0, status.message.is_empty());
        ensure!(told == ("StartError", true, false), "the container whose start was taken back: {status:?}");
        self.writes_nothing().await?;
        Ok(status)
    }

    async fn writes_nothing(&self) -> Outcome {
        let beats = self.beats();
        tokio::time::sleep(3 * PAUSE).await;
        ensure!(self.beats() == beats, "the container has exited, and still writes: {beats}, then {}", self.beats());
        Ok(())
    }

    /// The agent is there again: what it started, or not, is ended, and the pod works.
    async fn is_taken_back(&mut self) -> Outcome {
        self.failed_to_start().await?;
        self.client.exec_true(&self.bystander).await?;
        self.writer.metadata.get_or_insert_default().attempt = 1;
        let next = self.client.create(&self.pod, self.config.clone(), self.writer.clone()).await?;
        self.client.start_container(&next).await?;
        let beats = self.beats();
        tokio::time::sleep(3 * PAUSE).await;
        ensure!(self.beats() > beats, "the next attempt does not run");
        let status = self.status(&next).await?;
        ensure!(status.state() == cri::ContainerState::ContainerRunning, "the next attempt is {status:?}");
        Ok(())
    }

    /// An agent that cannot be asked even now: its pod is killed, so that nothing of it can run.
    async fn costs_the_pod_its_life(&mut self) -> Outcome {
        let own = self.failed_to_start().await?;
        let other = self.exited(&self.bystander.clone()).await?;
        ensure!(other.exit_code == 137, "the killed pod's other container: {other:?}");
        for message in [own.message, other.message] {
            let says_why = message.contains("the pod was killed") && message.contains("gave no answer in");
            ensure!(says_why, "the containers of a pod that was killed for its silence have the message {message:?}");
            ensure!(!message.contains(char::is_control), "a message for people has control characters: {message:?}");
        }
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: self.pod.clone(), verbose: false };
        let answer = self.client.runtime.pod_sandbox_status(request).await;
        let answer = answer.map_err(|s| self.client.failed("PodSandboxStatus", &s))?.into_inner();
        let state = answer.status.map(|s| s.state());
        ensure!(state == Some(cri::PodSandboxState::SandboxNotready), "the killed pod is {state:?}");
        let process = format!("/proc/{}", self.process.as_raw_nonzero());
        ensure!(fs::metadata(&process).is_err(), "the killed pod's process is still there: {process}");
        Ok(())
    }
}

/// The monitor or supervisor of a pod.
async fn process_of(client: &mut Client, pod: &str) -> Outcome<Pid> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: true };
    let answer = client.runtime.pod_sandbox_status(request).await.map_err(|s| client.failed("PodSandboxStatus", &s))?;
    let info = answer.into_inner().info.remove("info").unwrap_or_default();
    let info: Value = serde_json::from_str(&info).doing("read a pod's info")?;
    let pid = info.get("pid").and_then(Value::as_i64).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    Ok(pid.ok_or(format!("the pod's info names no process: {info}"))?)
}

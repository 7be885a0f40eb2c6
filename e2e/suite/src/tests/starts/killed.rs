//! The daemon is killed while an agent that says nothing has a start to do. The next daemon says of the container what is true.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use rustix::process::Signal;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tonic::Code;

use super::{Case, FOLDER, HANDLERS, PAUSE};
use crate::crictl::{self, run};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::rpc::Client;

/// When a stopped agent goes on.
#[derive(Clone, Copy, PartialEq)]
enum GoesOn {
    /// Before the next daemon starts.
    Before,
    /// When the next daemon has started.
    After,
    Never,
}

/// How long a daemon may take to start with agents that say nothing: it waits 20 s for each, for all at once.
const STARTS: Duration = Duration::from_secs(60);
/// How long a request may take to the agent's socket.
const ARRIVES: Duration = Duration::from_secs(60);

/// All at once, since a start of the daemon takes its time: each kind of pod, and for each an agent that goes on sooner, later and never.
pub(super) fn in_the_middle() -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.doing("start tokio")?.block_on(async {
        let mut making = JoinSet::new();
        for handler in HANDLERS {
            for (name, goes_on) in [("before", GoesOn::Before), ("after", GoesOn::After), ("never", GoesOn::Never)] {
                making.spawn(Killed::make(handler, name, goes_on));
            }
        }
        let mut cases = all(making).await?;
        if let Err(failure) = kill_daemon(&mut cases).await {
            cases.iter().for_each(Killed::let_go);
            return Err(failure);
        }
        let mut looking = JoinSet::new();
        cases.into_iter().for_each(|case| drop(looking.spawn(case.look())));
        all(looking).await.map(drop)
    });
    fs::remove_dir_all(FOLDER).doing(&format!("remove {FOLDER}"))?;
    outcome
}

/// What all of them come to, or the first failure.
async fn all<T: 'static>(mut tasks: JoinSet<Outcome<T>>) -> Outcome<Vec<T>> {
    let mut outcomes = Vec::new();
    while let Some(task) = tasks.join_next().await {
        outcomes.push(task.doing("run a case")?);
    }
    outcomes.into_iter().collect()
}

/// Starts, and in their middle another daemon.
async fn kill_daemon(cases: &mut [Killed]) -> Outcome {
    let mut starts = Vec::new();
    for case in &mut *cases {
        starts.push(case.ask_for_the_start().await?);
    }
    let killed = spawn_blocking(daemon::kill).await.doing("kill the daemon")?;
    let mut before = cases.iter().filter(|killed| killed.goes_on == GoesOn::Before);
    let went_on = before.try_for_each(|killed| killed.case.send(Signal::CONT));
    let began = Instant::now();
    // Started whatever failed: the other tests need it.
    spawn_blocking(daemon::start).await.doing("start the daemon")??;
    let took = began.elapsed();
    killed.and(went_on)?;
    ensure!(took < STARTS, "with agents that say nothing the daemon took {took:?} to start");
    for start in starts {
        let answer = start.await.doing("wait for a start")?;
        ensure!(answer.is_err(), "a start that the daemon did not live to answer succeeded");
    }
    Ok(())
}

/// A pod, and what happens to it.
struct Killed {
    case: Case,
    what: String,
    goes_on: GoesOn,
}

type Start = JoinHandle<Result<tonic::Response<cri::StartContainerResponse>, tonic::Status>>;

impl Killed {
    async fn make(handler: &'static str, name: &'static str, goes_on: GoesOn) -> Outcome<Self> {
        let what = format!("{handler} pod whose agent goes on {name}");
        let case = Case::make(handler, name).await.map_err(|f| Failure(format!("{what}: {f}")))?;
        Ok(Self { case, what, goes_on })
    }

    /// After a failure: a pod whose process is not stopped can be removed.
    fn let_go(&self) {
        let _ = self.case.send(Signal::CONT);
    }

    /// Stops the agent and asks for the start; comes back when the request lies in the agent's socket. The record was kept before.
    async fn ask_for_the_start(&mut self) -> Outcome<Start> {
        self.case.send(Signal::STOP)?;
        let (before, asked) = (unread(&self.case.pod)?, Instant::now());
        let request = cri::StartContainerRequest { container_id: self.case.container.clone() };
        let mut runtime = self.case.client.runtime.clone();
        let start = tokio::spawn(async move { runtime.start_container(request).await });
        while unread(&self.case.pod)? <= before {
            ensure!(!start.is_finished(), "{}: a start that nobody reads has ended", self.what);
            ensure!(asked.elapsed() < ARRIVES, "{}: the start is not asked for after {ARRIVES:?}", self.what);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(start)
    }

    async fn look(mut self) -> Outcome {
        let outcome = self.is_true().await;
        if outcome.is_err() {
            self.let_go();
        }
        outcome.map_err(|f| Failure(format!("{}: {f}", self.what)))
    }

    async fn is_true(&mut self) -> Outcome {
        // The connection was the last daemon's.
        self.case.client = Client::connect("killed", crictl::SOCKET).await?;
        match self.goes_on {
            GoesOn::Before => self.is_as_told().await?,
            GoesOn::After => {
                self.is_unknown().await?;
                self.case.send(Signal::CONT)?;
                self.case.is_taken_back().await?;
            }
            GoesOn::Never => self.is_unknown().await?,
        }
        self.case.client.remove(&self.case.pod).await?;
        let process = format!("/proc/{}", self.case.process.as_raw_nonzero());
        ensure!(fs::metadata(&process).is_err(), "the removed pod's process is still there: {process}");
        Ok(())
    }

    /// Nobody is told of an end, or of a container that may be started.
    async fn is_unknown(&mut self) -> Outcome {
        let container = self.case.container.clone();
        let status = self.case.status(&container).await?;
        ensure!(status.state() == cri::ContainerState::ContainerUnknown, "after the daemon's start: {status:?}");
        let again = self.case.start().await?;
        ensure!(again.code() == Code::FailedPrecondition, "another start: {:?}: {}", again.code(), again.message());
        Ok(())
    }

    /// The agent did what it was asked to, or nothing: the container runs and can be stopped, or has ended without.
    async fn is_as_told(&mut self) -> Outcome {
        let container = self.case.container.clone();
        let status = self.case.status(&container).await?;
        match status.state() {
            cri::ContainerState::ContainerRunning => {
                let beats = self.case.beats();
                tokio::time::sleep(3 * PAUSE).await;
                ensure!(self.case.beats() > beats, "the container is told as running, and writes nothing");
                let request = cri::StopContainerRequest { container_id: container.clone(), timeout: 0 };
                let stopped = self.case.client.runtime.stop_container(request).await;
                stopped.map_err(|s| self.case.client.failed("StopContainer", &s))?;
                let status = self.case.status(&container).await?;
                let told = (status.state(), status.exit_code, status.reason.as_str());
                ensure!(told == (cri::ContainerState::ContainerExited, 137, "Error"), "once stopped: {status:?}");
                self.case.writes_nothing().await?;
            }
            cri::ContainerState::ContainerUnknown | cri::ContainerState::ContainerExited => {
                self.case.failed_to_start().await?;
            }
            cri::ContainerState::ContainerCreated => {
                return Err(format!("it is told as created though its start was asked for: {status:?}").into());
            }
        }
        let request = cri::RemoveContainerRequest { container_id: container };
        let removed = self.case.client.runtime.remove_container(request).await;
        removed.map_err(|s| self.case.client.failed("RemoveContainer", &s))?;
        self.case.client.exec_true(&self.case.bystander).await?;
        Ok(())
    }
}

/// Bytes that the process of a pod has not read from those who are connected to it.
fn unread(pod: &str) -> Outcome<u64> {
    let mut command = Command::new("ss");
    command.args(["-xnH"]);
    let output = run(command, "ss -xnH")?;
    ensure!(output.code == 0, "ss failed: {}", output.stderr.trim());
    let mut sum = 0;
    for line in output.stdout.lines() {
        let mut words = line.split_whitespace().skip(1);
        let (state, waiting, _, address) = (words.next(), words.next(), words.next(), words.next());
        if state == Some("ESTAB") && address.is_some_and(|path| path.contains(&format!("/pods/{pod}/"))) {
            sum += waiting.unwrap_or_default().parse::<u64>().doing("read what ss says")?;
        }
    }
    Ok(sum)
}

//! Which versions of their APIs the programs of a pod speak.
//!
//! A pod outlives the daemon that launched it, so its monitor and its agent may be older than the
//! daemon, or newer after a downgrade. They are greeted with the newest version first and then with
//! each older one: a program that does not speak a version refuses it and listens on. A pod that is
//! launched is greeted with the newest alone, since its programs are of one installation with the
//! daemon.

use std::ops::RangeInclusive;
use std::sync::OnceLock;
use std::time::Duration;

use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::{self, HelloReply, HelloRequest};
use cofferdam_proto::monitor;
use serde::Serialize;
use tokio::sync::OnceCell;
use tonic::Code;
use tonic::transport::Channel;

use crate::connect;
use crate::error::{Doing, SandboxError, blocking};
use crate::pod::Pod;
use crate::spec::Kind;

/// How long the agent of an adopted pod may take to be greeted; one of a pod that is launched has
/// the time of the launch.
const LIMIT: Duration = Duration::from_secs(30);
/// How long after a greeting that was not answered the next one comes; each time twice as long.
const AGAIN: Duration = Duration::from_secs(5);
/// At most so long.
const AGAIN_MOST: Duration = Duration::from_secs(300);
/// Longest version of a program that is kept, in bytes: an agent says its own.
const LONGEST: usize = 40;

/// A program of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramVersion {
    /// The version of its API that is spoken with it.
    pub api: u32,
    /// Its own version, by its own word.
    pub version: String,
}

impl ProgramVersion {
    /// What it says of itself in its answer.
    pub(crate) fn new(api: u32, version: &str) -> Self {
        let plain = |c: char| if c.is_ascii_graphic() { c } else { '?' };
        Self { api, version: version.chars().take(LONGEST).map(plain).collect() }
    }

    fn is_like_this_daemon(&self, newest: u32) -> bool {
        self.api == newest && self.version == env!("CARGO_PKG_VERSION")
    }
}

/// The programs of a pod, as far as they have been asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Programs {
    /// The monitor of a microVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<ProgramVersion>,
    /// The agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<ProgramVersion>,
}

impl Programs {
    /// Whether one of them is not of this daemon's version.
    pub fn differ(&self) -> bool {
        let differs =
            |program: &Option<ProgramVersion>, newest| program.as_ref().is_some_and(|p| !p.is_like_this_daemon(newest));
        differs(&self.monitor, monitor::API_VERSION) || differs(&self.agent, agent::API_VERSION)
    }
}

/// What a pod keeps of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    monitor: OnceLock<ProgramVersion>,
    agent: OnceCell<ProgramVersion>,
}

impl Known {
    /// Of a pod that was just launched.
    pub(crate) fn new(monitor: Option<ProgramVersion>, agent: ProgramVersion) -> Self {
        Self { monitor: monitor.map(OnceLock::from).unwrap_or_default(), agent: OnceCell::new_with(Some(agent)) }
    }
}

impl Pod {
    /// The programs that it runs in, as far as they are known: an adopted pod's are asked one after
    /// the other.
    pub fn programs(&self) -> Programs {
        let known = &self.inner.known;
        Programs { monitor: known.monitor.get().cloned(), agent: known.agent.get().cloned() }
    }

    /// The version of its API that is spoken with the agent, which is asked for it once.
    ///
    /// # Errors
    /// When it does not answer, or speaks no version that this daemon does.
    pub async fn agent_api(&self) -> Result<u32, SandboxError> {
        let greet = || async {
            let limited = tokio::time::timeout(LIMIT, greet(self.agent(), agent::API_VERSIONS)).await;
            limited.unwrap_or_else(|_| {
                Err(SandboxError::TimedOut { step: "greeting the pod's agent".into(), seconds: LIMIT.as_secs() })
            })
        };
        self.inner.known.agent.get_or_try_init(greet).await.map(|program| program.api)
    }

    /// The version of its API that is spoken with the monitor of a microVM, which is asked for it
    /// once.
    ///
    /// # Errors
    /// When it does not answer, or speaks no version that this daemon does.
    pub(crate) async fn monitor_api(&self) -> Result<u32, SandboxError> {
        self.meet_monitor().await?;
        Ok(self.inner.known.monitor.get().map_or(0, |program| program.api))
    }

    /// Asks the monitor of a microVM.
    async fn meet_monitor(&self) -> Result<(), SandboxError> {
        if self.kind() != Kind::Vm || self.inner.known.monitor.get().is_some() {
            return Ok(());
        }
        let dirs = self.inner.dirs.clone();
        let program = blocking(move || connect::monitor(&dirs)).await?;
        let _ = self.inner.known.monitor.set(program);
        Ok(())
    }

    /// Asks both until they have answered, and says in the log when they are not of this daemon's
    /// version.
    pub(crate) fn get_acquainted(&self) {
        let pod = self.clone();
        tokio::spawn(async move {
            let mut wait = AGAIN;
            loop {
                let met = tokio::select! {
                    met = async { pod.meet_monitor().await.and(pod.agent_api().await.map(drop)) } => met,
                    _ = pod.ended() => return,
                };
                match met {
                    Ok(()) => break,
                    Err(error) if wait == AGAIN => {
                        let error = error.chain();
                        tracing::warn!(
                            pod = pod.id(),
                            error,
                            "the pod's programs do not say which versions they speak; asking again"
                        );
                    }
                    Err(error) => tracing::debug!(pod = pod.id(), error = error.chain(), "no answer yet"),
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = pod.ended() => return,
                }
                wait = (wait * 2).min(AGAIN_MOST);
            }
            let programs = pod.programs();
            if programs.differ() {
                let show = |program: &Option<ProgramVersion>| {
                    program.as_ref().map(|p| format!("{} (API {})", p.version, p.api)).unwrap_or_default()
                };
                tracing::info!(
                    pod = pod.id(),
                    monitor = show(&programs.monitor),
                    agent = show(&programs.agent),
                    daemon = env!("CARGO_PKG_VERSION"),
                    "the pod runs in programs of another version: it goes on, and gets what is new when it is made anew (docs/upgrade.md)"
                );
            }
        });
    }
}

/// Agrees with an agent on the newest of `versions` that it speaks. Waits for the agent as long as
/// the caller does.
pub(crate) async fn greet(
    mut agent: AgentClient<Channel>,
    versions: RangeInclusive<u32>,
) -> Result<ProgramVersion, SandboxError> {
    let step = || "greet the pod's agent".to_owned();
    let (oldest, newest) = (*versions.start(), *versions.end());
    let mut refusal = String::new();
    for api_version in versions.rev() {
        match agent.hello(HelloRequest { api_version }).await.map(tonic::Response::into_inner) {
            Ok(HelloReply { api_version: agreed, agent_version, .. }) if agreed == api_version => {
                return Ok(ProgramVersion::new(agreed, &agent_version));
            }
            Ok(reply) => {
                return Err(format!("it answers {api_version} with version {} of its API", reply.api_version))
                    .doing(step);
            }
            Err(status) if status.code() == Code::FailedPrecondition => refusal = status.message().to_owned(),
            Err(status) => return Err(status).doing(step),
        }
    }
    Err(nothing_in_common("agent", oldest, newest, &refusal)).doing(step)
}

/// Why two programs cannot speak with each other.
pub(crate) fn nothing_in_common(program: &str, oldest: u32, newest: u32, refusal: &str) -> String {
    let ours = if oldest == newest { format!("version {newest}") } else { format!("versions {oldest} to {newest}") };
    format!("the daemon speaks {ours} of the {program}'s API, and it says: {refusal}")
}

#[cfg(test)]
pub(crate) mod tests;

//! The DaemonSet's pod: looks at its node again and again, and does the next step.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use tokio::signal::unix::{SignalKind, signal};

use super::api::Cluster;
use super::plan::{Facts, Seen, Step, Wants};
use super::{HOST, RETRY, STATE, VERSION, VM, drain, lease};
use crate::error::{Doing, Result, chain};
use crate::node::outcome::{self, Work};
use crate::paths::{Paths, WORK_UNIT, version_of};
use crate::product;
use crate::systemd::Systemd;

/// How long until the node is looked at again when nothing is going on.
const IDLE: Duration = Duration::from_secs(30);
/// And when something is.
const BUSY: Duration = Duration::from_secs(3);
/// A drain that failed is not tried again sooner.
const DRAIN_PAUSE: Duration = Duration::from_secs(600);

/// What the pod is started with.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The product in the image.
    pub(crate) product: PathBuf,
    /// The kubelet's unit on the host.
    pub(crate) kubelet: String,
    /// How long a drain may take.
    pub(crate) drain: Duration,
    /// The file that is there while the node is as it should be: the readiness probe looks for it.
    pub(crate) ready: PathBuf,
}

struct Installer {
    cluster: Cluster,
    paths: Paths,
    systemd: Systemd,
    options: Options,
    version: String,
    /// No drain before.
    pause: Option<Instant>,
}

/// Works until the pod is told to end, which changes nothing on the node.
pub(crate) async fn run(cluster: Cluster, options: Options) -> Result<()> {
    let version = version_of(&options.product)?;
    let systemd = Systemd::connect().await?;
    let mut installer = Installer { cluster, paths: Paths::node(), systemd, options, version, pause: None };
    let mut terminate = signal(SignalKind::terminate()).doing(|| "wait for SIGTERM".into())?;
    tracing::info!(node = installer.cluster.node, version = installer.version, "ready");
    loop {
        let pause = tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("told to end; the node stays as it is");
                return Ok(());
            }
            result = installer.look() => match result {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(error = chain(&error), "tried again soon");
                    installer.failed(&error).await;
                    IDLE
                }
            }
        };
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Installer {
    async fn look(&mut self) -> Result<Duration> {
        let node = self.cluster.get().await?;
        let facts = self.facts(&node).await?;
        self.publish(&node, &facts).await?;
        let step = facts.next();
        self.say_ready(step == Step::Settled)?;
        match step {
            Step::Wait => self.state(&node, "a unit works on the host: journalctl -u cofferdam-installer").await?,
            Step::Recover => {
                let folder = self.place().await?;
                self.work("undoes what was interrupted", &["recover"], folder).await?;
            }
            Step::Install => return self.install(&node).await,
            Step::Switch => return self.switch(&node).await,
            Step::Uncordon => self.uncordon(&node, &facts).await?,
            Step::Stuck(why) => {
                self.stuck(&node, &why).await?;
                return Ok(IDLE);
            }
            Step::Settled => {
                let text = match (facts.seen.wants, facts.seen.on_cofferdam) {
                    (Wants::Nothing, _) => "nothing is asked for".to_owned(),
                    (_, true) => format!("version {} serves the kubelet", self.version),
                    (_, false) => format!("version {} is installed; the kubelet uses another runtime", self.version),
                };
                self.state(&node, &text).await?;
                return Ok(IDLE);
            }
        }
        Ok(BUSY)
    }

    async fn facts(&self, node: &Node) -> Result<Facts> {
        Ok(Facts {
            seen: Seen::of(node),
            product: self.version.clone(),
            installed: self.paths.installed(),
            working: self.systemd.is_active(WORK_UNIT).await?,
            unfinished: self.paths.unfinished(),
            install: outcome::read(&self.paths, Work::Install)?,
            switch: outcome::read(&self.paths, Work::Switch)?,
        })
    }

    /// Labels say which pods can run here now; without an outcome of an install that is not known.
    async fn publish(&self, node: &Node, facts: &Facts) -> Result<()> {
        self.cluster.annotate(node, &[(VERSION, facts.installed.as_deref())]).await?;
        let Some(install) = facts.install.as_ref().filter(|outcome| outcome.done) else { return Ok(()) };
        let says = |can: bool| Some(if can && facts.seen.on_cofferdam { "true" } else { "false" });
        self.cluster.label(node, &[(VM, says(install.vm)), (HOST, says(install.host))]).await
    }

    async fn install(&self, node: &Node) -> Result<Duration> {
        self.state(node, &format!("version {} is being installed", self.version)).await?;
        let folder = self.place().await?;
        let version = self.version.as_str();
        self.work(&format!("installs version {version}"), &["install", "--version", version], folder).await?;
        self.tried(node).await?;
        Ok(BUSY)
    }

    /// Makes sure that the host has this pod's version, if only as a folder.
    async fn place(&self) -> Result<PathBuf> {
        let (product, paths) = (self.options.product.clone(), self.paths.clone());
        let placed = tokio::task::spawn_blocking(move || product::place(&product, &paths)).await;
        placed.doing(|| "copy the product".into())?.map(|version| self.paths.version(&version))
    }

    async fn switch(&mut self, node: &Node) -> Result<Duration> {
        if self.pause.is_some_and(|until| Instant::now() < until) {
            return Ok(IDLE);
        }
        if let Some(holder) = lease::take(&self.cluster).await? {
            self.state(node, &format!("waits: {holder} is being switched, or its switch has failed")).await?;
            return Ok(IDLE);
        }
        self.state(node, "the node is being drained, to be switched").await?;
        drain::cordon(&self.cluster, node).await?;
        if let Err(error) = drain::drain(&self.cluster, None, self.options.drain).await {
            self.pause = Some(Instant::now() + DRAIN_PAUSE);
            let node = self.cluster.get().await?;
            drain::uncordon(&self.cluster, &node).await?;
            lease::release(&self.cluster).await?;
            let text =
                format!("draining failed, and is tried again in {} min: {}", DRAIN_PAUSE.as_secs() / 60, chain(&error));
            self.stuck(&node, &text).await?;
            return Ok(IDLE);
        }
        self.state(node, "the kubelet is being switched to Cofferdam").await?;
        self.cluster
            .event(false, "CofferdamSwitching", "the node is drained; the kubelet is switched to Cofferdam")
            .await;
        let name = self.cluster.node.clone();
        let words = ["switch", "--node", &name, "--kubelet", &self.options.kubelet];
        self.work("switches the kubelet to Cofferdam", &words, self.paths.current()).await?;
        self.tried(node).await?;
        Ok(BUSY)
    }

    async fn uncordon(&self, node: &Node, facts: &Facts) -> Result<()> {
        drain::uncordon(&self.cluster, node).await?;
        if facts.seen.on_cofferdam {
            lease::release(&self.cluster).await?;
            self.cluster
                .event(false, "CofferdamSwitched", "the kubelet uses Cofferdam; the node takes pods again")
                .await;
        }
        Ok(())
    }

    /// Has the host run `cofferdam-installer node WORDS`, of the version in `folder`.
    async fn work(&self, description: &str, words: &[&str], folder: PathBuf) -> Result<()> {
        let program = folder.join("bin/cofferdam-installer");
        let argv: Vec<String> =
            [program.to_string_lossy().as_ref(), "node"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        self.systemd.run(WORK_UNIT, &format!("Cofferdam's installer {description}"), &argv).await
    }

    async fn tried(&self, node: &Node) -> Result<()> {
        self.cluster.annotate(node, &[(RETRY, None)]).await
    }

    async fn state(&self, node: &Node, text: &str) -> Result<()> {
        self.cluster.annotate(node, &[(STATE, Some(text))]).await
    }

    /// Says what an administrator has to look at, in an event too when it is new.
    async fn stuck(&self, node: &Node, why: &str) -> Result<()> {
        let text = format!("failed: {why}");
        let known = node.metadata.annotations.as_ref().and_then(|map| map.get(STATE)) == Some(&text);
        if !known {
            tracing::error!(why, "stuck");
            self.cluster.event(true, "CofferdamFailed", why).await;
        }
        self.state(node, &text).await
    }

    async fn failed(&self, error: &crate::error::Error) {
        let _ = self.say_ready(false);
        if let Ok(node) = self.cluster.get().await {
            let _ = self.stuck(&node, &chain(error)).await;
        }
    }

    fn say_ready(&self, ready: bool) -> Result<()> {
        let path: &Path = &self.options.ready;
        if ready {
            std::fs::write(path, "").doing(|| format!("write {}", path.display()))
        } else {
            crate::files::remove(path)
        }
    }
}

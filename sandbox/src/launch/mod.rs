//! Launches a pod. Network and process come up side by side: neither needs the other before the agent is told its address.

mod agent;
mod fill;
mod host;
mod make;
mod network;
mod pool;
mod save;
mod take;
mod trial;
mod unowned;
mod vm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::field::Empty;
use tracing::info_span;

use crate::cgroup::PodCgroup;
use crate::dirs::{self, Dirs, ReadyRecord};
use crate::error::{Doing, SandboxError, blocking};
use crate::link::GuestNetwork;
use crate::netns::{self, NetNs};
use crate::pod::{Pod, Watched};
use crate::runtime::{Shared, Timeline};
use crate::spec::{Kind, NetworkStatus, PodSpec, VmSize};
use crate::step::{SPANS, step};
use crate::template::{Origin, Shape, Template};
use crate::users::{self, Spaces};
use crate::versions::Known;
use crate::{clock, connect, quota, size, teardown};
pub(crate) use fill::{fill, remove};
pub(crate) use make::make_templates;
pub(crate) use pool::Pool;
use pool::Waiting;
use take::{Remains, Taken};

/// What the steps of one launch share.
struct Launch {
    shared: Arc<Shared>,
    spec: PodSpec,
    dirs: Dirs,
    cgroup: PodCgroup,
    /// Of the microVM.
    shape: Shape,
    /// What the microVM is restored from; without one it boots.
    template: Option<Arc<Template>>,
    /// A microVM that was restored before the launch.
    taken: Option<Taken>,
    netns: Option<NetNs>,
    users: Option<Spaces>,
    clock: Clock,
    again: Arc<Again>,
    /// Set when the launch has failed, so that nothing waits for a boot in vain.
    failed: CancellationToken,
}

/// Why a launch that failed is tried once more, with a boot.
#[derive(Default)]
struct Again {
    /// How many network cards the guest must have, when it was started with too few; 0 otherwise.
    cards: AtomicUsize,
    /// Its template could not be used.
    without_template: AtomicBool,
}

/// What a pod's microVM is made of.
#[derive(Default)]
struct VmSource {
    /// Network cards.
    cards: usize,
    /// Without one it boots.
    template: Option<Arc<Template>>,
    /// One that is restored from the template already.
    waiting: Option<Waiting>,
}

/// Launches the pod or leaves nothing of it. The caller holds the pod's lock.
pub(crate) async fn launch(shared: &Arc<Shared>, spec: &PodSpec) -> Result<Pod, SandboxError> {
    let clock = Clock::new();
    let dirs = Dirs::of(&shared.config, &spec.id)?;
    check(spec)?;
    if let (Some(_), Some(why)) = (spec.users, &shared.no_users) {
        return Err(SandboxError::Unusable { kind: "user namespace", reason: why.clone() });
    }
    let cgroup = PodCgroup::new(&shared.config, &spec.cgroup_parent, &spec.id)?;
    let spec = {
        let (spec, dirs, cgroup) = (spec.clone(), dirs.clone(), cgroup.clone());
        blocking(move || fit(spec, &dirs, &cgroup)).await?
    };
    let cards = cards(shared, &spec);
    let template = if spec.kind == Kind::Vm { template_for(shared, &spec, cards).await } else { None };
    let again = Arc::new(Again::default());
    let waiting = template.as_ref().and_then(|template| shared.pool.take(template));
    let remains = waiting.as_ref().map(Remains::of);
    let vm = VmSource { cards, template: template.clone(), waiting };
    let outcome = run(shared, &spec, &dirs, (cgroup, clock), vm, &again).await;
    if let Some(remains) = remains {
        remains.remove(shared);
        shared.pool.look_again();
    }
    let Err(error) = outcome else { return outcome };
    if let Err(error) = teardown::remove(shared, &dirs, &spec.id).await {
        tracing::error!(pod = %spec.id, %error, "cannot undo a launch");
        return Err(error);
    }
    let cards = again.cards.load(Ordering::Relaxed);
    if cards > 0 {
        tracing::info!(pod = %spec.id, cards, "starting the microVM again: its network has more interfaces");
        return boot(shared, &spec, &dirs).await;
    }
    let Some(template) = template.filter(|_| again.without_template.load(Ordering::Relaxed)) else {
        return Err(error);
    };
    let why = error.chain();
    tracing::warn!(pod = %spec.id, error = why, "booting the microVM: it could not be restored from its template");
    let pod = boot(shared, &spec, &dirs).await?;
    // A pod that does not boot either says nothing about the template.
    let shared = Arc::clone(shared);
    let discarded = blocking(move || {
        shared.templates.discard(&template);
        Ok(())
    });
    discarded.await.ok();
    Ok(pod)
}

/// How many network cards a microVM gets.
fn cards(shared: &Shared, spec: &PodSpec) -> usize {
    spec.network.as_ref().filter(|_| spec.kind == Kind::Vm).map_or(0, |net| shared.networks.cards(net))
}

/// The template for a microVM, if there is one.
async fn template_for(shared: &Arc<Shared>, spec: &PodSpec, cards: usize) -> Option<Arc<Template>> {
    let (shared, wanted) = (Arc::clone(shared), spec.vm);
    let chosen = blocking(move || Ok(shared.templates.choose(&shared.config.vm, wanted, cards))).await;
    match chosen {
        Ok(Ok(template)) => Some(template),
        Ok(Err(why)) => {
            tracing::info!(pod = %spec.id, why, "the microVM boots");
            None
        }
        Err(error) => {
            tracing::warn!(pod = %spec.id, error = error.chain(), "the microVM boots");
            None
        }
    }
}

/// The launch once more, with a boot and as many network cards as the first try has shown.
async fn boot(shared: &Arc<Shared>, spec: &PodSpec, dirs: &Dirs) -> Result<Pod, SandboxError> {
    let cgroup = PodCgroup::new(&shared.config, &spec.cgroup_parent, &spec.id)?;
    let cards = cards(shared, spec);
    let vm = VmSource { cards, ..VmSource::default() };
    let outcome = run(shared, spec, dirs, (cgroup, Clock::new()), vm, &Arc::default()).await;
    if outcome.is_err()
        && let Err(error) = teardown::remove(shared, dirs, &spec.id).await
    {
        tracing::error!(pod = %spec.id, %error, "cannot undo a launch");
    }
    outcome
}

async fn run(
    shared: &Arc<Shared>,
    spec: &PodSpec,
    dirs: &Dirs,
    (cgroup, clock): (PodCgroup, Clock),
    VmSource { cards, template, waiting }: VmSource,
    again: &Arc<Again>,
) -> Result<Pod, SandboxError> {
    // What the guest starts with is what its template had: it grows to what the pod gets.
    let (mut wanted, mut spec, dirs) = (spec.vm, spec.clone(), dirs.clone());
    let shape = match &template {
        Some(template) => {
            let size = template.shape.size;
            // Memory is plugged in steps of 2 MiB, and there is room for no more than is wanted.
            wanted.memory_mib -= (wanted.memory_mib - size.memory_mib) % 2;
            spec.vm_max = spec.vm_max.at_least(wanted);
            spec.vm = size;
            template.shape
        }
        None => Shape::to_boot(&spec, cards),
    };
    let (taken, netns) = match waiting {
        Some(waiting) => {
            let (taken, netns) = Taken::new(waiting).await;
            (Some(taken), Some(netns))
        }
        None => (None, None),
    };
    let (netns, users) = {
        let (spec, dirs) = (spec.clone(), dirs.clone());
        blocking(move || prepare(&spec, &dirs, cards, netns)).await?
    };
    let _quota = {
        let (cgroup, dirs) = (cgroup.clone(), dirs.clone());
        blocking(move || quota::lift(&cgroup, &dirs)).await?
    };
    clock.mark("prepared");
    let (failed, is_restored) = (CancellationToken::new(), template.is_some());
    let origin = match (&taken, is_restored) {
        (Some(_), _) => Origin::Pool,
        (None, true) => Origin::Template,
        (None, false) => Origin::Boot,
    };
    let (shared_too, again) = (Arc::clone(shared), Arc::clone(again));
    let launch = Arc::new(Launch {
        shared: shared_too,
        spec,
        dirs,
        cgroup,
        shape,
        template,
        taken,
        netns,
        users,
        clock,
        again,
        failed,
    });
    let channel = connect::agent(&launch.dirs, launch.spec.kind);
    let (network, process) = tokio::join!(launch.network(), launch.process(&channel, wanted));
    let (status, guest) = network?;
    let (watched, pod) = process.map_err(|cause| launch.not_up(cause))?;
    let span = info_span!(target: SPANS, "agent configure pod", otel.status_code = Empty);
    step(span, agent::configure(&launch, &channel, status.as_ref(), guest, &watched)).await?;
    launch.clock.mark("configured");
    pod.launched(status.clone(), launch.clock.timeline());
    let (path, ready) = (launch.dirs.ready(), ReadyRecord { network: status });
    blocking(move || dirs::write(&path, &ready)).await?;
    if pod.kind() == Kind::Vm {
        shared.came_up(origin);
    }
    clock::follow(shared, &pod, false);
    Ok(pod)
}

/// Looks whether the pod has a place, and makes a guest as large as there is room for. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn fit(mut spec: PodSpec, dirs: &Dirs, cgroup: &PodCgroup) -> Result<PodSpec, SandboxError> {
    if dirs.run.exists() || dirs.state.exists() {
        return Err(SandboxError::Invalid(format!("something of a pod {} is there already: remove it first", spec.id)));
    }
    if spec.kind == Kind::Vm {
        spec.vm = size::fit(spec.vm, cgroup.memory_limit())?;
    }
    Ok(spec)
}

/// What a specification must not say.
fn check(spec: &PodSpec) -> Result<(), SandboxError> {
    if spec.kind == Kind::Vm && (spec.network.is_none() || spec.node_pid || spec.node_ipc) {
        return Err(SandboxError::Invalid(
            "a microVM cannot share a namespace with the node: use the host handler".into(),
        ));
    }
    if spec.users.is_some() && (spec.network.is_none() || spec.node_pid || spec.node_ipc) {
        return Err(SandboxError::Invalid(
            "users of a pod's own need one that shares no namespace with the node".into(),
        ));
    }
    Ok(())
}

/// Directories, the specification for whoever cleans up, and the network namespace, unless it is
/// made already.
fn prepare(
    spec: &PodSpec,
    dirs: &Dirs,
    cards: usize,
    made: Option<NetNs>,
) -> Result<(Option<NetNs>, Option<Spaces>), SandboxError> {
    dirs::make_private(&dirs.run)?;
    dirs::make_private(&dirs.state)?;
    dirs::write(&dirs.spec(), spec)?;
    if let (Some(range), Kind::Host) = (spec.users, spec.kind) {
        let spaces = users::create(range)?;
        let net = spaces.net.try_clone().doing(|| "copy a descriptor".into())?;
        return Ok((Some(netns::adopt(&dirs.netns(), net)?), Some(spaces)));
    }
    if let Some(netns) = made {
        netns::name(&dirs.netns(), &netns.fd)?;
        return Ok((Some(netns), None));
    }
    let netns = spec.network.as_ref().map(|_| netns::create(&dirs.netns(), cards)).transpose()?;
    Ok((netns, None))
}

impl Launch {
    /// The error of a process that did not come up. A restored one is tried again with a boot.
    fn not_up(&self, cause: SandboxError) -> SandboxError {
        self.again.without_template.store(self.template.is_some(), Ordering::Relaxed);
        match self.spec.kind {
            Kind::Vm => SandboxError::Boot(Box::new(cause)),
            Kind::Host => cause,
        }
    }

    /// The network's half. Its failure ends the other half's wait.
    async fn network(self: &Arc<Self>) -> Result<(Option<NetworkStatus>, GuestNetwork), SandboxError> {
        let outcome = network::attach(self).await;
        if outcome.is_err() {
            self.failed.cancel();
        }
        outcome
    }

    /// The process's half: started, and its agent has answered.
    /// A restored guest gets what a booted one has from the beginning, `wanted`.
    async fn process(self: &Arc<Self>, channel: &Channel, wanted: VmSize) -> Result<(Watched, Pod), SandboxError> {
        let (watched, known) = match &self.taken {
            Some(taken) => {
                let span = info_span!(target: SPANS, "microVM take", otel.status_code = Empty);
                step(span, take::take(self, taken)).await?
            }
            None => self.started(channel).await?,
        };
        if self.spec.kind == Kind::Vm {
            let span = info_span!(target: SPANS, "agent mount pod", otel.status_code = Empty);
            step(span, self.mount(channel, &watched)).await?;
            self.clock.mark("mounted");
        }
        let pod = Pod::new(
            Arc::clone(&self.shared),
            self.spec.clone(),
            self.dirs.clone(),
            self.cgroup.name().to_owned(),
            known,
            channel.clone(),
            &watched,
        );
        pod.has_as_started();
        if self.template.is_some() {
            let span = info_span!(target: SPANS, "guest grow", otel.status_code = Empty);
            step(span, pod.grow(wanted)).await?;
            self.clock.mark("grown");
        }
        Ok((watched, pod))
    }

    async fn started(self: &Arc<Self>, channel: &Channel) -> Result<(Watched, Known), SandboxError> {
        let watched = match self.spec.kind {
            Kind::Vm => {
                let span = info_span!(target: SPANS, "monitor start", otel.status_code = Empty);
                step(span, vm::start(self)).await?
            }
            Kind::Host => {
                let span = info_span!(target: SPANS, "supervisor start", otel.status_code = Empty);
                step(span, host::start(self)).await?
            }
        };
        let span = match self.spec.kind {
            Kind::Vm if self.template.is_some() => info_span!(target: SPANS, "guest restore", otel.status_code = Empty),
            Kind::Vm => info_span!(target: SPANS, "guest boot", otel.status_code = Empty),
            Kind::Host => info_span!(target: SPANS, "agent greet", otel.status_code = Empty),
        };
        let known = step(span, self.answered(channel, &watched)).await?;
        Ok((watched, known))
    }
}

/// When what happened.
struct Clock {
    start: Instant,
    marks: std::sync::Mutex<Timeline>,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), marks: std::sync::Mutex::default() }
    }

    /// Microseconds since the start.
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// `step` has happened now.
    fn mark(&self, step: &str) {
        self.mark_at(step, self.now());
    }

    fn mark_at(&self, step: &str, at: u64) {
        self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(step.into(), at);
    }

    fn timeline(&self) -> Timeline {
        self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests;

//! Tries a template out: a microVM is restored from it that no pod gets.

use std::sync::Arc;

use super::agent;
use super::unowned::{self, Up};
use crate::dirs::Dirs;
use crate::error::{SandboxError, blocking};
use crate::link::GuestNetwork;
use crate::runtime::Shared;
use crate::spec::PodSpec;
use crate::template::Template;

/// Restores a microVM from `template`, has its agent do what it does for a pod without a network, and
/// answers what `look` finds at its monitor, a process id. All of it is undone then.
///
/// # Errors
/// When the microVM cannot be restored, or `look` fails.
pub(super) async fn try_out<T: Send + 'static>(
    shared: &Arc<Shared>,
    template: &Arc<Template>,
    look: impl FnOnce(u32) -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let spec = unowned::spec(shared, template.shape)?;
    let dirs = Dirs::of(&shared.config, &spec.id)?;
    let _lock = shared.lock(&spec.id).await;
    let found = run(shared, &spec, &dirs, template, look).await;
    unowned::remove(shared, &dirs, &spec.id).await;
    found
}

async fn run<T: Send + 'static>(
    shared: &Arc<Shared>,
    spec: &PodSpec,
    dirs: &Dirs,
    template: &Arc<Template>,
    look: impl FnOnce(u32) -> Result<T, SandboxError> + Send + 'static,
) -> Result<T, SandboxError> {
    let up = unowned::start(shared, spec, dirs, template.shape, Some(Arc::clone(template))).await?;
    let Up { launch, channel, watched, .. } = up;
    launch.mount(&channel, &watched).await?;
    agent::configure(&launch, &channel, None, GuestNetwork::default(), &watched).await?;
    let pid = watched.pid;
    blocking(move || look(pid)).await
}

//! Keeps the pool of waiting microVMs full.

use std::sync::Arc;
use std::time::Duration;

use super::pool::Waiting;
use super::unowned::{self, Up};
use crate::connect;
use crate::dirs::{self, Dirs, ProcessRecord};
use crate::error::{SandboxError, blocking};
use crate::runtime::Shared;
use crate::template::Template;

/// How often the pool is looked at when nothing is known to have changed: a waiting microVM may
/// have ended, and one that could not be made is tried again.
const LOOK: Duration = Duration::from_secs(30);

/// Fills the pool, and fills it again behind each pod that took a microVM, until it is closed.
pub(crate) async fn fill(shared: Arc<Shared>) {
    while !shared.pool.is_closed() {
        let template = usual_template(&shared).await;
        remove(&shared, shared.pool.useless(template.as_ref())).await;
        if let Some(template) = template
            && let Err(error) = fill_with(&shared, &template).await
        {
            tracing::warn!(error = error.chain(), "cannot restore a microVM ahead of its pod; trying again later");
        }
        // Also without a change: see LOOK.
        let _ = tokio::time::timeout(LOOK, shared.pool.changed()).await;
    }
}

/// The template of the usual pod, once it is made.
async fn usual_template(shared: &Arc<Shared>) -> Option<Arc<Template>> {
    let usual = shared.config.vm.template.as_ref()?.size;
    let shared = Arc::clone(shared);
    let chosen = blocking(move || Ok(shared.templates.choose(&shared.config.vm, usual, 1)));
    chosen.await.ok()?.ok()
}

async fn fill_with(shared: &Arc<Shared>, template: &Arc<Template>) -> Result<(), SandboxError> {
    while shared.pool.wants_more() {
        let vm = restore(shared, template).await?;
        if let Some(vm) = shared.pool.add(vm) {
            remove(shared, vec![vm]).await;
        }
    }
    Ok(())
}

/// Restores a microVM and pauses it when its agent has answered.
async fn restore(shared: &Arc<Shared>, template: &Arc<Template>) -> Result<Waiting, SandboxError> {
    let spec = unowned::spec(shared, template.shape)?;
    let dirs = Dirs::of(&shared.config, &spec.id)?;
    let _lock = shared.lock(&spec.id).await;
    let restored = async {
        let up = unowned::start(shared, &spec, &dirs, template.shape, Some(Arc::clone(template))).await?;
        pause(up, &dirs, template).await
    };
    let restored = restored.await;
    if restored.is_err() {
        unowned::remove(shared, &dirs, &spec.id).await;
    }
    restored
}

async fn pause(up: Up, dirs: &Dirs, template: &Arc<Template>) -> Result<Waiting, SandboxError> {
    let Up { launch, channel, watched, known } = up;
    drop(channel);
    let (dirs, looked_in) = (dirs.clone(), dirs.clone());
    let process = blocking(move || {
        connect::pause(&looked_in)?;
        dirs::read::<ProcessRecord>(&looked_in.process())
    });
    let failed = |what: &str| SandboxError::step("restore a microVM ahead of its pod", what);
    let process = process.await?.ok_or_else(|| failed("its process is not recorded"))?;
    let launch = Arc::into_inner(launch).ok_or_else(|| failed("its launch has not ended"))?;
    let netns = launch.netns.ok_or_else(|| failed("it has no network namespace"))?;
    let (id, cgroup, template) = (launch.spec.id, launch.cgroup, Arc::clone(template));
    Ok(Waiting { id, dirs, cgroup, template, netns, process, watched, known })
}

/// Ends microVMs that no pod will get.
pub(crate) async fn remove(shared: &Arc<Shared>, vms: Vec<Waiting>) {
    for vm in vms {
        let _lock = shared.lock(&vm.id).await;
        unowned::remove(shared, &vm.dirs, &vm.id).await;
    }
}

//! Gives back what a pod has, whatever state it is in: running, half launched, half removed, or from before a reboot.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::cgroup::PodCgroup;
use crate::cni::{self, Attachment};
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError, blocking};
use crate::netns;
use crate::runtime::Shared;
use crate::share;
use crate::spec::PodSpec;

/// Ends and frees pod `id`: `shutdown` first if it has to end politely, beside which CNI takes it off its network (a pod that ends has no
/// use for it, and the plugins take longer than anything else). Files stay. Idempotent; the caller holds the pod's lock.
pub(crate) async fn free(
    shared: &Arc<Shared>,
    dirs: &Dirs,
    id: &str,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SandboxError> {
    if dirs.run.exists() {
        fs::write(dirs.stopping(), "").doing(|| format!("write {}", dirs.stopping().display()))?;
    }
    let end = async {
        shutdown.await;
        end(shared, dirs, id).await
    };
    let (ended, detached) = tokio::join!(end, detach(shared, dirs));
    // What runs may use the rest, and plugins need the namespace: nothing more can be freed after a failure.
    ended?;
    detached?;
    let dirs = dirs.clone();
    blocking(move || {
        share::unmount_below(&dirs.run)?;
        netns::remove(&dirs.netns())?;
        remove_file(&dirs.disk())?;
        dirs::delete(&dirs.containers())
    })
    .await
}

/// [`free`] without mercy, and the files too.
pub(crate) async fn remove(shared: &Arc<Shared>, dirs: &Dirs, id: &str) -> Result<(), SandboxError> {
    free(shared, dirs, id, async {}).await?;
    let dirs = dirs.clone();
    blocking(move || {
        dirs::delete(&dirs.state)?;
        dirs::delete(&dirs.run)
    })
    .await
}

/// Kills every process of the pod.
async fn end(shared: &Arc<Shared>, dirs: &Dirs, id: &str) -> Result<(), SandboxError> {
    // Without a specification the launch did not get as far as processes, or the node was rebooted since.
    let Some(spec) = dirs::read::<PodSpec>(&dirs.spec())? else { return Ok(()) };
    let cgroup = PodCgroup::new(&shared.config, &spec.cgroup_parent, id)?;
    blocking(move || cgroup.destroy()).await
}

/// Takes the pod off its network.
async fn detach(shared: &Arc<Shared>, dirs: &Dirs) -> Result<(), SandboxError> {
    let Some(attachment) = dirs::read::<Attachment>(&dirs.network())? else { return Ok(()) };
    if !attachment.complete {
        let container = attachment.container.clone();
        blocking(move || {
            cni::strays::kill(&container);
            Ok(())
        })
        .await?;
    }
    let netns = dirs.netns();
    let there = netns::is_mounted(&netns);
    match attachment.del(&shared.config.cni, there.then_some(&*netns)).await {
        // After a reboot the interface is gone whatever plugins say, and an ADD that did not succeed may never be undone by
        // plugins that cannot work at all. They were asked for their leases and rules.
        Err(error) if !there || !attachment.complete => {
            tracing::warn!(pod = %attachment.container, error = %chain(&error), "a plugin failed to undo what was hardly done");
        }
        other => other?,
    }
    remove_file(&dirs.network())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn remove_file(path: &std::path::Path) -> Result<(), SandboxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing(|| format!("delete {}", path.display())),
        _ => Ok(()),
    }
}

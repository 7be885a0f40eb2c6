//! Gives back what a pod has, whatever state it is in: running, half launched, half removed, or from before a reboot.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use crate::cgroup::PodCgroup;
use crate::cni::{self, Attachment, NetworkList};
use crate::dirs::{self, Dirs};
use crate::error::{Doing, SandboxError, blocking};
use crate::netns;
use crate::quota;
use crate::runtime::Shared;
use crate::share;
use crate::spec::PodSpec;

/// Ends and frees pod `id`: `shutdown` first if it has to end politely, beside which CNI takes it off its network (a pod that ends has no
/// use for it, and the plugins take longer than anything else). `gone` is called when all its processes have ended, which does not wait
/// for plugins. Files stay. Idempotent; the caller holds the pod's lock.
///
/// # Errors
/// [`SandboxError::Attached`]: its processes have ended, and CNI failed to take it off its network.
pub(crate) async fn free(
    shared: &Arc<Shared>,
    dirs: &Dirs,
    id: &str,
    shutdown: impl Future<Output = ()>,
    gone: impl FnOnce(),
) -> Result<(), SandboxError> {
    say_stopping(dirs).await?;
    let lifted = dirs.clone();
    blocking(move || {
        quota::put_back(&lifted);
        Ok(())
    })
    .await?;
    let end = async {
        shutdown.await;
        end(shared, dirs, id).await.map(|()| gone())
    };
    let (ended, detached) = tokio::join!(end, detach(shared, dirs, id));
    // What runs may use the rest, and plugins need the namespace: nothing more can be freed after a failure.
    ended?;
    detached.map_err(|cause| SandboxError::Attached(Box::new(cause)))?;
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
    free(shared, dirs, id, async {}, || {}).await?;
    let dirs = dirs.clone();
    blocking(move || {
        dirs::delete(&dirs.state)?;
        dirs::delete(&dirs.run)
    })
    .await
}

/// Kills every process of the pod.
async fn end(shared: &Arc<Shared>, dirs: &Dirs, id: &str) -> Result<(), SandboxError> {
    let (shared, dirs, id) = (Arc::clone(shared), dirs.clone(), id.to_owned());
    blocking(move || {
        // Without a specification the launch did not get as far as processes, or the node was rebooted since.
        let Some(spec) = dirs::read::<PodSpec>(&dirs.spec())? else { return Ok(()) };
        PodCgroup::new(&shared.config, &spec.cgroup_parent, &id)?.destroy()
    })
    .await
}

/// Marks that the pod's end was asked for. A disk that is full costs the mark, not the end.
async fn say_stopping(dirs: &Dirs) -> Result<(), SandboxError> {
    let (run, stopping) = (dirs.run.clone(), dirs.stopping());
    blocking(move || {
        write_mark(&run, &stopping);
        Ok(())
    })
    .await
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn write_mark(run: &Path, stopping: &Path) {
    if run.exists()
        && let Err(error) = fs::write(stopping, "")
    {
        tracing::warn!(path = %stopping.display(), %error, "cannot mark that the pod is being stopped");
    }
}

/// What CNI is to be asked to undo; nothing if it was asked for nothing, or has undone it.
async fn attachment(shared: &Arc<Shared>, dirs: &Dirs, id: &str) -> Result<Option<Attachment>, SandboxError> {
    let (shared, dirs, id) = (Arc::clone(shared), dirs.clone(), id.to_owned());
    blocking(move || {
        let (answers, lasting) = (dirs::read(&dirs.answers()), dirs::read(&dirs.network()));
        let error = match (answers, lasting) {
            (Ok(Some(attachment)), _) | (_, Ok(Some(attachment))) => return Ok(Some(attachment)),
            (Ok(None), Ok(None)) => return Ok(None),
            (Err(error), _) | (_, Err(error)) => error,
        };
        // Plugins find what a pod has by its id: what was in the record makes that surer, and is not needed.
        tracing::error!(
            pod = id,
            error = error.chain(),
            "the network's record cannot be read: plugins are asked all the same"
        );
        let spec = dirs::read::<PodSpec>(&dirs.spec()).ok().flatten();
        let network = spec.as_ref().and_then(|spec| spec.network.clone()).unwrap_or_default();
        let cgroup = spec.as_ref().map(|spec| PodCgroup::new(&shared.config, &spec.cgroup_parent, &id)).transpose()?;
        let list = NetworkList::load(&shared.config.cni).doing(|| "use the pod network".into());
        let made = list.and_then(|list| {
            Attachment::new(list, &id, &network, "", cgroup.as_ref().map_or("", |cgroup| cgroup.name()))
        });
        Ok(made.inspect_err(|error| tracing::error!(pod = id, error = error.chain(), "and cannot be asked")).ok())
    })
    .await
}

/// Takes the pod off its network.
async fn detach(shared: &Arc<Shared>, dirs: &Dirs, id: &str) -> Result<(), SandboxError> {
    if let Some(attachment) = attachment(shared, dirs, id).await? {
        if !attachment.complete {
            let container = attachment.container.clone();
            blocking(move || {
                cni::strays::kill(&container);
                Ok(())
            })
            .await?;
        }
        let looked_in = dirs.clone();
        let (netns, there) = blocking(move || {
            let netns = looked_in.netns();
            let there = netns::is_mounted(&netns);
            Ok((netns, there))
        })
        .await?;
        match attachment.del(&shared.config.cni, there.then_some(&*netns)).await {
            // After a reboot the interface is gone whatever plugins say, and an ADD that did not succeed may never be undone by
            // plugins that cannot work at all. They were asked for their leases and rules.
            Err(error) if !there || !attachment.complete => {
                tracing::warn!(pod = %attachment.container, error = error.chain(), "a plugin failed to undo what was hardly done");
            }
            other => other?,
        }
    }
    let dirs = dirs.clone();
    blocking(move || {
        // In this order: without the lasting one nobody asks again.
        remove_file(&dirs.answers())?;
        remove_file(&dirs.network())
    })
    .await
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn remove_file(path: &Path) -> Result<(), SandboxError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing(|| format!("delete {}", path.display())),
        _ => Ok(()),
    }
}

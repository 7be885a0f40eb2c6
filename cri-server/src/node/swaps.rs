//! Volumes of vm pods that the kubelet swaps as a whole: ConfigMaps, Secrets, projected volumes.
//!
//! Their content is what the file server shows, at once. What a guest's kernel cannot know is that it changed, so each change of a
//! volume's `..data` link is told to the agent, which tells those who watch the volume (inotify).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::agent::VolumeSwappedRequest;
use cofferdam_sandbox::{Kind, Watch, Watches};
use rustix::fs::inotify::WatchFlags;
use tokio::task::{JoinSet, spawn_blocking};

use super::agent::QUICK;
use super::{Container, Node, lock};
use crate::error::{CriError, message};

/// What the kubelet renames over to swap a volume.
const DATA: &str = "..data";
/// How long the removal of the old version may take before the change is told without it.
const SETTLES: Duration = Duration::from_secs(2);

/// Pause before a change without an answer is told again.
const RETRY: Duration = Duration::from_secs(2);

/// A volume of a container, and the version of it that the agent knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Swapped {
    pub(crate) destination: String,
    pub(crate) host_path: PathBuf,
    /// Empty: nobody knows which.
    pub(crate) link: String,
}

/// Where the link of a volume points that is swapped as the kubelet does it; nothing for other volumes. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
pub(crate) fn data_link(volume: &Path) -> Option<String> {
    let target = std::fs::read_link(volume.join(DATA)).ok()?;
    let name = target.file_name().filter(|name| *name == target.as_os_str())?;
    name.to_str().filter(|name| name.len() <= 255).map(str::to_owned)
}

impl Container {
    /// Follows these volumes from now on, until [`Container::follow_no_volumes`].
    pub(crate) fn follow_volumes(self: &Arc<Self>, node: &Arc<Node>, volumes: Vec<Swapped>) {
        let mut followers = lock(&self.followers);
        for volume in volumes {
            followers.spawn(follow(node.clone(), self.clone(), volume));
        }
    }

    /// As [`Container::follow_volumes`], for a container that an earlier daemon made.
    pub(super) fn follow_volumes_again(self: &Arc<Self>, node: &Arc<Node>) {
        if self.pod.with(|r| r.kind) != Kind::Vm {
            return;
        }
        let of_node = |m: &&crate::records::MountRecord| m.readonly && m.image.is_none();
        let volumes = self.with(|r| {
            r.mounts
                .iter()
                .filter(of_node)
                .map(|m| Swapped {
                    destination: m.container_path.clone(),
                    host_path: PathBuf::from(&m.host_path),
                    link: String::new(),
                })
                .collect()
        });
        self.follow_volumes(node, volumes);
    }

    pub(super) fn follow_no_volumes(&self) {
        *lock(&self.followers) = JoinSet::new();
    }
}

async fn follow(node: Arc<Node>, container: Arc<Container>, volume: Swapped) {
    let (watches, host_path) = (node.runtime.watches().clone(), volume.host_path.clone());
    let begun = spawn_blocking(move || begin(&watches, &host_path)).await;
    match begun {
        Ok(Ok(Some((source, watch)))) => {
            let tell = |link: String| {
                let (container, destination) = (container.clone(), volume.destination.clone());
                async move { tell(&container, &destination, &link).await }
            };
            // A pod that ends has nobody to be told.
            let ended = || container.pod.stopping.is_cancelled() || container.pod.sandbox().is_err();
            tell_changes(tell, ended, volume.link.clone(), &source, &watch).await;
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            tracing::warn!(container = %container.id, volume = %volume.host_path.display(), %error, "volume not watched for changes");
        }
        Err(_) => {}
    }
}

/// Watches a volume that is swapped. Blocks.
#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn begin(watches: &Watches, host_path: &Path) -> std::io::Result<Option<(PathBuf, Watch)>> {
    let source = host_path.canonicalize()?;
    if data_link(&source).is_none() {
        return Ok(None);
    }
    let watch = watches.watch(&source, WatchFlags::MOVED_TO | WatchFlags::CREATE | WatchFlags::DELETE)?;
    Ok(Some((source, watch)))
}

/// Tells of each version after `known`, until the volume is gone or the pod has `ended`. What got no answer is told again: the agent may
/// not have heard of it, and there may never be a next change.
async fn tell_changes<F: Future<Output = Result<(), CriError>>>(
    tell: impl Fn(String) -> F,
    ended: impl Fn() -> bool,
    mut known: String,
    source: &Path,
    watch: &Watch,
) {
    loop {
        if read(source).await.is_some_and(|link| link != known) {
            settle(&source.join(&known), watch).await;
            // Once more: what changed meanwhile is not announced again.
            let Some(link) = read(source).await else { continue };
            match tell(link.clone()).await {
                Ok(()) => known = link,
                Err(_) if ended() => return,
                Err(error) => {
                    let again = error.is_timeout() || !error.is_agents_word();
                    let error = message(&error);
                    tracing::warn!(volume = %source.display(), again, error, "change of a volume not told");
                    if again {
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
            }
        }
        if !watch.changed().await {
            return;
        }
    }
}

async fn read(source: &Path) -> Option<String> {
    let source = source.to_owned();
    spawn_blocking(move || data_link(&source)).await.ok().flatten()
}

/// Waits until the old version is deleted, which the kubelet does right after it moved the link: the agent tells of both.
async fn settle(old: &Path, watch: &Watch) {
    let gone = async {
        while tokio::fs::symlink_metadata(old).await.is_ok() {
            if !watch.changed().await {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(SETTLES, gone).await;
}

async fn tell(container: &Container, destination: &str, link: &str) -> Result<(), CriError> {
    let request = VolumeSwappedRequest {
        container_id: container.id.clone(),
        destination: destination.to_owned(),
        data_link: link.to_owned(),
    };
    let what = format!("tell container {} of a change in {destination}", container.id);
    container.pod.ask(&what, QUICK, |mut agent| async move { agent.volume_swapped(request).await }).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::error::During;

    #[test]
    fn volumes_of_the_kubelet_are_told_from_others() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join(DATA);
        assert_eq!(data_link(dir.path()), None, "there is none");
        for (target, expected) in [
            ("..2026_11_27_10_00_00.1", Some("..2026_11_27_10_00_00.1")),
            ("..", None),
            (".", None),
            ("/etc", None),
            ("../other", None),
            ("a/b", None),
            ("a/", None),
        ] {
            symlink(target, &link).unwrap();
            assert_eq!(data_link(dir.path()).as_deref(), expected, "{target}");
            fs::remove_file(&link).unwrap();
        }
        fs::create_dir(&link).unwrap();
        assert_eq!(data_link(dir.path()), None, "a folder is no link");
        assert_eq!(data_link(&dir.path().join("file")), None);
    }

    /// The error is what `Pod::ask` makes of a time-out; the volume does not change again.
    #[tokio::test]
    async fn a_change_without_an_answer_is_told_again_and_a_refused_one_is_not() {
        use std::cell::RefCell;
        let dir = tempfile::tempdir().unwrap();
        symlink("..1", dir.path().join(DATA)).unwrap();
        let (source, watch) = begin(&Watches::default(), dir.path()).unwrap().unwrap();
        let slow = || Err(CriError::TimedOut("no answer in 30 s".into())).during(|| "tell of a change".into());
        let refused =
            || Err(CriError::from(tonic::Status::invalid_argument("no such volume"))).during(|| "tell".into());
        let (answers, told) = (RefCell::new(vec![Ok(()), slow()]), RefCell::new(Vec::new()));
        let tell = |link: String| {
            told.borrow_mut().push(link);
            std::future::ready(answers.borrow_mut().pop().unwrap_or_else(refused))
        };
        let following = tell_changes(tell, || false, String::new(), &source, &watch);
        let next = async {
            while told.borrow().len() < 2 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            symlink("..2", dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join(DATA)).unwrap();
            while told.borrow().len() < 3 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(RETRY * 2).await;
        };
        tokio::select! {
            () = following => panic!("the volume is still there"),
            () = next => {}
        }
        // A refused one is told again with the next event of the folder alone; the swap above makes a few.
        let told = told.borrow();
        assert!(told[..3] == ["..1", "..1", "..2"] && told.len() < 6, "{told:?}");
    }

    #[tokio::test]
    async fn a_change_settles_when_the_old_version_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..1")).unwrap();
        symlink("..1", dir.path().join(DATA)).unwrap();
        let watches = Watches::default();
        let (source, watch) = begin(&watches, dir.path()).unwrap().unwrap();
        let waiting = tokio::spawn(async move {
            settle(&source.join("..1"), &watch).await;
            watch
        });
        tokio::task::yield_now().await;
        fs::remove_dir(dir.path().join("..1")).unwrap();
        let watch = waiting.await.unwrap();
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join(DATA)).unwrap();
        assert!(watch.changed().await);
        assert_eq!(read(dir.path()).await.as_deref(), Some("..2"));
        fs::remove_file(dir.path().join(DATA)).unwrap();
        assert!(begin(&watches, dir.path()).unwrap().is_none(), "it is no such volume any more");
    }
}

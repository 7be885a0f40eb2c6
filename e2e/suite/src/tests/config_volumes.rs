//! ConfigMaps and Secrets as the kubelet writes them: programs that watch them hear of each change, in a guest as on the node.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::{Test, with_both};
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("config_volumes_are_heard_of_when_they_change", || with_both(watched))];

const VOLUME: &str = "/run/cofferdam-e2e/config-volume";

/// Writes a version of the volume and swaps it in, as the kubelet's atomic writer does; the old one is deleted.
pub(super) fn write_version(volume: &Path, version: &str) -> Outcome {
    let name = format!("..{version}");
    fs::create_dir_all(volume.join(&name).join("sub")).doing("make a version")?;
    for key in ["key", "sub/key"] {
        fs::write(volume.join(&name).join(key), version).doing("write a key")?;
    }
    let old = fs::read_link(volume.join("..data"));
    symlink(&name, volume.join("..data_tmp")).doing("link the version")?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).doing("swap the version")?;
    match old {
        Ok(old) => fs::remove_dir_all(volume.join(old)).doing("delete the old version"),
        Err(_) => {
            for key in ["key", "sub"] {
                symlink(format!("..data/{key}"), volume.join(key)).doing("link a key")?;
            }
            Ok(())
        }
    }
}

/// Two programs in one pod: one watches the volume, as most do; the other each file, and the next one when it is deleted.
struct Watchers {
    crictl: Crictl,
    folder: String,
    files: String,
}

impl Watchers {
    fn start(crictl: Crictl, pod_id: &str, pod: &Pod) -> Outcome<Self> {
        let run = |name: &str, script: &str| {
            let mounts = json!([{"host_path": VOLUME, "container_path": "/config", "readonly": true}]);
            let own_processes = json!({"security_context": {"namespace_options": {"pid": 1}}});
            let container = Container::shell(name, script).with("mounts", mounts).with("linux", own_processes);
            crictl.run_container(pod_id, pod, &container)
        };
        let folder = run("folder", "exec inotifyd - /config:y")?;
        let files = run("files", "while :; do inotifyd - /config/key:D /config/sub/key:D; done")?;
        let watchers = Self { crictl, folder, files };
        watchers.watch()?;
        Ok(watchers)
    }

    fn exec(&self, container: &str, script: &str) -> Outcome<String> {
        self.crictl.run(&["exec", "--sync", container, "sh", "-c", script])
    }

    /// Waits until both watch what there is now.
    fn watch(&self) -> Outcome {
        let count = "cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c '^inotify '; true";
        for (container, wanted) in [(&self.folder, 1), (&self.files, 2)] {
            let mut seen = String::new();
            let watches = wait_for(&format!("{wanted} watches"), || {
                seen = self.exec(container, count)?;
                Ok(seen.trim() == wanted.to_string())
            });
            watches.map_err(|f| Failure(format!("{f}: there are {seen:?}")))?;
        }
        Ok(())
    }

    /// Waits until both were told of the `number`th change, and looks whether what they find then is `version`.
    fn heard(&self, number: usize, version: &str) -> Outcome {
        let told = |container: &str, line: &str| -> Outcome<usize> {
            Ok(self.crictl.log(container)?.lines().filter(|l| *l == line).count())
        };
        wait_for(&format!("change {number} to be told"), || Ok(told(&self.folder, "y\t/config\t..data")? >= number))?;
        for key in ["key", "sub/key"] {
            let line = format!("D\t/config/{key}");
            wait_for(&format!("the end of {key} {number} to be told"), || Ok(told(&self.files, &line)? >= number))?;
            for container in [&self.folder, &self.files] {
                let found = self.exec(container, &format!("cat /config/{key}"))?;
                ensure!(found == version, "after change {number}, {key} holds {found:?}, not {version:?}");
            }
        }
        self.watch()?;
        let all = told(&self.folder, "y\t/config\t..data")?;
        ensure!(all == number, "{number} changes were told {all} times");
        Ok(())
    }
}

/// The daemon watches all that it watches with one inotify instance: root may have 128 of them, and a node has more volumes.
fn one_instance() -> Outcome {
    let folder = format!("/proc/{}/fd", daemon::pid()?);
    let links = fs::read_dir(&folder).doing(&format!("read {folder}"))?;
    let inotify = |fd: &fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify");
    let watching = links.flatten().filter(inotify).count();
    ensure!(watching == 1, "the daemon watches with {watching} inotify instances");
    Ok(())
}

fn watched(handler: &'static str) -> Outcome {
    let volume = Path::new(VOLUME);
    let _ = fs::remove_dir_all(volume);
    write_version(volume, "one")?;
    let crictl = Crictl::default();
    let pod = Pod::new("config-volumes");
    let id = crictl.run_pod(handler, &pod)?;
    let watchers = Watchers::start(Crictl::default(), &id, &pod)?;
    one_instance()?;
    write_version(volume, "two")?;
    watchers.heard(1, "two")?;
    // A daemon that was away tells of what it missed.
    daemon::kill()?;
    write_version(volume, "three")?;
    daemon::start()?;
    watchers.heard(2, "three")?;
    write_version(volume, "four")?;
    watchers.heard(3, "four")?;
    crictl.remove_pod(&id)?;
    fs::remove_dir_all(volume).doing("delete the volume")
}

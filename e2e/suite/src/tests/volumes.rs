//! Volumes, the same on both kinds of pods but where a kernel of one's own makes a difference.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::config_volumes::write_version;
use super::shell::{prints, sh};
use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{self, BUSYBOX, Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};
use crate::processes;

pub(super) const TESTS: &[Test] =
    &[("volumes", || with_both(|handler| in_one_pod(handler, &Pod::new("volumes"), CHECKS)))];

const CHECKS: &[Check] = &[
    ("volumes_keep_their_access_and_follow_the_node", access),
    ("volumes_in_memory_are_the_guests", memory),
    ("volumes_of_images", images),
    ("volumes_that_cannot_be_are_refused", refusals),
];

const FOLDER: &str = "/run/cofferdam-e2e/volumes";

/// A folder of the node with mounts in it; both go away with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Self> {
        let folder = Self(FOLDER.into());
        folder.clear();
        fs::create_dir_all(&folder.0).doing("make the folder of volumes")?;
        Ok(folder)
    }

    fn dir(&self, name: &str) -> Outcome<String> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).doing(&format!("make {name}"))?;
        Ok(path.display().to_string())
    }

    fn clear(&self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let points: Vec<&str> = points.filter(|point| Path::new(point).starts_with(&self.0)).collect();
        for point in points.iter().rev() {
            let _ = Command::new("umount").args(["-l", point]).status();
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.clear();
    }
}

fn mount(args: &[&str]) -> Outcome {
    let mut command = Command::new("mount");
    command.args(args);
    let done = crictl::run(command, "mount")?;
    ensure!(done.code == 0, "mount {}: {}", args.join(" "), done.stderr);
    Ok(())
}

/// A mount of the node, with further fields.
fn volume(host: &str, container: &str, more: Value) -> Value {
    let mut mount = json!({"host_path": host, "container_path": container});
    for (key, value) in more.as_object().into_iter().flatten() {
        mount[key] = value.clone();
    }
    mount
}

fn sleeper(name: &str, mounts: &[Value]) -> Container {
    Container::shell(name, "exec sleep 100000").with("mounts", json!(mounts))
}

fn read_only(container: &str, path: &str) -> Outcome {
    // crictl prints nothing of a command that fails.
    let got = sh(container, &format!("touch {path} 2>&1; true"))?;
    ensure!(got.stdout.contains("Read-only file system"), "{path} can be written: {got:?}");
    Ok(())
}

fn access(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let folder = Folder::new()?;
    let (plain, shared, secret) = (folder.dir("plain")?, folder.dir("shared")?, folder.dir("secret")?);
    mount(&["-t", "tmpfs", "tmpfs", &folder.dir("plain/tmpfs")?])?;
    mount(&["--bind", &shared, &shared])?;
    mount(&["--make-shared", &shared])?;
    let late = folder.dir("shared/late")?;
    write_version(Path::new(&secret), "one")?;
    let file = format!("{FOLDER}/file");
    fs::write(&file, "before").doing("write a file")?;
    symlink(&plain, format!("{FOLDER}/link")).doing("make a link")?;

    let crictl = Crictl::default();
    let mounts = [
        volume(&plain, "/ro", json!({"readonly": true})),
        volume(&plain, "/rro", json!({"readonly": true, "recursive_read_only": true})),
        volume(&format!("{FOLDER}/link"), "/linked", json!({})),
        volume(&shared, "/follows", json!({"propagation": 1})),
        volume(&shared, "/private", json!({})),
        volume(&secret, "/secret", json!({"readonly": true})),
        volume(&file, "/etc/one/file", json!({})),
        volume(&format!("{FOLDER}/made"), "/made", json!({})),
    ];
    let container = crictl.run_container(id, pod, &sleeper("volumes", &mounts))?;

    read_only(&container, "/ro/x")?;
    read_only(&container, "/rro/x")?;
    read_only(&container, "/rro/tmpfs/x")?;
    read_only(&container, "/secret/x")?;
    prints(&container, "touch /ro/tmpfs/below && echo done", "done")?;
    ensure!(Path::new(&plain).join("tmpfs/below").exists(), "what was written below a read-only volume is not there");
    prints(&container, "echo a > /linked/a; echo b > /made/b; echo -n after > /etc/one/file; cat /ro/a", "a")?;
    for (path, wanted) in [("plain/a", "a\n"), ("made/b", "b\n"), ("file", "after")] {
        let got = fs::read_to_string(folder.0.join(path)).doing(&format!("read {path}"))?;
        ensure!(got == wanted, "{path} holds {got:?}, not {wanted:?}");
    }

    if handler == "vm" {
        monitor_sees_its_share_alone()?;
    }
    prints(&container, "ls /follows/late /private/late | grep -c flag; true", "0")?;
    mount(&["-t", "tmpfs", "tmpfs", &late])?;
    fs::write(format!("{late}/flag"), "").doing("write the flag")?;
    prints(&container, "ls /follows/late", "flag")?;
    prints(&container, "ls /private/late", "")?;

    prints(&container, "cat /secret/key", "one")?;
    write_version(Path::new(&secret), "two")?;
    let swapped = Instant::now();
    wait_for("the new secret", || Ok(sh(&container, "cat /secret/key")?.stdout.trim() == "two"))?;
    ensure!(swapped.elapsed() < Duration::from_secs(20), "the new secret took {:?}", swapped.elapsed());

    let status = crictl.json(&["inspect", "-o", "json", &container])?;
    let echoed = status.pointer("/status/mounts").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(echoed == mounts.len(), "the status has {echoed} of {} mounts", mounts.len());
    Ok(())
}

/// The only monitor is alone in a PID namespace, and of the node's files it sees the layers and
/// volumes of its pod.
fn monitor_sees_its_share_alone() -> Outcome {
    let running = processes::heads("cofferdam-vmm");
    let [monitor] = running[..] else { return Err(format!("{} monitors run", running.len()).into()) };
    let read = |name: &str| fs::read_to_string(format!("/proc/{monitor}/{name}")).doing(&format!("read its {name}"));
    let ids = read("status")?.lines().find_map(|line| line.strip_prefix("NSpid:").map(str::to_owned));
    let ids = ids.unwrap_or_default();
    ensure!(ids.split_whitespace().eq([monitor.to_string().as_str(), "1"]), "the monitor's process ids are {ids}");
    let mounts = read("mountinfo")?;
    let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let given = |point: &str| point == "/" || point.starts_with("/volumes/") || point.contains("/layer");
    ensure!(points.len() > 8 && points.iter().all(|point| given(point)), "the monitor sees {mounts}");
    let node = fs::read_to_string("/proc/self/mountinfo").doing("read the node's mounts")?;
    ensure!(!node.contains("/run/cofferdam/pods/"), "a pod's mounts are the node's: {node}");
    Ok(())
}

/// As the kubelet makes an emptyDir of medium Memory.
fn memory(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let folder = Folder::new()?;
    let cache = folder.dir("kubernetes.io~empty-dir/cache")?;
    mount(&["-t", "tmpfs", "-o", "size=1m,mode=2770,gid=1234", "tmpfs", &cache])?;
    let part = folder.dir("kubernetes.io~empty-dir/cache/part")?;
    let crictl = Crictl::default();
    let first = crictl.run_container(id, pod, &sleeper("first", &[volume(&cache, "/cache", json!({}))]))?;
    let mounts = [volume(&part, "/part", json!({})), volume(&cache, "/all", json!({"readonly": true}))];
    let second = crictl.run_container(id, pod, &sleeper("second", &mounts))?;
    prints(&first, "stat -c %a:%g /cache; df -k /cache | tail -1 | awk '{print $2}'", "2770:1234\n1024")?;
    prints(&first, "echo shared > /cache/part/file && echo done", "done")?;
    prints(&second, "cat /part/file /all/part/file", "shared\nshared")?;
    read_only(&second, "/all/x")?;
    prints(
        &first,
        "head -c 2000000 /dev/zero > /cache/big 2>/dev/null; test $(stat -c %s /cache/big) -lt 1048577 && echo full",
        "full",
    )?;
    let on_node = Path::new(&part).join("file").exists();
    ensure!(
        on_node == (handler == "host"),
        "with handler {handler}, a file of a memory volume is on the node: {on_node}"
    );
    Ok(())
}

fn image_volume(path: &str, more: Value) -> Value {
    let image = json!({"image": BUSYBOX, "user_specified_image": "my/tools:1"});
    let mut mount = json!({"container_path": path, "readonly": true, "image": image});
    for (key, value) in more.as_object().into_iter().flatten() {
        mount[key] = value.clone();
    }
    mount
}

fn images(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let mounts = [image_volume("/tools", json!({})), image_volume("/only", json!({"image_sub_path": "bin"}))];
    let container = crictl.run_container(id, pod, &sleeper("image-volumes", &mounts))?;
    prints(&container, "/tools/bin/busybox echo runs; /only/busybox echo too", "runs\ntoo")?;
    read_only(&container, "/tools/x")?;
    read_only(&container, "/only/x")?;
    let status = crictl.json(&["inspect", "-o", "json", &container])?;
    let image = status.pointer("/status/imageId").or_else(|| status.pointer("/status/imageRef"));
    for mount in status.pointer("/status/mounts").and_then(Value::as_array).into_iter().flatten() {
        let image_ref = mount.pointer("/image/imageRef");
        ensure!(image.is_some() && image_ref == image, "the image of a volume is told as {image_ref:?}, not {image:?}");
    }
    for (more, wanted) in [
        (json!({"image_sub_path": "not/there"}), "not/there"),
        (json!({"image_sub_path": "../bin"}), "does not lie in the image"),
        (json!({"readonly": false}), "read-only"),
        (json!({"image": {"image": "registry.k8s.io/cofferdam/nowhere:1"}}), "nowhere"),
    ] {
        let bad = sleeper("bad-image-volume", &[image_volume("/bad", more)]);
        crictl.refused(&["create", id, &bad.file()?, &pod.file()?], &[wanted])?;
    }
    Ok(())
}

fn refusals(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let folder = Folder::new()?;
    let crictl = Crictl::default();
    let sockets = folder.dir("sockets")?;
    let socket = format!("{sockets}/socket");
    let _listener = UnixListener::bind(&socket).doing("listen on a socket")?;
    let mut bad = vec![
        (volume(&sockets, "/v", json!({"recursive_read_only": true})), "readonly"),
        (volume(&sockets, "/v", json!({"readonly": true, "recursive_read_only": true, "propagation": 1})), "private"),
    ];
    if handler == "vm" {
        bad.push((volume(&socket, "/v", json!({})), "is a unix socket"));
        bad.push((volume("/dev/null", "/v", json!({})), "is a device"));
        bad.push((volume(&sockets, "/v", json!({"propagation": 2})), "needs the runtime handler"));
    }
    for (mount, wanted) in bad {
        let container = sleeper("refused", &[mount]);
        crictl.refused(&["create", id, &container.file()?, &pod.file()?], &[wanted])?;
    }
    let mut good = vec![volume(&sockets, "/sockets", json!({}))];
    if handler == "host" {
        good.push(volume(&socket, "/run/one.sock", json!({})));
    }
    let container = crictl.run_container(id, pod, &sleeper("sockets", &good))?;
    prints(&container, "ls /sockets", "socket")?;
    Ok(())
}

//! Raw block volumes: a block device of the node for a container, as the kubelet asks for it.
//!
//! What a container does with its device is the same in both kinds of pods. In a microVM it is a
//! disk that comes while the guest runs, and goes with the last container that has it.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::shell::{prints, sh};
use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{self, Container, Crictl, Pod, wait_for};
use crate::daemon;
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("block_volumes", || with_both(|handler| in_one_pod(handler, &Pod::new("blocks"), CHECKS))),
    ("block_volumes_of_privileged_containers", privileged),
    ("block_volumes_go_with_their_pod", gone_with_the_pod),
];

const CHECKS: &[Check] =
    &[("block_volumes_are_shared_and_outlive_the_daemon", shared), ("block_volumes_have_a_bound", refusals)];

const FOLDER: &str = "/run/cofferdam-e2e/blocks";
const SIZE: u64 = 8 << 20;

/// A loop device of the node over a file of zeros, and a link to it as the kubelet makes one.
struct Loop {
    file: PathBuf,
    device: String,
    link: PathBuf,
}

impl Loop {
    fn new(name: &str) -> Outcome<Self> {
        fs::create_dir_all(FOLDER).doing(&format!("make {FOLDER}"))?;
        let _ = Command::new("modprobe").arg("loop").status();
        let file = PathBuf::from(FOLDER).join(name);
        let link = file.with_extension("link");
        let _ = fs::remove_file(&link);
        fs::File::create(&file).and_then(|f| f.set_len(SIZE)).doing("make the file of a loop device")?;
        let device = losetup(&["--find", "--show", &file.display().to_string()])?;
        let made = Self { file, device, link };
        symlink(&made.device, &made.link).doing("make a link to a loop device")?;
        Ok(made)
    }

    /// What the node's file has at `offset`.
    fn text(&self, offset: u64, length: usize) -> Outcome<String> {
        let mut bytes = vec![0; length];
        let file = fs::File::open(&self.file).doing("open the file of a loop device")?;
        file.read_exact_at(&mut bytes, offset).doing("read the file of a loop device")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A device of a container.
    fn at(&self, path: &str, permissions: &str) -> Value {
        json!({"host_path": self.link, "container_path": path, "permissions": permissions})
    }

    /// Gives it up; it goes when nobody has it open any more.
    fn is_let_go(&self) -> Outcome {
        losetup(&["--detach", &self.device])?;
        let file = self.file.display().to_string();
        wait_for("the loop device to be closed", || Ok(losetup(&["--associated", &file])?.is_empty()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Fails when it is gone already.
        let _ = Command::new("losetup").args(["--detach", &self.device]).output();
        for path in [&self.file, &self.link] {
            let _ = fs::remove_file(path);
        }
    }
}

fn losetup(args: &[&str]) -> Outcome<String> {
    let mut command = Command::new("losetup");
    command.args(args);
    let done = crictl::run(command, "losetup")?;
    ensure!(done.code == 0, "losetup {}: {}", args.join(" "), done.stderr);
    Ok(done.stdout.trim().to_owned())
}

fn sleeper(name: &str, devices: &[Value]) -> Container {
    Container::shell(name, "exec sleep 100000").with("devices", json!(devices))
}

/// Writes `text` to a device of a container, down to the node, at a multiple of 512 bytes.
fn write(container: &str, path: &str, block: u64, text: &str) -> Outcome {
    let script = format!(
        "printf {text} | dd of={path} bs=512 seek={block} conv=notrunc,fsync 2>/dev/null && echo written || echo refused"
    );
    prints(container, &script, "written")
}

fn cannot_write(container: &str, path: &str) -> Outcome {
    let script = format!("(printf no | dd of={path} conv=notrunc,fsync) 2>/dev/null && echo written || echo refused");
    prints(container, &script, "refused")
}

/// How many disks a guest has, as one of its containers sees them.
fn disks(container: &str) -> Outcome<usize> {
    let got = sh(container, "ls /sys/block")?;
    Ok(got.stdout.split_whitespace().filter(|name| name.starts_with("vd")).count())
}

fn shared(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let (crictl, volume) = (Crictl::default(), Loop::new("shared")?);
    let run = |name: &str, path: &str, permissions: &str| {
        crictl.run_container(id, pod, &sleeper(name, &[volume.at(path, permissions)]))
    };
    // In a guest: its own disk beside those of the containers.
    let expect = |container: &str, wanted: usize| -> Outcome {
        let there = if handler == "vm" { disks(container)? } else { wanted };
        ensure!(there == wanted, "the guest has {there} disks, not {wanted}");
        Ok(())
    };
    let first = run("first", "/dev/xvda", "mrw")?;
    prints(&first, "stat -c %F /dev/xvda; blockdev --getsize64 /dev/xvda", &format!("block special file\n{SIZE}"))?;
    write(&first, "/dev/xvda", 0, "by-the-first")?;
    let on_node = volume.text(0, 12)?;
    ensure!(on_node == "by-the-first", "the node's file begins with {on_node:?}");
    if handler == "vm" {
        let own = "mknod /tmp/own b $((0x$(stat -c %t /dev/xvda))) 0; (: < /tmp/own) 2>/dev/null || echo kept out";
        prints(&first, own, "kept out")?;
    }

    let reader = run("reader", "/data/disk", "r")?;
    prints(&reader, "head -c 12 /data/disk", "by-the-first")?;
    cannot_write(&reader, "/data/disk")?;
    expect(&reader, 3)?;

    let third = run("third", "/dev/other", "mrw")?;
    write(&third, "/dev/other", 2, "by-the-third")?;
    prints(&first, "dd if=/dev/xvda bs=512 skip=2 count=1 2>/dev/null | head -c 12", "by-the-third")?;
    expect(&first, 3)?;

    daemon::kill_and_restart()?;
    write(&first, "/dev/xvda", 4, "after-the-kill")?;
    let fourth = run("fourth", "/dev/xvda", "mrw")?;
    prints(&fourth, "dd if=/dev/xvda bs=512 skip=4 count=1 2>/dev/null | head -c 14", "after-the-kill")?;
    expect(&fourth, 3)?;
    for container in [&first, &third] {
        crictl.run(&["rm", container])?;
    }
    prints(&fourth, "dd if=/dev/xvda bs=512 skip=2 count=1 2>/dev/null | head -c 12", "by-the-third")?;
    expect(&reader, 3)?;
    crictl.run(&["rm", &fourth])?;
    expect(&reader, 2)?;
    crictl.run(&["rm", &reader])?;
    let last = crictl.run_container(id, pod, &sleeper("last", &[]))?;
    expect(&last, 1)?;
    let on_node = volume.text(4 * 512, 14)?;
    ensure!(on_node == "after-the-kill", "the node's file has {on_node:?}");
    volume.is_let_go()
}

/// What a microVM cannot have is refused by name, and what had been done for it is undone.
fn refusals(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    if handler == "host" {
        return Ok(());
    }
    let crictl = Crictl::default();
    let volumes = (0..9).map(|number| Loop::new(&format!("many{number}"))).collect::<Outcome<Vec<_>>>()?;
    let devices: Vec<Value> = volumes.iter().zip(0..).map(|(v, n)| v.at(&format!("/dev/many{n}"), "mrw")).collect();
    let device = |path: &str| json!({"host_path": path, "container_path": "/dev/x", "permissions": "mrw"});
    for (devices, wanted) in [
        (vec![device("/dev/null")], ["code = InvalidArgument", "/dev/null", "which can have block devices only"]),
        (vec![device("/dev/none")], ["code = InvalidArgument", "/dev/none", "No such file"]),
        (devices.clone(), ["code = FailedPrecondition", "8 block devices", "can have no more"]),
        (vec![volumes[0].at("/bin/busybox", "mrw")], ["code = InvalidArgument", "/bin/busybox", "something else"]),
    ] {
        let refused = sleeper("refused", &devices);
        crictl.refused(&["create", id, &refused.file()?, &pod.file()?], &wanted)?;
    }
    let all = crictl.run_container(id, pod, &sleeper("all", &devices[..8]))?;
    ensure!(disks(&all)? == 9, "the guest has {} disks, not 9", disks(&all)?);
    for (number, volume) in volumes.iter().take(8).enumerate() {
        let text = format!("disk-{number}");
        write(&all, &format!("/dev/many{number}"), 1, &text)?;
        let on_node = volume.text(512, text.len())?;
        ensure!(on_node == text, "the file of device {number} has {on_node:?}");
    }
    crictl.run(&["rm", &all])?;
    volumes.iter().try_for_each(Loop::is_let_go)
}

/// A privileged container may use all devices of its guest, and yet cannot write to what it was
/// given to read.
fn privileged() -> Outcome {
    let (crictl, volume) = (Crictl::default(), Loop::new("privileged")?);
    let context = json!({"security_context": {"privileged": true}});
    let pod = Pod::new("blocks-privileged").with("linux", context.clone());
    let id = crictl.run_pod("vm", &pod)?;
    // At a name that the guest's own disk has.
    let devices = [volume.at("/dev/vda", "mrw")];
    let writer = crictl.run_container(&id, &pod, &sleeper("writer", &devices).with("linux", context.clone()))?;
    prints(&writer, "blockdev --getsize64 /dev/vda; blockdev --getro /dev/vda", &format!("{SIZE}\n0"))?;
    write(&writer, "/dev/vda", 0, "privileged")?;
    let on_node = volume.text(0, 10)?;
    ensure!(on_node == "privileged", "the node's file begins with {on_node:?}");
    crictl.run(&["rm", &writer])?;

    let reader = sleeper("reader", &[volume.at("/dev/xvdb", "r")]).with("linux", context);
    let reader = crictl.run_container(&id, &pod, &reader)?;
    prints(&reader, "head -c 10 /dev/xvdb; echo; blockdev --getro /dev/xvdb", "privileged\n1")?;
    cannot_write(&reader, "/dev/xvdb")?;
    // Nor after it has told its kernel otherwise.
    let _ = sh(&reader, "blockdev --setrw /dev/xvdb")?;
    cannot_write(&reader, "/dev/xvdb")?;
    let on_node = volume.text(0, 10)?;
    ensure!(on_node == "privileged", "the node's file begins with {on_node:?} after a write to a read-only device");
    crictl.remove_pod(&id)?;
    volume.is_let_go()
}

fn gone_with_the_pod() -> Outcome {
    let (crictl, volume) = (Crictl::default(), Loop::new("pod")?);
    let pod = Pod::new("blocks-gone");
    let id = crictl.run_pod("vm", &pod)?;
    let container = crictl.run_container(&id, &pod, &sleeper("holds", &[volume.at("/dev/xvda", "mrw")]))?;
    write(&container, "/dev/xvda", 0, "kept")?;
    crictl.remove_pod(&id)?;
    volume.is_let_go()
}

//! Volumes of every kind, and updates in running pods.

use super::kubectl::Namespace;
use super::{CLASSES, Cluster, Test};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] =
    &[("volumes_and_their_updates", volumes), ("local_persistent_volume", local), ("block_persistent_volume", block)];

fn volumes(cluster: &Cluster, here: &Namespace) -> Outcome {
    cluster.on_node("mkdir -p /srv/cluster && echo of the node > /srv/cluster/file")?;
    here.run(&["create", "configmap", "settings", "--from-literal=colour=red", "--from-literal=size=3"])?;
    here.run(&["create", "secret", "generic", "password", "--from-literal=word=swordfish"])?;
    for class in CLASSES {
        here.apply(include_str!("manifests/volumes.yaml"), &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.wait_ready(class)?;
        let seen = |script: &str, wanted: &str| -> Outcome {
            let printed = here.sh(class, script)?;
            ensure!(printed.trim() == wanted, "in {class}, {script:?} prints {printed:?}, not {wanted:?}");
            Ok(())
        };
        seen("cat /config/colour /secret/word /node/file", "redswordfishof the node")?;
        seen("cat /one-file; echo; cat /projected/colour /projected/word", "3\nredswordfish")?;
        seen("cat /projected/labels", &format!("app=\"{class}\""))?;
        seen("echo kept > /disk/f && cat /disk/f && df -T /memory | tail -n 1 | awk '{print $2}'", "kept\ntmpfs")?;
        seen("ls /image/bin/busybox", "/image/bin/busybox")?;
        seen("touch /image/new 2>&1 | grep -c Read-only", "1")?;
        seen("echo by sub path > /sub/f && cat /disk/below/f", "by sub path")?;
        seen("stat -c %a /secret/..data/word", "400")?;
        let claims = here.sh(
            class,
            "cut -d. -f2 /var/run/secrets/kubernetes.io/serviceaccount/token | tr _- /+ | base64 -d 2>/dev/null || true",
        )?;
        ensure!(claims.contains(&format!("\"name\":\"{class}\"")), "the token of {class} says {claims}");
    }
    here.run(&["patch", "configmap", "settings", "-p", r#"{"data":{"colour":"blue"}}"#])?;
    here.run(&["patch", "secret", "password", "-p", r#"{"stringData":{"word":"marlin"}}"#])?;
    for class in CLASSES {
        here.wait_sh(
            class,
            "cat /config/colour /secret/word /projected/colour /projected/word",
            "bluemarlinbluemarlin",
        )?;
        let sub_path = here.sh(class, "cat /one-file")?;
        ensure!(sub_path == "3", "a file mounted by subPath in {class} is now {sub_path:?}");
    }
    cluster.on_node("rm -r /srv/cluster").map(drop)
}

/// A PersistentVolume that is a folder of the node outlives the pods that use it.
fn local(cluster: &Cluster, here: &Namespace) -> Outcome {
    cluster.on_node("mkdir -p /srv/local-volume")?;
    here.apply(include_str!("manifests/local-volume.yaml"), &[("NAMESPACE", &here.name)])?;
    for (number, class) in CLASSES.iter().enumerate() {
        here.apply(include_str!("manifests/claimant.yaml"), &[("NAME", class), ("CLASS", class)])?;
        here.wait_ready(class)?;
        let printed = here.sh(class, "echo line >> /data/lines; wc -l < /data/lines")?;
        ensure!(
            printed.trim() == (number + 1).to_string(),
            "the volume has {printed:?} lines after pod {}",
            number + 1
        );
        here.run(&["delete", "pod", class])?;
    }
    here.run(&["delete", "persistentvolumeclaim", "claim"])?;
    here.run(&["delete", "persistentvolume", "local"])?;
    cluster.on_node("rm -r /srv/local-volume").map(drop)
}

/// A PersistentVolume that is a block device of the node: both containers of a pod have it, and the
/// pods of both classes one after the other.
fn block(cluster: &Cluster, here: &Namespace) -> Outcome {
    const FILE: &str = "/srv/block-volume";
    let made = cluster.on_node(&format!("modprobe loop; truncate -s 8M {FILE} && losetup --find --show {FILE}"))?;
    let device = made.trim();
    here.apply(include_str!("manifests/block-volume.yaml"), &[("NAMESPACE", &here.name), ("DEVICE", device)])?;
    for (number, class) in CLASSES.iter().enumerate() {
        here.apply(include_str!("manifests/block-claimant.yaml"), &[("NAME", class), ("CLASS", class)])?;
        here.wait_ready(class)?;
        let seen = |container: &str, script: &str, wanted: &str| -> Outcome {
            let printed = here.run(&["exec", class, "-c", container, "--", "sh", "-c", script])?;
            ensure!(printed.trim() == wanted, "in {class}, {script:?} prints {printed:?}, not {wanted:?}");
            Ok(())
        };
        seen("writer", "stat -c %F /dev/xvda; blockdev --getsize64 /dev/xvda", "block special file\n8388608")?;
        let write =
            format!("printf {class} | dd of=/dev/xvda bs=512 seek={number} conv=notrunc,fsync 2>/dev/null && echo ok");
        seen("writer", &write, "ok")?;
        let read = |block: usize, length: usize| {
            format!("dd if=/data/disk bs=512 skip={block} 2>/dev/null | head -c {length}")
        };
        seen("neighbour", &read(number, class.len()), class)?;
        // What the pod before it wrote.
        seen("neighbour", &read(0, CLASSES[0].len()), CLASSES[0])?;
        let on_node =
            cluster.on_node(&format!("dd if={FILE} bs=512 skip={number} count=1 2>/dev/null | tr -d '\\0'"))?;
        ensure!(on_node == *class, "the node's file has {on_node:?} after the pod {class}");
        here.run(&["delete", "pod", class])?;
    }
    here.run(&["delete", "persistentvolumeclaim", "block"])?;
    here.run(&["delete", "persistentvolume", "block"])?;
    cluster.on_node(&format!("losetup --detach {device}; rm {FILE}")).map(drop)
}

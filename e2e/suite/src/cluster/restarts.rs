//! The kubelet, the daemon and the node end and come back under running pods.

use std::path::Path;
use std::process::Command;

use super::kubectl::{Namespace, wait};
use super::{CLASSES, Cluster, Test, node_is_ready};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("kubelet_and_daemon_restart", restart_programs), ("node_reboots", reboot)];

const DEPLOYMENT: &str = include_str!("manifests/deployment.yaml");

/// Pods of each class.
const REPLICAS: usize = 2;

fn deploy(here: &Namespace) -> Outcome {
    for class in CLASSES {
        let replicas = format!("replicas: {REPLICAS}");
        here.apply(&DEPLOYMENT.replace("replicas: 3", &replicas), &[("NAME", class), ("CLASS", class)])?;
    }
    CLASSES.iter().try_for_each(|class| here.wait_rollout(&format!("deployment/{class}")))
}

/// Name, container and restart count of each pod.
fn lives(here: &Namespace) -> Outcome<String> {
    let template = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}\n{end}";
    here.run(&["get", "pods", "-l", "app", "-o", template])
}

/// Neither restarts a container, and a container that ends meanwhile is reported with its exit
/// code.
fn restart_programs(cluster: &Cluster, here: &Namespace) -> Outcome {
    deploy(here)?;
    let before = lives(here)?;
    for class in CLASSES {
        here.apply(include_str!("manifests/ends.yaml"), &[("NAME", &format!("ends-{class}")), ("CLASS", class)])?;
    }
    CLASSES.iter().try_for_each(|class| here.wait_ready(&format!("ends-{class}")))?;
    CLASSES.iter().try_for_each(|class| here.sh(&format!("ends-{class}"), "touch /tmp/go").map(drop))?;
    cluster.on_node("systemctl kill -s KILL cofferdam; systemctl restart kubelet; systemctl kill -s KILL cofferdam")?;
    for class in CLASSES {
        let pod = format!("pod/ends-{class}");
        here.wait_field(&pod, "/status/phase", "Failed")?;
        let code = here.field(&pod, "/status/containerStatuses/0/state/terminated/exitCode")?;
        ensure!(code == "5", "ends-{class} ended with 5 while the daemon was killed, and {code} is reported");
    }
    wait("the node to be Ready", node_is_ready)?;
    for class in CLASSES {
        ensure!(!here.sh(&format!("deployment/{class}"), "hostname")?.is_empty(), "exec in {class} prints nothing");
    }
    let after = lives(here)?;
    ensure!(before == after, "containers before the restarts:\n{before}and after:\n{after}");
    Ok(())
}

/// After a boot of the node all pods come back.
fn reboot(cluster: &Cluster, here: &Namespace) -> Outcome {
    deploy(here)?;
    let boot = cluster.on_node("cat /proc/sys/kernel/random/boot_id")?;
    // The connection ends with the node.
    let _ = cluster.on_node("systemctl reboot");
    wait("the node to boot again", || {
        Ok(cluster.on_node("cat /proc/sys/kernel/random/boot_id").is_ok_and(|now| now != boot))
    })?;
    let join =
        cluster.node.parent().and_then(Path::parent).ok_or("the node's script has no folder")?.join("cluster/join.sh");
    let joined = Command::new(&join).arg("--again").status().doing("run join.sh --again")?;
    ensure!(joined.success(), "{} --again: {joined}", join.display());
    wait("the node to be Ready after its boot", || {
        Ok(node_is_ready()? && cluster.on_node("systemctl is-active kubelet").is_ok())
    })?;
    for class in CLASSES {
        wait(&format!("the containers of {class} to be started again"), || {
            let template = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
            let counts = here.run(&["get", "pods", "-l", &format!("app={class}"), "-o", template])?;
            let counts: Vec<&str> = counts.split_whitespace().collect();
            Ok(counts.len() == REPLICAS && counts.iter().all(|count| *count != "0"))
        })?;
        here.run(&["wait", "--for=condition=Ready", "--timeout=420s", "pod", "-l", &format!("app={class}")])?;
        ensure!(!here.sh(&format!("deployment/{class}"), "hostname")?.is_empty(), "exec in {class} prints nothing");
    }
    Ok(())
}

//! What the cluster's controllers make of pods: jobs, sidecars, sets of every kind.

use super::kubectl::{Namespace, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("jobs_and_restart_policies", jobs),
    ("sidecars_and_hooks", sidecars),
    ("stateful_set", stateful_set),
    ("daemon_set_and_cron_job", daemon_set),
];

/// A job whose first try fails is tried again; a pod that is not to be restarted is not.
fn jobs(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(include_str!("manifests/jobs.yaml"), &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.run(&["wait", "--for=condition=Complete", "--timeout=420s", &format!("job/{class}")])?;
        here.wait_field(&format!("pod/never-{class}"), "/status/phase", "Failed")?;
        let ended = "/status/containerStatuses/0/state/terminated";
        let code = here.field(&format!("pod/never-{class}"), &format!("{ended}/exitCode"))?;
        let message = here.field(&format!("pod/never-{class}"), &format!("{ended}/message"))?;
        ensure!(code == "3" && message.trim() == "the last words", "never-{class} ended with {code} and {message:?}");
        here.wait_field(&format!("pod/on-failure-{class}"), "/status/phase", "Succeeded")?;
        let restarts = here.field(&format!("pod/on-failure-{class}"), "/status/containerStatuses/0/restartCount")?;
        ensure!(restarts == "1", "on-failure-{class} was restarted {restarts} times");
    }
    Ok(())
}

/// A sidecar starts before the containers and ends after them; hooks run at both ends.
fn sidecars(cluster: &Cluster, here: &Namespace) -> Outcome {
    cluster.on_node("mkdir -p /srv/hooks")?;
    for class in CLASSES {
        here.apply(include_str!("manifests/sidecar.yaml"), &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.wait_ready(class)?;
        here.wait_sh(class, "cat /hooks/started", "started after the sidecar")?;
        here.run(&["delete", "pod", class])?;
        let told = cluster.on_node(&format!("cat /srv/hooks/{class}/ended"))?;
        ensure!(told == "preStop\nTERM\nsidecar\n", "at the end of {class} ran {told:?}");
    }
    cluster.on_node("rm -r /srv/hooks").map(drop)
}

/// Pods of a StatefulSet have names that stay, also when one is made anew.
fn stateful_set(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(include_str!("manifests/stateful-set.yaml"), &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.wait_rollout(&format!("statefulset/{class}"))?;
        let name = format!("{class}-1");
        let uid = here.field(&format!("pod/{name}"), "/metadata/uid")?;
        here.run(&["delete", "pod", &name])?;
        wait(&format!("{name} to be made anew"), || {
            Ok(here.field(&format!("pod/{name}"), "/metadata/uid").is_ok_and(|now| now != uid))
        })?;
        here.wait_ready(&name)?;
        let host = here.sh(&name, "hostname")?;
        ensure!(host.trim() == name, "the host name of {name} is {host:?}");
    }
    Ok(())
}

/// A DaemonSet has a pod on the node, also after it was deleted; a CronJob makes jobs.
fn daemon_set(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(include_str!("manifests/daemon-set.yaml"), &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.wait_rollout(&format!("daemonset/{class}"))?;
        here.run(&["delete", "pod", "-l", &format!("app={class}")])?;
        here.wait_rollout(&format!("daemonset/{class}"))?;
        wait(&format!("a job of the CronJob {class} to succeed"), || {
            let label = format!("cron={class}");
            let done = here.run(&["get", "jobs", "-l", &label, "-o", "jsonpath={.items[*].status.succeeded}"])?;
            Ok(done.split_whitespace().any(|count| count == "1"))
        })?;
    }
    Ok(())
}

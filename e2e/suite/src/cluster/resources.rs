//! Limits: resize in place, quality of service, out of memory, overhead, eviction.

use super::kubectl::{Namespace, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("resize_in_place", resize),
    ("out_of_memory", out_of_memory),
    ("qos_and_overhead", qos),
    ("evicted_for_its_disk", evicted),
];

fn pod(here: &Namespace, name: &str, class: &str, resources: &str, script: &str) -> Outcome {
    here.apply(
        include_str!("manifests/limited.yaml"),
        &[("NAME", name), ("CLASS", class), ("RESOURCES", resources), ("SCRIPT", script)],
    )
}

const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";

fn resize(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        pod(here, class, class, "{requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: 500m, memory: 64Mi}}", IDLE)?;
    }
    for class in CLASSES {
        here.wait_ready(class)?;
        here.wait_sh(class, "cat /sys/fs/cgroup/memory.max", &(64_i64 << 20).to_string())?;
        let patch = r#"{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"800m","memory":"128Mi"}}}]}}"#;
        here.run(&["patch", "pod", class, "--subresource=resize", "-p", patch])?;
        here.wait_sh(class, "cat /sys/fs/cgroup/memory.max", &(128_i64 << 20).to_string())?;
        here.wait_sh(class, "cat /sys/fs/cgroup/cpu.max", "80000 100000")?;
        here.wait_field(&format!("pod/{class}"), "/status/containerStatuses/0/resources/limits/memory", "128Mi")?;
        let restarts = here.field(&format!("pod/{class}"), "/status/containerStatuses/0/restartCount")?;
        ensure!(restarts == "0", "the resize of {class} restarted its container {restarts} times");
    }
    Ok(())
}

/// A container over its limit is killed alone, is reported so, and is started again. So is one
/// without a limit that takes all the memory of its microVM.
fn out_of_memory(_: &Cluster, here: &Namespace) -> Outcome {
    let script = "[ -e /shared/once ] && { trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done; }; touch /shared/once; tail /dev/zero";
    for class in CLASSES {
        pod(here, class, class, "{requests: {cpu: 20m}, limits: {memory: 48Mi}}", script)?;
    }
    pod(here, "whole-vm", CLASSES[0], "{requests: {cpu: 20m}}", script)?;
    for class in CLASSES.into_iter().chain(["whole-vm"]) {
        let object = format!("pod/{class}");
        let status = "/status/containerStatuses/0";
        here.wait_field(&object, &format!("{status}/lastState/terminated/reason"), "OOMKilled")?;
        let code = here.field(&object, &format!("{status}/lastState/terminated/exitCode"))?;
        ensure!(code == "137", "the exit code of {class} after it ran out of memory is {code}");
        here.wait_ready(class)?;
        let restarts = here.field(&object, &format!("{status}/restartCount"))?;
        ensure!(restarts == "1", "{class} was restarted {restarts} times");
    }
    Ok(())
}

fn qos(_: &Cluster, here: &Namespace) -> Outcome {
    let guaranteed = "{requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}";
    for (name, resources, class) in [("guaranteed", guaranteed, "Guaranteed"), ("best-effort", "{}", "BestEffort")] {
        for runtime in CLASSES {
            let name = format!("{name}-{runtime}");
            pod(here, &name, runtime, resources, IDLE)?;
            here.wait_field(&format!("pod/{name}"), "/status/qosClass", class)?;
        }
    }
    for name in ["guaranteed", "best-effort"] {
        CLASSES.iter().try_for_each(|class| here.wait_ready(&format!("{name}-{class}")))?;
    }
    let overhead = here.field("pod/guaranteed-cofferdam", "/spec/overhead/memory")?;
    ensure!(overhead == "60Mi", "the overhead of a vm pod is {overhead:?}");
    let node = super::kubectl::kubectl(&["describe", "node", "node"])?;
    let line = node.lines().find(|line| line.contains(" guaranteed-cofferdam ")).unwrap_or("");
    ensure!(line.contains("124Mi"), "the node counts a pod of 64 MiB and 60 MiB of overhead as: {line:?}");
    Ok(())
}

/// A pod that writes more to its own disk than it may is evicted, by what its disk takes on the
/// node.
fn evicted(_: &Cluster, here: &Namespace) -> Outcome {
    // A program that ends with 0 when it is told to would make it Succeeded (kubernetes#120182).
    let script = "dd if=/dev/zero of=/tmp/big bs=1M count=64 2>/dev/null; sync; exec sleep 100000";
    for class in CLASSES {
        pod(here, class, class, "{requests: {cpu: 20m}, limits: {ephemeral-storage: 24Mi}}", script)?;
    }
    for class in CLASSES {
        let object = format!("pod/{class}");
        here.wait_field(&object, "/status/reason", "Evicted")?;
        let message = here.field(&object, "/status/message")?;
        ensure!(message.contains("phemeral"), "{class} was evicted because {message:?}");
    }
    wait("the evicted pods to end", || {
        let phases = here.run(&["get", "pods", "-o", "jsonpath={.items[*].status.phase}"])?;
        Ok(phases.split_whitespace().all(|phase| phase == "Failed"))
    })
}

//! Probes that fail, init containers, and how long the end of a pod may take.

use super::kubectl::{Namespace, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("probes_init_containers_and_grace_periods", lifecycle)];

/// Seconds that the pod which takes no notice of SIGTERM has for its end, as its manifest says.
const GRACE: u64 = 10;

fn lifecycle(cluster: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(include_str!("manifests/lifecycle.yaml"), &[("NAME", class), ("CLASS", class)])?;
        failing_liveness(here, &format!("alive-{class}"))?;
        failing_startup(here, &format!("never-up-{class}"))?;
        init_containers(here, class)?;
        grace_periods(cluster, here, class)?;
    }
    cluster.on_node("rm -r /srv/ends").map(drop)
}

/// A container whose liveness probe fails is told to end, and started anew.
fn failing_liveness(here: &Namespace, pod: &str) -> Outcome {
    let object = format!("pod/{pod}");
    here.wait_ready(pod)?;
    here.sh(pod, "rm /tmp/alive")?;
    here.wait_field(&object, "/status/containerStatuses/0/restartCount", "1")?;
    let last = "/status/containerStatuses/0/lastState/terminated";
    let code = here.field(&object, &format!("{last}/exitCode"))?;
    let message = here.field(&object, &format!("{last}/message"))?;
    ensure!(code == "7" && message.trim() == "told to end", "{pod} ended with {code} and {message:?}");
    let events = here.run(&["describe", "pod", pod])?;
    ensure!(events.contains("Liveness probe failed"), "{pod}'s events do not tell of its probe: {events}");
    here.wait_ready(pod)
}

/// A container whose startup probe fails is never ready, and is started anew.
fn failing_startup(here: &Namespace, pod: &str) -> Outcome {
    wait(&format!("{pod} to be started anew"), || {
        let status = here.get(&format!("pod/{pod}"))?;
        let container = status.pointer("/status/containerStatuses/0");
        let flag = |name: &str| container.and_then(|c| c.get(name)).and_then(serde_json::Value::as_bool) == Some(true);
        ensure!(!flag("ready") && !flag("started"), "{pod} is ready or started, though its probe fails");
        let restarts = container.and_then(|c| c.get("restartCount")).and_then(serde_json::Value::as_u64);
        Ok(restarts.is_some_and(|count| count >= 1))
    })
}

/// Init containers run in their order; one that fails is tried again where the pod's policy says
/// so.
fn init_containers(here: &Namespace, class: &str) -> Outcome {
    let (good, bad) = (format!("init-{class}"), format!("no-init-{class}"));
    here.wait_ready(&good)?;
    let order = here.sh(&good, "cat /shared/order")?;
    ensure!(order == "first\nsecond\n", "the init containers of {good} ran as {order:?}");
    let tries = here.field(&format!("pod/{good}"), "/status/initContainerStatuses/0/restartCount")?;
    ensure!(tries == "1", "the first init container of {good} was restarted {tries} times");

    here.wait_field(&format!("pod/{bad}"), "/status/phase", "Failed")?;
    let code = here.field(&format!("pod/{bad}"), "/status/initContainerStatuses/0/state/terminated/exitCode")?;
    ensure!(code == "4", "the init container of {bad} ended with {code}");
    let started = here.field(&format!("pod/{bad}"), "/status/containerStatuses/0/containerID")?;
    ensure!(started.is_empty(), "{bad} has a container {started}, though its init container failed");
    Ok(())
}

/// A pod has its grace period for its end, all of it if it needs that, and no more.
fn grace_periods(cluster: &Cluster, here: &Namespace, class: &str) -> Outcome {
    let (stubborn, polite) = (format!("stubborn-{class}"), format!("polite-{class}"));
    here.wait_ready(&stubborn)?;
    here.wait_ready(&polite)?;
    here.run(&["delete", "pod", &stubborn, &polite, "--timeout=420s"])?;
    let ended = cluster.on_node(&format!("cd /srv/ends/{class} && cat told && tail -n 1 ticks && cat polite"))?;
    let lines: Vec<&str> = ended.lines().collect();
    let [told, last, polite] = lines[..] else { return Err(format!("the pods of {class} left {ended:?}").into()) };
    let [told, last] = [told, last].map(str::parse::<u64>);
    let lived = last.doing("read a time")?.saturating_sub(told.doing("read a time")?);
    // It writes each second, and the kubelet counts from a moment before the signal.
    ensure!(lived + 3 >= GRACE, "the pod of {class} that ignores SIGTERM lived {lived} s of its {GRACE}");
    ensure!(polite == "in peace", "the pod of {class} that ends by itself said {polite:?}");
    Ok(())
}

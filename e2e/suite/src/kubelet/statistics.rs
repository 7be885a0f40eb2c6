//! What the kubelet tells about pods' use of the node. With `PodAndContainerStatsFromCRI` on, it knows that from Cofferdam alone.

use serde_json::Value;

use super::Smoke;
use super::api;
use super::checks::{NODE_NETWORK, SMOKE};
use crate::failure::{Failure, Outcome, ensure};

/// The running containers by their pods.
const CONTAINERS: [(&str, &str, &str); 3] =
    [("default", SMOKE, "web"), ("default", SMOKE, "fickle"), ("kube-system", NODE_NETWORK, "agent")];

/// `/stats/summary`: what evictions are decided by.
pub(super) fn summary(_: &mut Smoke) -> Outcome {
    let mut why = String::new();
    let waited = api::wait("all running containers to be in the kubelet's summary", || {
        let complete = all_measured();
        why = complete.as_ref().map_or_else(Failure::to_string, |()| String::new());
        Ok(complete.is_ok())
    });
    waited.map_err(|f| Failure(format!("{f}; {why}")))?;
    // What it says at its start when it has to look for pods' cgroups itself.
    let told = api::journal("falling back to cadvisor stats")?;
    ensure!(!told.contains("does not support PodSandboxStats"), "the kubelet does without CRI: {told}");
    let used = |summary: &Value| number(&container(summary, CONTAINERS[0])?, "/cpu/usageCoreNanoSeconds");
    let before = used(&api::json("/stats/summary")?)?;
    api::wait("the CPU time of web to grow in the kubelet's summary", || {
        Ok(used(&api::json("/stats/summary")?)? > before)
    })
}

fn all_measured() -> Outcome {
    let summary = api::json("/stats/summary")?;
    for which in CONTAINERS {
        let stats = container(&summary, which)?;
        for field in ["/cpu/usageCoreNanoSeconds", "/memory/workingSetBytes", "/memory/usageBytes", "/memory/rssBytes"]
        {
            ensure!(number(&stats, field)? > 0, "{field} of {which:?} is 0: {stats}");
        }
        number(&stats, "/cpu/usageNanoCores")?;
        let pod = pod(&summary, which.0, which.1)?;
        for field in ["/cpu/usageCoreNanoSeconds", "/memory/workingSetBytes", "/process_stats/process_count"] {
            ensure!(number(pod, field)? > 0, "{field} of pod {} is 0: {pod}", which.1);
        }
    }
    let smoke = pod(&summary, "default", SMOKE)?;
    ensure!(number(smoke, "/network/rxBytes")? > 0, "the probed pod received nothing: {}", smoke["network"]);
    let limit = 64 << 20;
    let web = container(&summary, CONTAINERS[0])?;
    let (used, free) = (number(&web, "/memory/workingSetBytes")?, number(&web, "/memory/availableBytes")?);
    ensure!(used + free == limit, "web's {used} bytes in use and {free} available are not its limit, {limit}");
    Ok(())
}

fn pod<'a>(summary: &'a Value, namespace: &str, name: &str) -> Outcome<&'a Value> {
    let is_it = |pod: &&Value| pod["podRef"]["name"] == name && pod["podRef"]["namespace"] == namespace;
    let found = summary["pods"].as_array().and_then(|pods| pods.iter().find(is_it));
    found.ok_or_else(|| Failure(format!("the summary has no pod {namespace}/{name}: {}", summary["pods"])))
}

fn container(summary: &Value, (namespace, name, container): (&str, &str, &str)) -> Outcome<Value> {
    let pod = pod(summary, namespace, name)?;
    let found = pod["containers"].as_array().and_then(|all| all.iter().find(|c| c["name"] == container));
    found.cloned().ok_or_else(|| Failure(format!("the summary of pod {name} has no container {container}: {pod}")))
}

fn number(stats: &Value, field: &str) -> Outcome<u64> {
    let number = stats.pointer(field).and_then(Value::as_u64);
    number.ok_or_else(|| Failure(format!("no number at {field}: {stats}")))
}

/// `/metrics/cadvisor`: what Prometheus asks for, under the names that it always had.
pub(super) fn metrics(_: &mut Smoke) -> Outcome {
    let exposed = api::get("/metrics/cadvisor")?;
    for which in CONTAINERS {
        // Whole seconds in CRI: a container that sleeps may be in its first.
        metric(&exposed, "container_cpu_usage_seconds_total", which)?;
        for name in ["container_memory_working_set_bytes", "container_memory_usage_bytes", "container_processes"] {
            ensure!(metric(&exposed, name, which)?.total_cmp(&0.0).is_gt(), "{name} of {which:?} is 0");
        }
    }
    Ok(())
}

fn metric(exposed: &str, name: &str, (namespace, pod, container): (&str, &str, &str)) -> Outcome<f64> {
    let labels =
        [("namespace", namespace), ("pod", pod), ("container", container)].map(|(k, v)| format!("{k}=\"{v}\""));
    let is_it = |line: &&str| line.starts_with(&format!("{name}{{")) && labels.iter().all(|l| line.contains(l));
    let line = exposed.lines().find(is_it).ok_or_else(|| Failure(format!("there is no {name} with {labels:?}")))?;
    // After the labels: the value, and the time of the sample.
    let value = line.rsplit_once('}').and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| Failure(format!("no number: {line}")))
}

//! From `kubectl apply` to Ready, on Cofferdam and on containerd + runc: one node, whose kubelet
//! changes its runtime between the rounds.

use std::path::Path;
use std::time::Instant;

use super::kubectl::{Namespace, kubectl, wait};
use super::{CLASSES, Cluster, node_is_ready, node_runtime};
use crate::bench::report::{self, PEER, Row};
use crate::failure::{Outcome, ensure};

const MANIFEST: &str = include_str!("manifests/ready.yaml");

/// One who is measured: its RuntimeClass if it has one, and the runtime that the kubelet uses.
struct Contender {
    name: &'static str,
    class: Option<&'static str>,
    runtime: &'static str,
    socket: &'static str,
}

const COFFERDAM: &str = "/run/cofferdam/cofferdam.sock";
const CONTENDERS: [Contender; 3] = [
    Contender { name: "vm", class: Some(CLASSES[0]), runtime: "cofferdam", socket: COFFERDAM },
    Contender { name: "host", class: Some(CLASSES[1]), runtime: "cofferdam", socket: COFFERDAM },
    Contender { name: PEER, class: None, runtime: "containerd", socket: "/run/containerd/containerd.sock" },
];

/// Milliseconds, by contender.
#[derive(Default)]
struct Samples {
    one: [Vec<f64>; 3],
    three: [Vec<f64>; 3],
}

/// Measures `rounds` rounds and adds the rows to the report in the folder `report`.
pub(super) fn run(cluster: &Cluster, rounds: usize, report: &Path) -> Outcome {
    ensure!(rounds > 0, "no rounds are asked for");
    // Other pods of the node would take the processors at moments of their own.
    kubectl(&["scale", "-n", "kube-system", "deployment", "coredns", "--replicas=0"])?;
    let coredns = ["get", "pods", "-n", "kube-system", "-o", "name"];
    wait("the name server's pods to be gone", || Ok(kubectl(&coredns)?.is_empty()))?;
    cluster.on_node("systemctl start containerd")?;
    let here = Namespace::new("bench")?;
    let mut samples = Samples::default();
    for round in 0..=rounds {
        for (number, contender) in CONTENDERS.iter().enumerate() {
            use_runtime(cluster, contender)?;
            let class = contender.class.map_or_else(String::new, |class| format!("runtimeClassName: {class}"));
            let (one, three) = MANIFEST.split_once("---\n").ok_or("ready.yaml has not two objects")?;
            let one = timed(&here, one, &class, |here| here.wait_ready("one"))?;
            let three = timed(&here, three, &class, |here| here.wait_rollout("deployment/three"))?;
            println!("bench: round {round} of {rounds}, {}: one pod {one:.0} ms, three {three:.0} ms", contender.name);
            // What is slow only once, as the pull of the image, is over after the first round.
            if round > 0 {
                samples.one[number].push(one);
                samples.three[number].push(three);
            }
        }
    }
    here.delete()?;
    let row = |name, number: usize, samples: &[Vec<f64>; 3]| Row {
        name,
        handler: Some(CONTENDERS[number].name),
        unit: "ms",
        ours: samples[number].clone(),
        peer: Some((PEER, samples[2].clone())),
    };
    let both = |name, samples| [row(name, 0, samples), row(name, 1, samples)];
    let [vm, host] = both("apply_to_ready", &samples.one);
    let [vm_three, host_three] = both("deployment_3_ready", &samples.three);
    report::add(report, &[vm, host, vm_three, host_three], &[])
}

/// Has the kubelet use a runtime; nothing else of its configuration changes.
fn use_runtime(cluster: &Cluster, contender: &Contender) -> Outcome {
    let wanted = format!("{}://", contender.runtime);
    if node_runtime()?.starts_with(&wanted) {
        return Ok(());
    }
    cluster.on_node(&format!(
        "sed -i 's#^containerRuntimeEndpoint: .*#containerRuntimeEndpoint: unix://{}#' /var/lib/kubelet/config.yaml \
         && systemctl restart kubelet",
        contender.socket
    ))?;
    wait(&format!("the node to be Ready with {}", contender.runtime), || {
        Ok(node_runtime()?.starts_with(&wanted) && node_is_ready()?)
    })
}

/// Milliseconds from an object's `kubectl apply` until `ready` returns. The object is gone then.
fn timed(here: &Namespace, manifest: &str, class: &str, ready: impl Fn(&Namespace) -> Outcome) -> Outcome<f64> {
    let began = Instant::now();
    here.apply(manifest, &[("CLASS", class)])?;
    ready(here)?;
    let took = began.elapsed().as_secs_f64() * 1000.0;
    here.run(&["delete", "pods,deployments", "--all", "--timeout=420s"])?;
    wait("the pods to be gone", || Ok(here.run(&["get", "pods", "-o", "name"])?.is_empty()))?;
    Ok(took)
}

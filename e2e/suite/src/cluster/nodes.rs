//! A node is drained and its pods of both handlers come up on another.

use super::kubectl::{Namespace, kubectl, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("drain", drain)];

const DRAINED: &str = "node";
const OTHER: &str = "node2";

/// The nodes of a deployment's pods that are ready, one for each.
fn nodes_of(here: &Namespace, app: &str) -> Outcome<Vec<String>> {
    let template = "jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].ready}\n{end}";
    let listed = here.run(&["get", "pods", "-l", &format!("app={app}"), "-o", template])?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(" true")).map(str::to_owned).collect())
}

fn drain(cluster: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        let manifest = include_str!("manifests/deployment.yaml").replace("replicas: 3", "replicas: 2");
        here.apply(&manifest, &[("NAME", class), ("CLASS", class)])?;
        here.apply(include_str!("manifests/budget.yaml"), &[("NAME", class)])?;
    }
    for class in CLASSES {
        here.wait_rollout(&format!("deployment/{class}"))?;
        let nodes = nodes_of(here, class)?;
        ensure!(
            nodes.iter().any(|node| node == DRAINED) && nodes.iter().any(|node| node == OTHER),
            "the scheduler has put the pods of {class} on {nodes:?}"
        );
    }
    kubectl(&["drain", DRAINED, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=420s"])?;
    for class in CLASSES {
        wait(&format!("two pods of {class} to be ready on {OTHER}"), || {
            Ok(nodes_of(here, class)?.iter().filter(|node| *node == OTHER).count() == 2)
        })?;
    }
    wait("the drained node to have no pod left", || Ok(cluster.on_node("crictl pods -q")?.trim().is_empty()))?;
    kubectl(&["uncordon", DRAINED])?;
    for class in CLASSES {
        here.run(&["scale", &format!("deployment/{class}"), "--replicas=4"])?;
    }
    for class in CLASSES {
        here.wait_rollout(&format!("deployment/{class}"))?;
        let nodes = nodes_of(here, class)?;
        ensure!(nodes.iter().any(|node| node == DRAINED), "the node takes no pod of {class} again: {nodes:?}");
    }
    Ok(())
}

//! Deployments of both handlers behind Services, and what their owners do with them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::kubectl::{Namespace, kubectl, kubectl_in, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] =
    &[("deployments_behind_services", deployments), ("network_policies", network_policies)];

const DEPLOYMENT: &str = include_str!("manifests/deployment.yaml");
const ADD_ON: &str = include_str!("manifests/kube-network-policies.yaml");

fn deployments(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        here.apply(DEPLOYMENT, &[("NAME", class), ("CLASS", class)])?;
    }
    for class in CLASSES {
        here.wait_rollout(&format!("deployment/{class}"))?;
    }
    for (from, to) in CLASSES.iter().flat_map(|from| CLASSES.map(|to| (from, to))) {
        all_answer(here, from, to, 3)?;
    }
    not_ready(here)?;
    for class in CLASSES {
        updated(here, class)?;
    }
    let names = pods(here, CLASSES[0])?;
    here.run(&["delete", "pod", &names[0], "--grace-period=20"])?;
    here.wait_rollout(&format!("deployment/{}", CLASSES[0]))?;
    let after = pods(here, CLASSES[0])?;
    ensure!(!after.contains(&names[0]), "the deleted pod {} is still there", names[0]);
    Ok(())
}

/// The names of a deployment's pods that are not being deleted.
fn pods(here: &Namespace, deployment: &str) -> Outcome<Vec<String>> {
    let listed = here.run(&["get", "pods", "-l", &format!("app={deployment}"), "-o", "json"])?;
    let listed: Value = serde_json::from_str(&listed).doing("read what kubectl printed")?;
    let items = listed["items"].as_array().into_iter().flatten().map(|pod| &pod["metadata"]);
    let alive = items.filter(|metadata| metadata.get("deletionTimestamp").is_none());
    Ok(alive.filter_map(|metadata| metadata["name"].as_str()).map(str::to_owned).collect())
}

/// Waits until `count` pods of the service `to` have answered requests of a pod of `from`.
fn all_answer(here: &Namespace, from: &str, to: &str, count: usize) -> Outcome {
    let address = here.field(&format!("service/{to}"), "/spec/clusterIP")?;
    let script = format!("for i in 1 2 3 4 5 6 7 8; do wget -q -T 20 -O - http://{address}/ || exit 1; done");
    let mut answered = BTreeSet::new();
    wait(&format!("{count} pods of service {to} to answer a pod of {from}"), || {
        let printed = here.sh(&format!("deployment/{from}"), &script)?;
        answered.extend(printed.lines().map(str::to_owned));
        Ok(answered.len() >= count)
    })
    .map_err(|failure| format!("{failure}; those that did: {answered:?}"))?;
    let names: BTreeSet<String> = pods(here, to)?.into_iter().collect();
    ensure!(answered == names, "behind service {to} answered {answered:?}, its pods are {names:?}");
    Ok(())
}

/// A pod whose readiness probe fails gets no requests, and gets them again when it passes.
fn not_ready(here: &Namespace) -> Outcome {
    for class in CLASSES {
        let names = pods(here, class)?;
        let endpoints = || -> Outcome<usize> {
            let label = format!("kubernetes.io/service-name={class}");
            let ready = "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}";
            Ok(here.run(&["get", "endpointslices", "-l", &label, "-o", ready])?.split_whitespace().count())
        };
        here.sh(&names[0], "mv /tmp/www/index.html /tmp/www/away")?;
        wait(&format!("a pod of {class} to be taken from its service"), || Ok(endpoints()? == 2))?;
        here.sh(&names[0], "mv /tmp/www/away /tmp/www/index.html")?;
        wait(&format!("the pod of {class} to be in its service again"), || Ok(endpoints()? == 3))?;
    }
    Ok(())
}

/// A change of the template replaces all pods; then the deployment is scaled down.
fn updated(here: &Namespace, class: &str) -> Outcome {
    let deployment = format!("deployment/{class}");
    let before = pods(here, class)?;
    here.run(&["set", "env", &deployment, "ROUND=second"])?;
    here.wait_rollout(&deployment)?;
    let after = pods(here, class)?;
    ensure!(after.iter().all(|pod| !before.contains(pod)), "pods {after:?} of {class} are of before the rollout");
    ensure!(
        here.sh(&deployment, "echo $ROUND")?.trim() == "second",
        "the new pods of {class} have the old environment"
    );
    here.run(&["scale", &deployment, "--replicas=1"])?;
    wait(&format!("{class} to have one pod"), || Ok(pods(here, class)?.len() == 1))
}

/// kube-network-policies, in a privileged pod of the node's network, decides about each new
/// connection of the node; pods of both handlers are servers and clients.
fn network_policies(_: &Cluster, here: &Namespace) -> Outcome {
    kubectl_in(&["apply", "-f", "-"], ADD_ON)?;
    let outcome = with_policies(here);
    kubectl_in(&["delete", "-f", "-", "--timeout=420s"], ADD_ON)?;
    outcome
}

fn with_policies(here: &Namespace) -> Outcome {
    kubectl(&["rollout", "status", "-n", "kube-system", "daemonset/kube-network-policies", "--timeout=420s"])?;
    let pods = CLASSES.map(|class| (format!("server-{class}"), format!("client-{class}"), class));
    for (server, client, class) in &pods {
        here.apply(include_str!("manifests/web.yaml"), &[("NAME", server), ("CLASS", class)])?;
        here.apply(include_str!("manifests/web.yaml"), &[("NAME", client), ("CLASS", class)])?;
        here.run(&["label", "pod", server, "role=server"])?;
    }
    for (server, client, _) in &pods {
        here.wait_ready(server)?;
        here.wait_ready(client)?;
    }
    let all = |expected: bool, when: &str| -> Outcome {
        for (server, ..) in &pods {
            let address = here.field(&format!("pod/{server}"), "/status/podIP")?;
            for (_, client, _) in &pods {
                wait(&format!("{client}'s requests to {server} to succeed: {expected}, {when}"), || {
                    Ok(here.sh(client, &format!("wget -q -T 10 -O - http://{address}:8080/")).is_ok() == expected)
                })?;
            }
        }
        Ok(())
    };
    all(true, "without a policy")?;
    here.apply(include_str!("manifests/ingress-policy.yaml"), &[])?;
    all(false, "when only friends may")?;
    pods.iter().try_for_each(|(_, client, _)| here.run(&["label", "pod", client, "role=friend"]).map(drop))?;
    all(true, "as friends")?;
    here.apply(include_str!("manifests/egress-policy.yaml"), &[])?;
    all(false, "when friends may open no connection")?;
    here.run(&["delete", "networkpolicies", "--all"])?;
    all(true, "after the policies")?;
    // The kubelet's probes are not a policy's business.
    pods.iter().try_for_each(|(server, ..)| here.wait_ready(server))
}

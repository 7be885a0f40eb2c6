//! A real kubelet on Cofferdam alone: static pods, without an API server. Steps that build on one another, as the tour's do.

mod api;
mod checks;
mod statistics;

use std::time::Instant;

use crate::census::Census;
use crate::crictl::Crictl;
use crate::daemon;
use crate::failure::{Failure, Outcome};

/// What the steps know from the ones before.
pub(crate) struct Smoke {
    crictl: Crictl,
    before: Census,
    guest_kernel: String,
}

/// One step: what it shows, and how.
type Step = (&'static str, fn(&mut Smoke) -> Outcome);

const STEPS: &[Step] = &[
    ("the kubelet starts, with no other runtime on the node", checks::start),
    ("a vm pod with two containers is ready", checks::ready),
    ("its init container was first, and startup, readiness and liveness probes pass", checks::probes),
    ("a liveness probe that fails restarts its container and no other", checks::restarted_by_liveness),
    ("environment, downward API, hostPath and emptyDir", checks::environment_and_volumes),
    ("logs, also of the life before", checks::logs),
    ("commands in containers", checks::commands),
    ("a pod in kube-system that asks for the node's network is a host pod", checks::kube_system),
    ("the summary has CPU and memory of all containers, by CRI alone", statistics::summary),
    ("and so has /metrics/cadvisor", statistics::metrics),
    ("one elsewhere is refused, and the events name the handler to use", checks::refused),
    ("the kubelet restarts and no container does", checks::kubelet_restarts),
    ("the daemon restarts and no container does", checks::daemon_restarts),
    ("without manifests nothing is left", checks::nothing_left),
];

/// Runs the smoke.
pub(crate) fn run() -> Outcome {
    daemon::wait_ready(&Crictl::default())?;
    let mut smoke = Smoke { crictl: Crictl::real(), before: Census::take()?, guest_kernel: String::new() };
    let started = Instant::now();
    for (number, (title, step)) in STEPS.iter().enumerate() {
        let began = Instant::now();
        step(&mut smoke).map_err(|f| Failure(format!("kubelet smoke, step {} ({title}): {f}", number + 1)))?;
        println!("ok      {:6.1} s  {title}", began.elapsed().as_secs_f32());
    }
    println!(
        "\nkubelet smoke passed: kubelet {} on Cofferdam alone, {} steps in {} s: pods of both handlers, probes, volumes, logs, exec, statistics, both restarted, nothing left",
        api::version()?,
        STEPS.len(),
        started.elapsed().as_secs()
    );
    Ok(())
}

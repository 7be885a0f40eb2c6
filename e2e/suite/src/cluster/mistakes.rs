//! What kubectl says about pods that cannot run: their owners must understand it.

use super::kubectl::{Namespace, wait};
use super::{CLASSES, Cluster, Test};
use crate::failure::{Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("mistakes_are_explained", mistakes)];

/// One mistake: the pod's name, what differs in its manifest, and a part of what must be said of
/// it.
struct Mistake {
    pod: &'static str,
    spec: &'static str,
    container: &'static str,
    said: &'static str,
}

const SLEEP: &str = r#"image: "registry.k8s.io/cofferdam/busybox:1", command: [sleep, "1000"]"#;

const MISTAKES: &[Mistake] = &[
    Mistake {
        pod: "no-image",
        spec: "",
        container: r#"image: "registry.k8s.io/cofferdam/there-is-none:1""#,
        said: "not found",
    },
    Mistake {
        pod: "no-program",
        spec: "",
        container: r#"image: "registry.k8s.io/cofferdam/busybox:1", command: [/there/is/none]"#,
        said: "/there/is/none",
    },
    Mistake {
        pod: "no-volume",
        spec: "volumes: [{name: v, hostPath: {path: /there/is/none, type: Directory}}]",
        container: r#"image: "registry.k8s.io/cofferdam/busybox:1", volumeMounts: [{name: v, mountPath: /v}]"#,
        said: "is not a directory",
    },
    Mistake {
        pod: "no-config",
        spec: "",
        container: r#"image: "registry.k8s.io/cofferdam/busybox:1", envFrom: [{configMapRef: {name: there-is-none}}]"#,
        said: "configmap \"there-is-none\" not found",
    },
];

fn mistakes(_: &Cluster, here: &Namespace) -> Outcome {
    for class in CLASSES {
        for mistake in MISTAKES {
            let name = format!("{}-{class}", mistake.pod);
            make(here, &name, class, mistake.spec, mistake.container)?;
        }
    }
    for (class, mistake) in CLASSES.iter().flat_map(|class| MISTAKES.iter().map(move |mistake| (class, mistake))) {
        described(here, &format!("{}-{class}", mistake.pod), mistake.said)?;
    }
    make(
        here,
        "out-of-memory",
        "cofferdam-host",
        "",
        r#"image: "registry.k8s.io/cofferdam/busybox:1", command: [sh, -c, "tail /dev/zero"], resources: {limits: {memory: 16Mi}}"#,
    )?;
    make(here, "host-network", "cofferdam", "hostNetwork: true", SLEEP)?;
    make(here, "host-network-unnamed", "", "hostNetwork: true", SLEEP)?;
    make(here, "unknown-handler", "unknown-handler", "", SLEEP)?;
    described(here, "out-of-memory", "OOMKilled")?;
    described(here, "host-network", "microVM")?;
    described(here, "host-network-unnamed", "host")?;
    described(here, "unknown-handler", "gpu")
}

fn make(here: &Namespace, name: &str, class: &str, spec: &str, container: &str) -> Outcome {
    let class = if class.is_empty() { String::new() } else { format!("runtimeClassName: {class}") };
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  {class}\n  {spec}\n  containers:\n  - {{name: c, {container}}}\n"
    );
    here.apply(&manifest, &[])
}

/// Waits until `kubectl describe` says `wanted` of a pod, which is not running.
fn described(here: &Namespace, pod: &str, wanted: &str) -> Outcome {
    let mut text = String::new();
    let waited = wait(&format!("describe of {pod} to say {wanted:?}"), || {
        text = here.run(&["describe", "pod", pod])?;
        Ok(text.split_once("Status:").is_some_and(|(_, rest)| rest.contains(wanted)))
    });
    waited.map_err(|failure| format!("{failure}; it says {text}"))?;
    ensure!(!text.contains("Ready:          True"), "{pod} is ready");
    Ok(())
}

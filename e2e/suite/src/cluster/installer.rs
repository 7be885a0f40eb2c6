//! The installer on a node whose kubelet uses containerd: a switch that fails and one that does
//! not, an upgrade under running pods, an upgrade that fails, and the way back.

use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::kubectl::{Beside, Namespace, kubectl, kubectl_in, wait};
use super::{CLASSES, Cluster, node_field, node_is_ready, node_runtime};
use crate::crictl::wait_within;
use crate::failure::{Doing, Failure, Outcome, ensure};

const WORKLOAD: &str = include_str!("manifests/any-class.yaml");
/// A workload that names no RuntimeClass.
const PLAIN: &str = "plain";
/// A switch and its way back: a drain, and five minutes until a node that is not Ready is given up.
const LIMIT: Duration = Duration::from_secs(1_500);

/// The kubelet's files that a switch may change.
const FILES: &str = "cd /var/lib/kubelet && sha256sum config.yaml kubeadm-flags.env";

/// What the steps share.
struct Trial<'a> {
    cluster: &'a Cluster,
    here: &'a Namespace,
    /// Holds a folder of manifests for each version.
    versions: PathBuf,
}

type Step<'a> = fn(&Trial<'a>) -> Outcome;

/// Runs all steps on a node that has never had Cofferdam.
pub(super) fn run(cluster: &Cluster, versions: PathBuf) -> Outcome {
    let here = Namespace::new("installer")?;
    let trial = Trial { cluster, here: &here, versions };
    let steps: [(&str, Step<'_>); 6] = [
        ("a_node_without_a_label_is_left_alone", Trial::left_alone),
        ("a_switch_that_fails_is_undone", Trial::failing_switch),
        ("a_switch_brings_the_workloads_back", Trial::switch),
        ("an_upgrade_keeps_pods_running", Trial::upgrade),
        ("an_upgrade_that_fails_is_undone", Trial::failing_upgrade),
        ("an_uninstallation_leads_back_to_containerd", Trial::uninstall),
    ];
    for (name, step) in steps {
        let began = Instant::now();
        if let Err(Failure(why)) = step(&trial) {
            let journal = cluster.on_node("journalctl -u cofferdam-installer -o cat --no-pager | tail -n 40");
            println!("{}\n{}", here.described(), journal.unwrap_or_else(|failure| failure.0));
            println!("{}", kubectl(&["describe", "node", "node"]).unwrap_or_else(|failure| failure.0));
            return Err(Failure(format!("{name}: {why}")));
        }
        println!("ok      {:6.1} s  {name}", began.elapsed().as_secs_f32());
    }
    Ok(())
}

fn state() -> Outcome<String> {
    node_field(r".metadata.annotations.cofferdam\.dev/state")
}

fn label(word: &str) -> Outcome {
    kubectl(&["label", "--overwrite", "node", "node", word]).map(drop)
}

/// Waits until the installer's state contains `part`, saying each state that comes before.
fn wait_state(part: &str) -> Outcome {
    let mut last = String::new();
    let waited = wait_within(LIMIT, Duration::from_secs(1), &format!("the installer's state to say {part:?}"), || {
        let now = state()?;
        if now != last {
            println!("        state: {now}");
            last = now;
        }
        Ok(last.contains(part))
    });
    waited.map_err(|failure| Failure(format!("{failure}; it says {last:?}")))
}

impl Trial<'_> {
    fn manifest(&self, version: &str, name: &str) -> Outcome<String> {
        let path = self.versions.join(version).join(name);
        fs::read_to_string(&path).doing(&format!("read {}", path.display()))
    }

    fn apply(&self, version: &str) -> Outcome {
        kubectl_in(&["apply", "-f", "-"], &self.manifest(version, "cofferdam.yaml")?).map(drop)
    }

    fn deploy(&self, name: &str, replicas: usize, class: &str) -> Outcome {
        let class = if class.is_empty() { String::new() } else { format!("runtimeClassName: {class}") };
        self.here.apply(WORKLOAD, &[("NAME", name), ("REPLICAS", &replicas.to_string()), ("CLASS", &class)])
    }

    /// Name, container and restart count of each pod.
    fn lives(&self) -> Outcome<String> {
        let template = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}\n{end}";
        self.here.run(&["get", "pods", "-o", template])
    }

    fn files(&self) -> Outcome<String> {
        self.cluster.on_node(FILES)
    }

    fn left_alone(&self) -> Outcome {
        ensure!(node_runtime()?.starts_with("containerd://"), "the node's runtime is {}", node_runtime()?);
        self.deploy(PLAIN, 2, "")?;
        self.here.wait_rollout(&format!("deployment/{PLAIN}"))?;
        self.apply("first")?;
        let daemon_set = ["get", "-n", "kube-system", "daemonset", "cofferdam-installer", "-o"];
        wait("the DaemonSet's controller to have seen it", || {
            Ok(kubectl(&[&daemon_set[..], &["jsonpath={.status.observedGeneration}"]].concat())? == "1")
        })?;
        let wanted = kubectl(&[&daemon_set[..], &["jsonpath={.status.desiredNumberScheduled}"]].concat())?;
        ensure!(wanted == "0", "{wanted} pods of the installer are wanted where no node has a label");
        Ok(())
    }

    /// Cofferdam cannot serve pods with a folder of network configurations that is not there: the
    /// node would not become Ready.
    fn failing_switch(&self) -> Outcome {
        let before = self.files()?;
        label("cofferdam.dev/install=true")?;
        wait_state("the kubelet uses another runtime")?;
        ensure!(
            node_runtime()?.starts_with("containerd://"),
            "an installation has changed the runtime to {}",
            node_runtime()?
        );
        let bad = "/etc/cofferdam/conf.d/60-bad.toml";
        self.cluster.on_node(&format!(
            "printf '[cni]\\nconf_dir = \"/etc/no-networks\"\\n' >{bad} && systemctl restart cofferdam"
        ))?;
        label("cofferdam.dev/switch=true")?;
        wait_state("failed: switching failed")?;
        ensure!(state()?.contains("was not Ready within"), "the state does not name the reason: {}", state()?);
        wait("the node to be back on containerd", || {
            Ok(node_is_ready()? && node_runtime()?.starts_with("containerd://"))
        })?;
        wait("the cordon to be undone", || Ok(node_field(".spec.unschedulable")?.is_empty()))?;
        ensure!(self.files()? == before, "the kubelet's files differ after the way back");
        self.here.wait_rollout(&format!("deployment/{PLAIN}"))?;
        self.cluster.on_node(&format!("rm {bad} && systemctl restart cofferdam"))?;
        Ok(())
    }

    fn switch(&self) -> Outcome {
        kubectl(&["annotate", "node", "node", "cofferdam.dev/retry=now"])?;
        wait_state("1.0.0-first serves the kubelet")?;
        ensure!(node_runtime()?.starts_with("cofferdam://"), "the switched node's runtime is {}", node_runtime()?);
        for kind in ["vm", "host"] {
            let label = node_field(&format!(r".metadata.labels.cofferdam\.dev/{kind}"))?;
            ensure!(label == "true", "the label cofferdam.dev/{kind} is {label:?}");
        }
        ensure!(node_field(".spec.unschedulable")?.is_empty(), "the switched node is still cordoned");
        for (class, replicas) in CLASSES.iter().zip([1, 2]) {
            self.deploy(class, replicas, class)?;
        }
        for name in [PLAIN, CLASSES[0], CLASSES[1]] {
            self.here.wait_rollout(&format!("deployment/{name}"))?;
        }
        for (name, handler) in [(PLAIN, "vm"), (CLASSES[0], "vm"), (CLASSES[1], "host")] {
            let boots = self.here.sh(&format!("deployment/{name}"), "cat /proc/sys/kernel/random/boot_id")?;
            let own = boots != self.cluster.on_node("cat /proc/sys/kernel/random/boot_id")?;
            ensure!(own == (handler == "vm"), "{name} has a kernel of its own: {own}; its handler should be {handler}");
        }
        Ok(())
    }

    fn upgrade(&self) -> Outcome {
        let before = self.lives()?;
        ensure!(before.lines().count() == 5, "five pods should run:\n{before}");
        let logs = std::env::temp_dir().join(format!("cofferdam-upgrade-{}.log", std::process::id()));
        let file = fs::File::create(&logs).doing("make a file for kubectl logs")?;
        let words = ["logs", "-f", &format!("deployment/{}", CLASSES[0])];
        let follower = self.here.command(&words).stdout(file).stderr(Stdio::inherit()).spawn().doing("run kubectl")?;
        let mut follower = Beside(follower);
        let pod = format!("deployment/{}", CLASSES[0]);
        let words = ["exec", &pod, "--", "sh", "-c", "touch /tmp/execs; sleep 1000000"];
        let exec = self.here.command(&words).stderr(Stdio::piped()).spawn().doing("run kubectl")?;
        let mut exec = Beside(exec);
        wait("the command to run", || Ok(self.here.sh(&pod, "test -e /tmp/execs").is_ok()))?;
        self.apply("second")?;
        wait_state("1.0.0-second serves the kubelet")?;
        self.is_current("second")?;
        let after = self.lives()?;
        ensure!(before == after, "containers before the upgrade:\n{before}and after:\n{after}");
        for name in [PLAIN, CLASSES[0], CLASSES[1]] {
            self.here.sh(&format!("deployment/{name}"), "true")?;
        }
        let ended = follower.0.try_wait().doing("look for kubectl")?;
        ensure!(ended.is_none(), "the logs -f that ran during the upgrade has ended: {ended:?}");
        // The streams of a command are the daemon's; its client must not take their end for
        // success.
        let ended = exec.0.wait().doing("wait for kubectl")?;
        let mut said = String::new();
        let stderr = exec.0.stderr.take().ok_or("kubectl has no stderr")?;
        BufReader::new(stderr).read_to_string(&mut said).doing("read what kubectl says")?;
        ensure!(
            !ended.success() && said.contains("being restarted"),
            "the exec whose daemon was replaced ended with {ended} and {said:?}"
        );
        let seen = complete_lines(&logs)?;
        wait("the followed log to go on", || Ok(complete_lines(&logs)? > seen))?;
        fs::remove_file(&logs).doing("remove the followed log")
    }

    fn failing_upgrade(&self) -> Outcome {
        let before = self.lives()?;
        self.apply("broken")?;
        wait_state("failed: installing 1.0.0-broken failed")?;
        self.is_current("second")?;
        self.cluster.on_node("systemctl is-active cofferdam")?;
        ensure!(self.lives()? == before, "a container was restarted by an upgrade that failed");
        self.here.sh(&format!("deployment/{}", CLASSES[0]), "true")?;
        self.apply("second")?;
        wait_state("1.0.0-second serves the kubelet")
    }

    fn uninstall(&self) -> Outcome {
        for class in CLASSES {
            self.here.run(&["delete", "deployment", class])?;
        }
        let job = self.manifest("second", "uninstall.yaml")?.replace("nodeName: NODE", "nodeName: node");
        let made = kubectl_in(&["create", "-o", "name", "-f", "-"], &job)?;
        let limit = format!("--timeout={}s", LIMIT.as_secs());
        kubectl(&["wait", "-n", "kube-system", "--for=condition=Complete", &limit, made.trim()])?;
        wait("the node to be back on containerd", || {
            Ok(node_is_ready()? && node_runtime()?.starts_with("containerd://"))
        })?;
        self.here.wait_rollout(&format!("deployment/{PLAIN}"))?;
        let left = self.cluster.on_node(
            "ls -d /opt/cofferdam/versions/* /etc/systemd/system/cofferdam* 2>/dev/null; pgrep -a cofferdam; true",
        )?;
        ensure!(left.is_empty(), "left on the node: {left}");
        let labels = node_field(".metadata.labels")?;
        ensure!(!labels.contains("cofferdam.dev"), "the node's labels are {labels}");
        ensure!(node_field(".spec.unschedulable")?.is_empty(), "the node is still cordoned");
        Ok(())
    }

    /// Whether a version is the one in use.
    fn is_current(&self, version: &str) -> Outcome {
        let current = self.cluster.on_node("readlink /opt/cofferdam/current")?;
        ensure!(current.trim() == format!("versions/1.0.0-{version}"), "the current version is {current}");
        Ok(())
    }
}

/// How many lines a followed log has; none of the container's may be missing.
fn complete_lines(path: &Path) -> Outcome<usize> {
    let text = fs::read_to_string(path).doing("read the followed log")?;
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    for (number, line) in whole.lines().enumerate() {
        ensure!(line == format!("line {number}"), "line {number} of the followed log is {line:?}");
    }
    Ok(whole.lines().count())
}

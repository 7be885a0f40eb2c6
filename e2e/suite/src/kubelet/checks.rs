//! What each step of the smoke looks at.

use std::fs;
use std::path::{Path, PathBuf};

use super::Smoke;
use super::api::{self, Pod};
use crate::daemon::{self, systemctl};
use crate::failure::{Doing, Failure, Outcome, ensure};

/// The kubelet adds the node's name to a static pod's.
pub(super) const SMOKE: &str = "smoke-node";
pub(super) const NODE_NETWORK: &str = "node-network-node";
/// What the smoke's pod sees of the node.
const SHARED: &str = "/srv/kubelet-smoke";

/// Scripts for the pod, by the names that they get in `SHARED`, which it has at `/node`.
const SCRIPTS: [(&str, &str); 2] = [
    ("write.sh", "echo written in the pod > /node/from-pod; echo by web > /shared/web"),
    ("both.sh", "echo to stdout; echo to stderr >&2"),
];

const SMOKE_POD: &str = include_str!("manifests/smoke.yaml");
const NODE_NETWORK_POD: &str = include_str!("manifests/node-network.yaml");

fn smoke(what: &str, condition: impl Fn(&Pod) -> bool) -> Outcome<Pod> {
    Pod::wait("default", SMOKE, what, condition)
}

fn restarts(pod: &Pod, container: &str) -> u64 {
    pod.container(container).ok().and_then(|status| status["restartCount"].as_u64()).unwrap_or(0)
}

pub(super) fn start(_: &mut Smoke) -> Outcome {
    ensure!(systemctl(&["is-active", "containerd.service"]).is_err(), "containerd runs beside Cofferdam");
    fs::create_dir_all(SHARED).doing(&format!("make {SHARED}"))?;
    for (name, text) in [("from-node", "written on the node\n")].iter().chain(&SCRIPTS) {
        fs::write(Path::new(SHARED).join(name), text).doing("write a file for the pod")?;
    }
    api::start()
}

pub(super) fn ready(smoke_run: &mut Smoke) -> Outcome {
    api::place("smoke.yaml", SMOKE_POD)?;
    let pod = smoke("the smoke's pod to be ready", Pod::is_ready)?;
    ensure!(pod.status("/containerStatuses").as_array().map(Vec::len) == Some(2), "the pod has not two containers");
    smoke_run.guest_kernel = api::run_in(SMOKE, "web", "uname -r")?.trim().to_owned();
    let guest = &smoke_run.guest_kernel;
    let is_release = guest.starts_with(|c: char| c.is_ascii_digit());
    ensure!(is_release && *guest != node_kernel()?, "the default handler's pod runs on kernel {guest:?}, no guest's");
    Ok(())
}

fn node_kernel() -> Outcome<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").doing("read the node's kernel release")?;
    Ok(release.trim().to_owned())
}

pub(super) fn probes(_: &mut Smoke) -> Outcome {
    let pod = smoke("the smoke's pod to be ready", Pod::is_ready)?;
    let init = pod.container("prepare")?;
    let ended = &init["state"]["terminated"];
    ensure!(ended["reason"] == "Completed" && ended["exitCode"] == 0, "the init container did not end well: {init}");
    let web = pod.container("web")?;
    ensure!(web["started"] == true && web["ready"] == true, "probes of web have not passed: {web}");
    let mut first = None;
    api::wait("the liveness probe to run, and again", || {
        let now = probed().ok();
        first = first.or(now);
        Ok(now > first)
    })
}

/// How often the liveness probe of `web` ran in this life of its container.
fn probed() -> Outcome<u64> {
    let printed = api::run_in(SMOKE, "web", "wc -l /tmp/probed")?;
    let lines = printed.split_whitespace().next().and_then(|count| count.parse().ok());
    lines.ok_or_else(|| Failure(format!("wc printed {printed:?}")))
}

pub(super) fn restarted_by_liveness(_: &mut Smoke) -> Outcome {
    let pod = smoke("fickle to be restarted and ready", |pod| restarts(pod, "fickle") > 0 && pod.is_ready())?;
    let fickle = pod.container("fickle")?;
    ensure!(fickle["restartCount"] == 1, "fickle was restarted again: {fickle}");
    let last = &fickle["lastState"]["terminated"];
    ensure!(last["exitCode"] == 3, "fickle's first life did not end by its stop signal: {fickle}");
    ensure!(restarts(&pod, "web") == 0, "web was restarted as well: {}", pod.status("/containerStatuses"));
    let told = api::journal("Container fickle failed liveness probe")?;
    ensure!(told.contains("will be restarted"), "no event tells of the restart: {told}");
    Ok(())
}

pub(super) fn environment_and_volumes(_: &mut Smoke) -> Outcome {
    let pod = smoke("the smoke's pod to be ready", Pod::is_ready)?;
    let address = pod.status("/podIP").as_str().unwrap_or("none").to_owned();
    let env = api::run_in(SMOKE, "web", "env")?;
    for wanted in [
        format!("POD_NAME={SMOKE}"),
        format!("PLAIN=plain value, with {SMOKE} in it"),
        format!("POD_IP={address}"),
        "NODE_NAME=node".to_owned(),
        format!("MEMORY_LIMIT={}", 64 << 20),
    ] {
        ensure!(env.lines().any(|line| line == wanted), "the environment has no {wanted}: {env}");
    }
    let seen = api::run_in(SMOKE, "web", "cat /node/from-node /shared/index.html")?;
    ensure!(seen == "written on the node\nprepared by init\n", "web sees in its volumes: {seen:?}");
    api::run_in(SMOKE, "web", "sh /node/write.sh")?;
    let path = Path::new(SHARED).join("from-pod");
    let back = fs::read_to_string(&path).doing(&format!("read {}", path.display()))?;
    ensure!(back == "written in the pod\n", "the node sees in the hostPath: {back:?}");
    let other = api::run_in(SMOKE, "fickle", "cat /shared/web")?;
    ensure!(other == "by web\n", "fickle sees in the emptyDir: {other:?}");
    let hosts = api::run_in(SMOKE, "web", "cat /etc/hosts")?;
    ensure!(hosts.contains(&address), "the kubelet's /etc/hosts is not in the container: {hosts}");
    Ok(())
}

pub(super) fn logs(_: &mut Smoke) -> Outcome {
    let web = api::log(SMOKE, "web", "")?;
    for line in ["prepared by init", &format!("web of {SMOKE} listens"), "a line on stderr"] {
        ensure!(web.lines().any(|l| l == line), "the log of web has no {line:?}: {web}");
    }
    let last = api::log(SMOKE, "web", "?tailLines=1&timestamps=true")?;
    ensure!(last.lines().count() == 1 && last.starts_with("20"), "the last line with its time: {last:?}");
    for (container, query, wanted) in [
        ("prepare", "", "init is done\n"),
        ("fickle", "", "second life\n"),
        ("fickle", "?previous=true", "first life\n"),
    ] {
        let log = api::log(SMOKE, container, query)?;
        ensure!(log == wanted, "the log of {container}{query} is {log:?}, not {wanted:?}");
    }
    Ok(())
}

pub(super) fn commands(_: &mut Smoke) -> Outcome {
    let both = api::run_in(SMOKE, "web", "sh /node/both.sh")?;
    ensure!(both.contains("to stdout") && both.contains("to stderr"), "a command's output: {both:?}");
    let served = api::run_in(SMOKE, "fickle", "wget -qO- http://127.0.0.1:8080/index.html")?;
    ensure!(served == "prepared by init\n", "fickle gets over localhost: {served:?}");
    Ok(())
}

pub(super) fn kube_system(smoke_run: &mut Smoke) -> Outcome {
    api::place("system.yaml", &NODE_NETWORK_POD.replace("NAMESPACE", "kube-system"))?;
    let pod = Pod::wait("kube-system", NODE_NETWORK, "the pod in kube-system to be ready", Pod::is_ready)?;
    let id = container_id(&pod, "agent")?;
    let log = smoke_run.crictl.wait_log(&id, "network namespace")?;
    let own = fs::read_link("/proc/self/ns/net").doing("look at the node's network namespace")?;
    let wanted = format!("network namespace {}, kernel {}", own.display(), node_kernel()?);
    ensure!(log.contains(&wanted), "a pod in kube-system should have {wanted}: {log}");
    Ok(())
}

fn container_id(pod: &Pod, name: &str) -> Outcome<String> {
    let status = pod.container(name)?;
    let id = status["containerID"].as_str().and_then(|id| id.strip_prefix("cofferdam://"));
    id.map(str::to_owned).ok_or_else(|| Failure(format!("container {name} has no id of Cofferdam's: {status}")))
}

pub(super) fn refused(_: &mut Smoke) -> Outcome {
    api::place("elsewhere.yaml", &NODE_NETWORK_POD.replace("NAMESPACE", "default"))?;
    let mut told = String::new();
    api::wait("an event that tells of the refusal", || {
        told = api::journal("FailedCreatePodSandBox")?;
        Ok(told.contains(NODE_NETWORK))
    })?;
    let named = told.split("use the runtime handler").nth(1).map(|rest| rest.trim_start_matches([' ', '"', '\\']));
    ensure!(named.is_some_and(|rest| rest.starts_with("host")), "the event does not name the handler: {told}");
    let pod = Pod::wait("default", NODE_NETWORK, "the refused pod to be known", |_| true)?;
    let waiting = pod.status("/containerStatuses/0/state/waiting/reason");
    ensure!(waiting == "ContainerCreating", "the refused pod's container is {}", pod.status("/containerStatuses"));
    api::withdraw("elsewhere.yaml")
}

/// What all running containers of the smoke are now.
fn lives() -> Outcome<Vec<String>> {
    let mut lives = smoke("the smoke's pod to be ready", Pod::is_ready)?.lives();
    let what = "the pod in kube-system to be ready";
    lives.extend(Pod::wait("kube-system", NODE_NETWORK, what, Pod::is_ready)?.lives());
    Ok(lives)
}

/// Restarts something; then the kubelet must see what it saw before, and its probes must go on.
fn unharmed(restart: impl Fn() -> Outcome) -> Outcome {
    let before = lives()?;
    let count = probed()?;
    restart()?;
    api::wait("the liveness probe to go on", || Ok(probed().is_ok_and(|now| now > count + 1)))?;
    let after = lives()?;
    ensure!(before == after, "before: {before:?}; after: {after:?}");
    Ok(())
}

pub(super) fn kubelet_restarts(_: &mut Smoke) -> Outcome {
    unharmed(api::restart)
}

pub(super) fn daemon_restarts(smoke_run: &mut Smoke) -> Outcome {
    unharmed(|| {
        systemctl(&["restart", "cofferdam.service"])?;
        daemon::wait_ready(&smoke_run.crictl)
    })
}

pub(super) fn nothing_left(smoke_run: &mut Smoke) -> Outcome {
    api::withdraw("smoke.yaml")?;
    api::withdraw("system.yaml")?;
    let crictl = &smoke_run.crictl;
    api::wait("the kubelet to remove its pods and their containers", || {
        Ok(crictl.run(&["pods", "-q"])?.is_empty() && crictl.run(&["ps", "-aq"])?.is_empty())
    })?;
    let mut left = Vec::new();
    let cleared = api::wait("the kubelet to clear up after its pods", || {
        left = remains();
        Ok(left.is_empty())
    });
    ensure!(cleared.is_ok(), "left behind: {left:?}");
    smoke_run.before.unchanged()?;
    let back = fs::read_to_string(Path::new(SHARED).join("from-pod")).doing("read the hostPath's file")?;
    ensure!(back == "written in the pod\n", "the hostPath lost what the pod wrote: {back:?}");
    systemctl(&["stop", "kubelet.service"]).map(drop)
}

/// What there is of pods in the kubelet's own folders and cgroups.
fn remains() -> Vec<PathBuf> {
    let mut found = entries("/var/lib/kubelet/pods");
    found.extend(entries("/var/log/pods"));
    for parent in ["/sys/fs/cgroup/kubepods", "/sys/fs/cgroup/kubepods/besteffort", "/sys/fs/cgroup/kubepods/burstable"]
    {
        found.extend(entries(parent).into_iter().filter(|path| path.is_dir() && is_a_pod(path)));
    }
    found
}

fn is_a_pod(cgroup: &Path) -> bool {
    cgroup.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pod"))
}

fn entries(folder: &str) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

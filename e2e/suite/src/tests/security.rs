//! What a pod may share with the node, and what confines it there.

use std::fs;

use serde_json::{Value, json};

use super::Test;
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Failure, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[
    ("host_namespaces_policy", host_namespaces_policy),
    ("apparmor_profiles", apparmor_profiles),
    ("user_namespaces", user_namespaces),
];

/// A pod of `namespace` with these namespace options.
fn pod(name: &str, namespace: &str, options: &Value) -> Pod {
    let mut pod = Pod::new(name).with("linux", json!({"security_context": {"namespace_options": options}}));
    pod.0["metadata"]["namespace"] = json!(namespace);
    pod
}

fn own(namespace: &str) -> Outcome<String> {
    let path = format!("/proc/self/ns/{namespace}");
    Ok(fs::read_link(&path).doing(&format!("read {path}"))?.display().to_string())
}

/// The default handler is vm: who asks for the node's namespaces is refused, but in kube-system.
fn host_namespaces_policy() -> Outcome {
    let crictl = Crictl::default();
    for (key, mode, word) in [("network", 2, "network"), ("pid", 2, "PID"), ("ipc", 2, "IPC")] {
        let asked = pod("policy", "default", &json!({key: mode}));
        let wanted = ["code = InvalidArgument", word, "handler \"host\"", "pods.host_namespaces_in"];
        // crictl quotes what it prints.
        let wanted: Vec<String> = wanted.iter().map(|w| w.replace('"', "\\\"")).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        crictl.refused(&["runp", &asked.file()?], &wanted)?;
    }
    let asked = pod("policy", "kube-system", &json!({"network": 2}));
    crictl.refused(&["runp", "--runtime", "vm", &asked.file()?], &["code = InvalidArgument", "network"])?;
    ensure!(crictl.run(&["pods", "-q"])?.is_empty(), "a refused pod is listed");

    let asked = pod("policy", "kube-system", &json!({"network": 2, "pid": 2, "ipc": 2})).with("hostname", json!(""));
    let id = crictl.run(&["runp", &asked.file()?])?;
    let script = "for n in net pid ipc mnt; do readlink /proc/self/ns/$n; done; echo whole";
    let mut container = Container::shell("policy", script);
    container.0["linux"] = json!({"security_context": {"namespace_options": {"network": 2, "pid": 2, "ipc": 2}}});
    let container = crictl.run_container(&id, &asked, &container)?;
    let log = crictl.wait_log(&container, "whole")?;
    for namespace in ["net", "pid", "ipc"] {
        ensure!(log.contains(&own(namespace)?), "the {namespace} namespace is not the node's: {log}");
    }
    ensure!(!log.contains(&own("mnt")?), "the mounts are the node's: {log}");
    let status = crictl.json(&["inspectp", "-o", "json", &id])?;
    let field = |pointer: &str| -> Outcome<String> {
        let value = status.pointer(pointer).ok_or_else(|| Failure(format!("status has no {pointer}: {status}")))?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    };
    ensure!(field("/info/kind")? == "host", "kind in the status: {status}");
    ensure!(field("/status/runtimeHandler")?.is_empty(), "handler in the status is not what was asked: {status}");
    ensure!(field("/status/linux/namespaces/options/network")? == "NODE", "network in the status: {status}");
    let journal = || -> Outcome<String> {
        let output = std::process::Command::new("journalctl")
            .args(["-u", "cofferdam", "-o", "cat", "--no-pager", "-n", "400"])
            .output()
            .doing("read the journal")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    wait_for("the log to say that the pod runs on the node", || {
        Ok(journal()?.lines().any(|l| l.contains(&id) && l.contains("runs as a host pod")))
    })?;
    crictl.remove_pod(&id)
}

/// A profile that lets everything be done but writes below /tmp.
const TEST_PROFILE: &str = "profile cofferdam-e2e-no-tmp flags=(attach_disconnected) {\n  file,\n  capability,\n  network,\n  signal,\n  deny /tmp/** w,\n}\n";

fn load_profile(text: &str) -> Outcome {
    let path = "/run/cofferdam-e2e/profile";
    fs::create_dir_all("/run/cofferdam-e2e").doing("make a folder for the profile")?;
    fs::write(path, text).doing("write the profile")?;
    let output =
        std::process::Command::new("apparmor_parser").args(["-K", "-r", path]).output().doing("run apparmor_parser")?;
    ensure!(output.status.success(), "apparmor_parser: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Which profile confines a container's init and what is executed in it, and what a profile forbids.
fn apparmor_profiles() -> Outcome {
    let crictl = Crictl::default();
    ensure!(
        fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.starts_with(b"Y")),
        "the node has no AppArmor"
    );
    load_profile(TEST_PROFILE)?;
    let asked = Pod::new("apparmor");
    let id = crictl.run_pod("host", &asked)?;
    let localhost = json!({"apparmor": {"profile_type": 2, "localhost_ref": "localhost/cofferdam-e2e-no-tmp"}});
    let rows = [
        ("none", json!({}), "cofferdam-default (enforce)"),
        ("runtime", json!({"apparmor": {"profile_type": 0}}), "cofferdam-default (enforce)"),
        ("unconfined", json!({"apparmor": {"profile_type": 1}}), "unconfined"),
        ("field", localhost.clone(), "cofferdam-e2e-no-tmp (enforce)"),
        ("string", json!({"apparmor_profile": "localhost/cofferdam-e2e-no-tmp"}), "cofferdam-e2e-no-tmp (enforce)"),
    ];
    let script = "cat /proc/self/attr/current; touch /tmp/x; touch /y && echo wrote; mount -t tmpfs x /mnt; sleep 1000";
    for (name, context, profile) in rows {
        let container = Container::shell(name, script).with("linux", json!({"security_context": context}));
        let container = crictl.run_container(&id, &asked, &container)?;
        let log = crictl.wait_log(&container, "wrote")?;
        ensure!(log.contains(profile), "{name}: not {profile}: {log}");
        ensure!(
            log.contains("/tmp/x: Permission denied") == profile.starts_with("cofferdam-e2e"),
            "{name}: the write to /tmp: {log}"
        );
        let inside = crictl.run(&["exec", "--sync", &container, "cat", "/proc/self/attr/current"])?;
        ensure!(inside.contains(profile), "{name}: an exec runs under {inside}, not {profile}");
        // Its own kind can be signalled, and so can it from outside.
        crictl.run(&["exec", "--sync", &container, "sh", "-c", "sleep 100 & kill -9 $!"])?;
        crictl.run(&["stop", "--timeout", "0", &container])?;
    }
    let missing = json!({"security_context": {"apparmor": {"profile_type": 2, "localhost_ref": "localhost/no-such"}}});
    let container = Container::shell("missing", script).with("linux", missing);
    let wanted = ["code = InvalidArgument", "no-such", "not loaded"];
    crictl.refused(&["create", &id, &container.file()?, &asked.file()?], &wanted)?;
    crictl.remove_pod(&id)?;

    let asked = Pod::new("apparmorvm");
    let id = crictl.run_pod("vm", &asked)?;
    let container = Container::shell("vm", script).with("linux", json!({"security_context": localhost}));
    let wanted = ["code = InvalidArgument", "the guest has no AppArmor", "host"];
    crictl.refused(&["create", &id, &container.file()?, &asked.file()?], &wanted)?;
    let default = json!({"security_context": {"apparmor": {"profile_type": 0}}});
    let container = Container::shell("vmdefault", "echo runs").with("linux", default);
    let container = crictl.run_container(&id, &asked, &container)?;
    crictl.wait_log(&container, "runs")?;
    crictl.remove_pod(&id)
}

/// Root of a host pod with users of its own is an ordinary user of the node, and works like any other pod's.
fn user_namespaces() -> Outcome {
    let crictl = Crictl::default();
    let info = crictl.json(&["info"])?;
    let handlers = info["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    for (handler, wanted) in [("host", true), ("vm", false), ("", false)] {
        let found = handlers.iter().find(|h| h["name"].as_str().unwrap_or_default() == handler);
        let told =
            found.is_some_and(|h| h["features"]["user_namespaces"] == true || h["features"]["userNamespaces"] == true);
        ensure!(told == wanted, "user namespaces of handler {handler:?} in the status: {info}");
    }
    let map = json!([{"container_id": 0, "host_id": 300_000, "length": 65_536}]);
    let options = json!({"userns_options": {"mode": 0, "uids": map, "gids": map}});
    let asked = pod("userns", "default", &options);
    crictl.refused(&["runp", "--runtime", "vm", &asked.file()?], &["code = InvalidArgument", "host"])?;
    let id = crictl.run_pod("host", &asked)?;
    let status = crictl.run(&["inspectp", "-o", "json", &id])?;
    ensure!(status.contains("300000"), "the mapping is not echoed: {status}");

    let volume = "/run/cofferdam-e2e/userns";
    fs::create_dir_all(volume).doing("make a volume")?;
    let script = "tr -s ' ' < /proc/self/uid_map; stat -c '%u:%g %n' /bin/busybox /etc/hosts /data; echo x > /data/made; \
                  nc -l -p 80 -e true & sleep 1; kill -0 $! && echo listens; echo whole; sleep 1000";
    let mut container = Container::shell("userns", script);
    container.0["linux"] = json!({"security_context": {"namespace_options": options}});
    container.0["mounts"] =
        json!([{"host_path": volume, "container_path": "/data", "uidMappings": map, "gidMappings": map}]);
    let container = crictl.run_container(&id, &asked, &container)?;
    let log = crictl.wait_log(&container, "whole")?;
    for wanted in [" 0 300000 65536", "0:0 /bin/busybox", "0:0 /etc/hosts", "0:0 /data", "listens"] {
        ensure!(log.contains(wanted), "no {wanted:?} in {log}");
    }
    let inside = crictl.run(&["exec", "--sync", &container, "sh", "-c", "tr -s ' ' < /proc/self/uid_map; id -u"])?;
    ensure!(inside.contains("0 300000 65536") && inside.ends_with('0'), "an exec has other users: {inside}");
    let pid = crictl.container_field(&container, "/info/pid").unwrap_or_default();
    if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
        ensure!(status.contains("Uid:\t300000"), "the container's root on the node: {status}");
    }
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(format!("{volume}/made")).doing("look at what the container made")?;
    ensure!(made.uid() == 0, "what root made in a mapped volume belongs to {}", made.uid());
    crictl.remove_pod(&id)?;
    fs::remove_dir_all(volume).doing("remove the volume")
}

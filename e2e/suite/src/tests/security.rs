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

/// Root of a pod with users of its own is an ordinary user of its machine, and works like any other pod's.
fn user_namespaces() -> Outcome {
    let crictl = Crictl::default();
    let info = crictl.json(&["info"])?;
    let handlers = info["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    for handler in ["host", "vm", ""] {
        let found = handlers.iter().find(|h| h["name"].as_str().unwrap_or_default() == handler);
        let told =
            found.is_some_and(|h| h["features"]["user_namespaces"] == true || h["features"]["userNamespaces"] == true);
        ensure!(told, "no user namespaces of handler {handler:?} in the status: {info}");
    }
    own_users(&crictl, "host")?;
    own_users(&crictl, "vm")
}

/// What a container with users of its pod's own does, and says of it.
const WITH_OWN_USERS: &str = "tr -s ' ' < /proc/self/uid_map; stat -c '%u:%g %n' /bin/busybox /etc/hosts /data /data/old; \
    stat -c 'plain %u' /plain; echo x > /data/made && mkdir /data/folder && ln -s made /data/link && echo x > /data/old; \
    echo x > /tmp/made && echo x > /made && echo x >> /etc/motd; stat -c '%u:%g %n' /tmp/made /made; \
    touch /data/given && chown 7:8 /data/given && stat -c '%u:%g %n' /data/given; \
    touch /plain/no 2>/dev/null || echo kept out; \
    nc -l -p 80 -e true & sleep 1; kill -0 $! && echo listens; \
    ping -c 1 -W 2 127.0.0.1 > /dev/null && echo pings; echo whole; sleep 1000";

fn own_users(crictl: &Crictl, handler: &str) -> Outcome {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    let map = json!([{"container_id": 0, "host_id": 300_000, "length": 65_536}]);
    let options = json!({"userns_options": {"mode": 0, "uids": map, "gids": map}});
    let asked = pod(&format!("userns-{handler}"), "default", &options);
    let id = crictl.run_pod(handler, &asked)?;
    let status = crictl.run(&["inspectp", "-o", "json", &id])?;
    ensure!(status.contains("300000"), "the mapping is not echoed: {status}");

    let folder = format!("/run/cofferdam-e2e/userns-{handler}");
    let (volume, plain) = (format!("{folder}/data"), format!("{folder}/plain"));
    for path in [&volume, &plain] {
        fs::create_dir_all(path).doing("make a volume")?;
    }
    let old = format!("{volume}/old");
    fs::write(&old, "")
        .and_then(|()| fs::set_permissions(&old, fs::Permissions::from_mode(0o600)))
        .doing("make a file")?;
    let mut container = Container::shell("userns", WITH_OWN_USERS);
    container.0["linux"] = json!({"security_context": {"namespace_options": options}});
    container.0["mounts"] = json!([
        {"host_path": volume, "container_path": "/data", "uidMappings": map, "gidMappings": map},
        {"host_path": plain, "container_path": "/plain"},
    ]);
    let container = crictl.run_container(&id, &asked, &container)?;
    let log = crictl.wait_log(&container, "whole")?;
    let all = [" 0 300000 65536", "0:0 /bin/busybox", "0:0 /etc/hosts", "0:0 /data", "0:0 /data/old", "plain 65534"];
    let more = ["0:0 /tmp/made", "0:0 /made", "7:8 /data/given", "kept out", "listens", "pings"];
    for wanted in all.into_iter().chain(more) {
        ensure!(log.contains(wanted), "{handler}: no {wanted:?} in {log}");
    }
    let inside = crictl.run(&["exec", "--sync", &container, "sh", "-c", "tr -s ' ' < /proc/self/uid_map; id -u"])?;
    ensure!(inside.contains("0 300000 65536") && inside.ends_with('0'), "an exec has other users: {inside}");
    let pid = crictl.container_field(&container, "/info/pid").unwrap_or_default();
    if handler == "host"
        && let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status"))
    {
        ensure!(status.contains("Uid:\t300000"), "the container's root on the node: {status}");
    }
    for (name, owner) in [("made", (0, 0)), ("folder", (0, 0)), ("link", (0, 0)), ("old", (0, 0)), ("given", (7, 8))] {
        let made = fs::symlink_metadata(format!("{volume}/{name}")).doing("look at what the container made")?;
        ensure!((made.uid(), made.gid()) == owner, "{handler}: {name} belongs to {}:{}", made.uid(), made.gid());
    }
    let written = fs::read_to_string(&old).doing("read what the container wrote")?;
    ensure!(written == "x\n", "the container wrote {written:?}");
    crictl.remove_pod(&id)?;
    fs::remove_dir_all(folder).doing("remove the volumes")
}

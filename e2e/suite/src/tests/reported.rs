//! What users of other runtimes reported as bugs, the same on both kinds of pods.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Check, Test, in_one_pod, with_both};
use crate::crictl::{self, Container, Crictl, LOGS, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};
use crate::inside;

pub(super) const TESTS: &[Test] = &[
    ("reported_of_other_runtimes", || with_both(|handler| in_one_pod(handler, &pod(), CHECKS))),
    ("full_disk_for_a_moment", full_disk),
    ("failing_network_plugin_at_the_end", failing_plugin),
];

const CHECKS: &[Check] = &[
    ("container_like_containerds", one_container),
    ("debug_container_with_all_rights", debug),
    ("terminal_with_the_nodes_dev", nodes_dev),
    ("forwarded_port_after_a_reset", reset),
    ("log_disk_that_is_full", full_log_disk),
];

const FOLDER: &str = "/run/cofferdam-e2e/reported";
/// The limits of the container that looks at its own.
const MEMORY: u32 = 64 << 20;

/// As people write it for crictl: without a DNS configuration.
fn pod() -> Pod {
    let security = json!({"security_context": {"namespace_options": {"pid": 1}}});
    Pod::new("reported").with("dns_config", Value::Null).with("linux", security)
}

fn exec(container: &str, script: &str) -> Outcome<String> {
    Crictl::default().run(&["exec", "--sync", container, "sh", "-c", script])
}

fn prints(container: &str, script: &str, wanted: &str) -> Outcome {
    let got = exec(container, script)?;
    ensure!(got == wanted, "{script}: printed {got:?}, not {wanted:?}");
    Ok(())
}

/// Runs a command of the node, which must succeed.
fn on_node(program: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new(program);
    command.args(args);
    let output = crictl::run(command, program)?;
    ensure!(output.code == 0, "{program} {}: {}", args.join(" "), output.stderr.trim());
    Ok(())
}

/// A folder of the node that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Outcome<Self> {
        let folder = Self(FOLDER.into());
        let _ = fs::remove_dir_all(&folder.0);
        fs::create_dir_all(&folder.0).doing("make the folder of volumes")?;
        Ok(folder)
    }

    fn file(&self, name: &str, bytes: &[u8], mode: u32) -> Outcome<String> {
        let path = self.0.join(name);
        fs::write(&path, bytes).doing(&format!("write {name}"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).doing(&format!("set the mode of {name}"))?;
        Ok(path.display().to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program for i386: writes a line and ends.
fn program_of_32_bits(line: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 84;
    const CODE: u32 = 31;
    let length = u32::try_from(line.len()).unwrap_or(0);
    let size = HEADERS + CODE + length;
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1, BASE + HEADERS, 52, 0, 0].iter().flat_map(|word: &u32| word.to_le_bytes()));
    elf.extend([52u16, 32, 1, 40, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1, 0, BASE, BASE, size, size, 5, 4096].iter().flat_map(|word: &u32| word.to_le_bytes()));
    // mov eax, 4 (write); mov ebx, 1; mov ecx, LINE; mov edx, LENGTH; int 0x80; mov eax, 1 (exit);
    // xor ebx, ebx; int 0x80
    elf.extend(b"\xb8\x04\0\0\0\xbb\x01\0\0\0\xb9");
    elf.extend((BASE + HEADERS + CODE).to_le_bytes());
    elf.push(0xba);
    elf.extend(length.to_le_bytes());
    elf.extend(b"\xcd\x80\xb8\x01\0\0\0\x31\xdb\xcd\x80");
    elf.truncate(usize::try_from(HEADERS + CODE).unwrap_or(0));
    elf.extend(line);
    elf
}

/// One container shows most of them.
fn one_container(handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let folder = Folder::new()?;
    let (volume, given) = (folder.0.join("volume"), folder.file("given", b"given", 0o644)?);
    fs::create_dir(&volume).doing("make a volume")?;
    symlink("/run/not/there/file", volume.join("to-file")).doing("make a link")?;
    symlink("/run/not/here", volume.join("middle")).doing("make a link")?;
    folder.file("volume/acl", b"secret", 0o600)?;
    folder.file("volume/i386", &program_of_32_bits(b"thirty-two\n"), 0o755)?;
    let mounts = json!([
        {"host_path": "/usr", "container_path": inside::NODE_USR, "readonly": true},
        {"host_path": volume, "container_path": "/v"},
        {"host_path": given, "container_path": "/v/to-file"},
        {"host_path": given, "container_path": "/v/middle/a/file"},
    ]);
    let linux = json!({
        "resources": {"memory_limit_in_bytes": MEMORY, "cpu_period": 100_000, "cpu_quota": 50_000},
        "security_context": {"seccomp": {"profile_type": 0}, "namespace_options": {"pid": 1},
            "capabilities": {"add_capabilities": ["NET_ADMIN", "NET_RAW"]}},
    });
    let container = Container::shell("many", "exec sleep 100000").with("mounts", mounts).with("linux", linux);
    let crictl = Crictl::default();
    let container = crictl.run_container(id, pod, &container)?;

    let settings = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range | xargs";
    prints(&container, settings, "0 0 2147483647")?;
    prints(&container, "cat /v/to-file /v/middle/a/file /run/not/there/file", "givengivengiven")?;
    prints(&container, "/v/i386", "thirty-two")?;
    prints(
        &container,
        "dd if=/dev/zero of=/dev/file bs=1M count=8 2>/dev/null && rm /dev/file; df -k /dev | grep -c 65536",
        "1",
    )?;
    let own = "cd /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); cat memory.max cpu.max | xargs";
    prints(&container, own, &format!("{MEMORY} 50000 100000"))?;
    prints(&container, "ulimit -c; ulimit -u", "unlimited\nunlimited")?;
    let node = fs::read_to_string("/etc/resolv.conf").doing("read the node's resolv.conf")?;
    let got = exec(&container, "cat /etc/resolv.conf")?;
    ensure!(got.trim() == node.trim(), "without a DNS configuration, resolv.conf is {got:?}, the node's {node:?}");

    exec(&container, &inside::command("unnamed-file /v"))?;
    let named = fs::read_to_string(volume.join("named")).doing("read the file that got a name")?;
    ensure!(named == "whole", "the file that got a name holds {named:?}");
    exec(&container, &inside::command("acl /v/acl"))?;
    mesh(&container)?;
    info(&crictl, handler, &container)?;
    let mut left: Vec<String> = fs::read_dir(&volume)
        .doing("list the volume")?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    left.sort();
    ensure!(left == ["acl", "i386", "middle", "named", "to-file"], "the volume was changed: {left:?}");

    // The ACL counts: for the user that it names, and for no other.
    for (user, wanted) in [(1234, "secret"), (1235, "refused")] {
        let linux = json!({"security_context": {"run_as_user": {"value": user}, "run_as_group": {"value": user}}});
        let container = Container::shell(&format!("user-{user}"), "cat /v/acl || echo refused")
            .with("mounts", json!([{"host_path": volume, "container_path": "/v"}]))
            .with("linux", linux);
        let container = crictl.run_container(id, pod, &container)?;
        crictl.wait_state(&container, "CONTAINER_EXITED")?;
        let log = crictl.log(&container)?;
        ensure!(log.contains(wanted), "user {user} reads a file with an ACL: {log:?}, not {wanted:?}");
    }
    Ok(())
}

/// What a service mesh's init container does.
fn mesh(container: &str) -> Outcome {
    let usr = inside::NODE_USR;
    let iptables = format!(
        "XTABLES_LIBDIR={usr}/lib/x86_64-linux-gnu/xtables {usr}/lib64/ld-linux-x86-64.so.2 \
         --library-path {usr}/lib/x86_64-linux-gnu {usr}/sbin/xtables-nft-multi iptables -w -t nat"
    );
    let rules = format!(
        "set -e; nc -lk -p 15001 -e echo by-proxy & i='{iptables}'; sh -c \"$i -N MESH\"; \
         sh -c \"$i -A OUTPUT -p tcp -j MESH\"; sh -c \"$i -A MESH -m owner --uid-owner 1337 -j RETURN\"; \
         sh -c \"$i -A MESH -p tcp --dport 7777 -j REDIRECT --to-ports 15001\""
    );
    exec(container, &format!("({rules}) >/tmp/mesh 2>&1 || cat /tmp/mesh; cat /tmp/mesh"))?;
    wait_for("a connection that iptables redirects", || {
        let got = exec(container, "nc -w 10 10.0.2.15 7777 </dev/null; true")?;
        Ok(got == "by-proxy")
    })
}

/// What node agents look for.
fn info(crictl: &Crictl, handler: &str, container: &str) -> Outcome {
    let status = crictl.json(&["inspect", "-o", "json", container])?;
    let at = |pointer: &str| status.pointer(&format!("/info/{pointer}")).cloned().unwrap_or_default();
    ensure!(at("config/metadata/name") == "many", "info.config is {}", at("config"));
    ensure!(at("runtimeSpec/process/args/0") == "sh", "info.runtimeSpec.process is {}", at("runtimeSpec/process"));
    let pid = if handler == "vm" { at("monitorPid") } else { at("pid") };
    let alive = Path::new(&format!("/proc/{pid}/status")).exists();
    ensure!(pid.as_u64().is_some_and(|pid| pid > 1) && alive, "info names process {pid}, which is not there");
    let names = fs::read_dir("/run/netns").doing("list the network namespaces")?.count();
    ensure!(names > 0, "the pod's network namespace has no name in /run/netns");
    Ok(())
}

/// `kubectl debug --profile=sysadmin`: the kubelet sends the pod's configuration of now with each
/// container.
fn debug(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let target = crictl.run_container(id, pod, &Container::shell("target", "exec sleep 77777"))?;
    let security = json!({"privileged": true, "namespace_options": {"pid": 3, "target_id": target}});
    let now =
        pod.clone().with("linux", json!({"security_context": {"privileged": true, "namespace_options": {"pid": 1}}}));
    let debug = Container::shell("debug", "exec sleep 100000").with("linux", json!({"security_context": security}));
    let debug = crictl.run_container(id, &now, &debug)?;
    prints(&debug, "ps | grep -v grep | grep -c 77777", "1")?;
    let last: u32 = exec(&debug, "cat /proc/sys/kernel/cap_last_cap")?.parse().doing("read a number")?;
    let all = format!("CapEff:\t{:016x}", (2u64 << last) - 1);
    prints(&debug, "grep CapEff /proc/self/status", &all)
}

/// Storage and device plugins mount the node's /dev, and people ask for terminals in them.
fn nodes_dev(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let container = Container::shell("dev", "exec sleep 100000")
        .with("mounts", json!([{"host_path": "/dev", "container_path": "/dev"}]));
    let container = crictl.run_container(id, pod, &container)?;
    let socket = crictl::SOCKET;
    let asked = format!("crictl -r unix://{socket} exec -it {container} sh -c 'tty; test -t 0 && echo is-one'");
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &asked, "/dev/null"]);
    let output = crictl::run(terminal, "a terminal in a container with the node's /dev")?;
    ensure!(output.stdout.contains("/dev/pts/") && output.stdout.contains("is-one"), "no terminal: {output:?}");
    Ok(())
}

/// What a server answers through a forwarded port; what came until the connection broke, if it did.
fn ask(port: u16, data: &[u8]) -> Vec<u8> {
    let mut answer = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
        let _ = stream.write_all(data);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

/// A command that ends with it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reset(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let server = Container::new(
        "server",
        crictl::BUSYBOX,
        &["nc", "-lk", "-p", "7105", "-e", "sh", "-c", "read x; echo got-$x"],
    );
    crictl.run_container(id, pod, &server)?;
    let mut command = crictl.command(&["port-forward", id, "17105:7105"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _forward = Ended(command.spawn().doing("start crictl")?);
    wait_for("an answer through a forwarded port", || Ok(ask(17105, b"one\n") == b"got-one\n"))?;
    // The server ends with data unread, so its kernel resets the connection.
    let mut long = b"two\n".to_vec();
    long.resize(1 << 20, 0);
    ask(17105, &long);
    wait_for("an answer after a reset", || Ok(ask(17105, b"three\n") == b"got-three\n"))
}

/// Lines are lost while the disk of the logs is full; the program goes on, and so do its logs when
/// there is room.
fn full_log_disk(_handler: &'static str, id: &str, pod: &Pod) -> Outcome {
    let crictl = Crictl::default();
    let folder = pod.0["log_directory"].as_str().unwrap_or(LOGS).to_owned();
    on_node("mount", &["-t", "tmpfs", "-o", "size=256k", "log", &folder])?;
    let script = "i=0; while [ $i -lt 8000 ]; do echo 0123456789012345678901234567890123456789 $i; i=$((i+1)); done; \
                  touch /tmp/done; while :; do echo tick; sleep 1; done";
    let outcome = crictl.run_container(id, pod, &Container::shell("chatty", script)).and_then(|container| {
        wait_for("the program to go on", || Ok(exec(&container, "ls /tmp")? == "done"))?;
        let log = crictl.container_field(&container, "/status/logPath")?;
        fs::File::options().write(true).open(&log).and_then(|file| file.set_len(0)).doing("empty the log")?;
        wait_for("a line after there was room", || Ok(crictl.log(&container)?.contains("tick")))?;
        crictl.run(&["rm", "-f", &container]).map(drop)
    });
    on_node("umount", &["-l", &folder])?;
    outcome
}

/// A moment without a free block under the daemon's state: what failed can be tried again without a
/// restart of anything.
fn full_disk() -> Outcome {
    const FILL: &str = "/var/lib/cofferdam-e2e-fill";
    let crictl = Crictl::default();
    let pod = Pod::new("full");
    let id = crictl.run_pod("host", &pod)?;
    let long = Container::shell("long", "true").with("annotations", json!({"long": "x".repeat(60_000)}));
    let fill = fs::File::create(FILL).doing("make a file")?;
    let (mut at, mut size) = (0, 1u64 << 30);
    while size >= 4096 {
        match rustix::fs::fallocate(&fill, rustix::fs::FallocateFlags::empty(), at, size) {
            Ok(()) => at += size,
            Err(_) => size /= 2,
        }
    }
    let refused =
        (0..4).map(|_| crictl.attempt(&["create", &id, &long.file()?, &pod.file()?])).collect::<Outcome<Vec<_>>>();
    let stopped = crictl.run(&["stopp", &id]);
    fs::remove_file(FILL).doing("give the room back")?;
    drop(fill);
    ensure!(refused?.iter().any(|output| output.code != 0), "a full disk refused nothing: it was not full");
    stopped?;
    let again = Pod::new("room");
    let other = crictl.run_pod("host", &again)?;
    crictl.run_container(&other, &again, &Container::shell("alive", "exec sleep 1000"))?;
    crictl.remove_pod(&other)?;
    crictl.remove_pod(&id)
}

/// A plugin that fails when a pod ends: its containers have ended all the same, and the next stop
/// does what is missing.
fn failing_plugin() -> Outcome {
    const PLUGINS: [&str; 2] = ["/opt/cni/bin/bridge", "/usr/lib/cni/bridge"];
    let crictl = Crictl::default();
    let pod = Pod::new("plugin");
    let id = crictl.run_pod("host", &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("sleeper", "exec sleep 1000"))?;
    let plugin = PLUGINS.into_iter().find(|path| Path::new(path).exists()).unwrap_or(PLUGINS[0]);
    on_node("mount", &["--bind", "/bin/false", plugin])?;
    let stopped = crictl.attempt(&["stopp", &id]);
    let state = crictl.container_field(&container, "/status/state");
    on_node("umount", &[plugin])?;
    ensure!(stopped?.code != 0, "a plugin that failed was not told of");
    ensure!(state? == "CONTAINER_EXITED", "the container runs on after its pod was stopped");
    crictl.remove_pod(&id)
}

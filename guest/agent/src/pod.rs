//! ConfigurePod: the pod's identity, and Shutdown: its end.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::Arc;

use cofferdam_proto::agent::ConfigurePodRequest;
use cofferdam_proto::supervisor::UserRange;
use rustix::mount::MoveMountFlags;

use crate::agent::{Agent, Mode, Shared};
use crate::container::rootfs::new_mount;
use crate::error::{Doing, Error, Result};
use crate::{network, sys};

/// Size of /dev/shm when the pod names none.
const DEFAULT_SHM: u64 = 64 << 20;
/// Longest file of the pod.
const MAX_FILE: usize = 1 << 20;

/// Gives the pod its identity. The same values again are a no-op.
///
/// # Errors
/// Says which part failed; the call may be repeated.
pub async fn configure(agent: &Arc<Agent>, request: ConfigurePodRequest) -> Result<()> {
    let mut known = agent.pod.lock().await;
    let vm = agent.mode == Mode::Vm;
    if vm {
        agent.before_pod.must_be_mounted().await?;
    } else if !request.interfaces.is_empty() || !request.netlink_routes.is_empty() {
        return Err(Error::invalid("interfaces and routes of a host pod are set by CNI"));
    }
    if known.as_ref() == Some(&request) {
        return Ok(());
    }
    for text in [&request.resolv_conf, &request.hosts] {
        if text.len() > MAX_FILE || text.contains('\0') {
            return Err(Error::invalid("a file of the pod is too long or holds a NUL"));
        }
    }
    check_hostname(&request.hostname)?;
    let sysctls = check_sysctls(&request.sysctls, vm, agent.shared)?;
    match request.users {
        Some(_) if !vm => return Err(Error::invalid("users of a host pod come with its supervisor")),
        // Before all that is to belong to them.
        Some(users) => agent.make_users(UserRange { host_id: users.host_id, length: users.length }).await?,
        None => {}
    }

    if !request.hostname.is_empty() && !agent.shared.uts {
        rustix::system::sethostname(request.hostname.as_bytes()).doing("set the host name")?;
    }
    files(agent, &request)?;
    shm(agent, request.shm_size)?;
    if vm {
        network::configure(&request).await?;
    }
    // After the interfaces, whose settings some of them are.
    for sysctl in &sysctls {
        sysctl.set()?;
    }
    *known = Some(request);
    Ok(())
}

/// The defaults, when a container comes before ConfigurePod.
///
/// # Errors
/// As `configure`.
pub async fn configure_default(agent: &Arc<Agent>) -> Result<()> {
    if agent.pod.lock().await.is_none() {
        if agent.mode == Mode::Vm {
            return Err(Error::precondition("a microVM's containers come after ConfigurePod"));
        }
        shm(agent, 0)?;
    }
    Ok(())
}

fn check_hostname(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if name.len() > 64 || !name.bytes().all(plain) {
        return Err(Error::invalid(format!("{name:?} is not a host name")));
    }
    Ok(())
}

/// A setting of the kernel.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sysctl {
    path: PathBuf,
    /// As the request has it: whoever asked for it knows no path.
    name: String,
    value: String,
}

impl Sysctl {
    fn set(&self) -> Result<()> {
        let lacks = if self.path.exists() { "" } else { ", which this kernel does not have for a pod" };
        sys::write_knob(&self.path, &self.value).asked(format!("set sysctl {} to {:?}{lacks}", self.name, self.value))
    }
}

/// Only what belongs to the pod's own namespaces; in a microVM the whole kernel does.
fn check_sysctls(sysctls: &HashMap<String, String>, vm: bool, shared: Shared) -> Result<Vec<Sysctl>> {
    let mut checked = Vec::new();
    for (name, value) in sysctls {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@');
        let parts: Vec<String> = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'/') => name.split('/').map(str::to_owned).collect(),
            // Interface names may hold dots, which then are written as slashes.
            _ => name.split('.').map(|p| p.replace('/', ".")).collect(),
        };
        if !name.bytes().all(plain) || parts.len() < 2 || parts.iter().any(|p| p.is_empty() || p == "." || p == "..") {
            return Err(Error::invalid(format!("{name:?} is not a sysctl")));
        }
        if value.len() > 1024 || value.bytes().any(|b| b.is_ascii_control() && b != b'\t') {
            return Err(Error::invalid(format!("the value of sysctl {name} is not one short line")));
        }
        let ipc = name.starts_with("kernel.shm")
            || name.starts_with("kernel.msg")
            || name == "kernel.sem"
            || name.starts_with("fs.mqueue.");
        let net = parts[0] == "net";
        let own = (net && !shared.net) || (ipc && !shared.ipc);
        if !vm && !own {
            return Err(Error::invalid(format!("sysctl {name} does not belong to the pod: it would change the node")));
        }
        let path = parts.iter().fold(PathBuf::from("/proc/sys"), |p, part| p.join(part));
        checked.push(Sysctl { path, name: name.clone(), value: value.clone() });
    }
    checked.sort();
    Ok(checked)
}

fn files(agent: &Agent, request: &ConfigurePodRequest) -> Result<()> {
    let dir = agent.dirs.run.join("etc");
    fs::create_dir_all(&dir).doing(format!("make {}", dir.display()))?;
    let hostname = hostname(agent, request);
    let hostname = if hostname.is_empty() { hostname } else { format!("{hostname}\n") };
    for (name, text) in [("resolv.conf", &request.resolv_conf), ("hosts", &request.hosts), ("hostname", &hostname)] {
        let path = agent.dirs.pod_file(name);
        if text.is_empty() {
            continue;
        }
        fs::write(&path, text).doing(format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            .doing(format!("open {} to all", path.display()))?;
        if let Some(users) = agent.users() {
            let root = Some(users.root());
            chown(&path, root, root).doing(format!("give {} to the pod's root", path.display()))?;
        }
    }
    Ok(())
}

/// Name in /etc/hostname: a pod without a name of its own has its node's. A guest does not know that.
fn hostname(agent: &Agent, request: &ConfigurePodRequest) -> String {
    if !request.hostname.is_empty() || agent.mode == Mode::Vm {
        return request.hostname.clone();
    }
    let node = crate::container::init::hostname();
    if check_hostname(&node).is_ok() { node } else { String::new() }
}

fn shm(agent: &Agent, size: u64) -> Result<()> {
    let path = agent.dirs.shm();
    if path.exists() {
        return Ok(());
    }
    fs::create_dir_all(&path).doing(format!("make {}", path.display()))?;
    let size = if size == 0 { DEFAULT_SHM } else { size };
    let mut data = vec![("mode".to_owned(), Some("1777".to_owned())), ("size".to_owned(), Some(size.to_string()))];
    if let Some(users) = agent.users() {
        data.extend(["uid", "gid"].map(|key| (key.to_owned(), Some(users.root().to_string()))));
    }
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let tree = new_mount("tmpfs", &data, attributes)?;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .doing("mount the pod's /dev/shm")
}

/// Kills and deletes all containers.
///
/// # Errors
/// What could not be deleted; everything is killed all the same.
pub async fn shut_down(agent: &Arc<Agent>) -> Result<()> {
    let containers = agent.containers();
    for container in &containers {
        container.cgroup.kill();
    }
    let mut result = Ok(());
    for container in containers {
        // A microVM's disk goes with it.
        let gone = if agent.mode == Mode::Vm { container.end().await } else { container.remove(agent).await };
        match gone {
            Ok(()) => agent.forget(&container.spec.id),
            Err(e) => result = Err(e),
        }
    }
    agent.end_pause();
    if agent.mode == Mode::Host {
        let _ = rustix::mount::unmount(agent.dirs.shm(), rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir(agent.dirs.shm());
        crate::container::memory::clear(&agent.dirs);
        let _ = fs::remove_dir_all(agent.dirs.run.join("etc"));
        let _ = fs::remove_dir(agent.dirs.mapped_layers());
    }
    result
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn sysctls_by_allow_list_and_grammar() {
        let own = Shared::default();
        let node_net = Shared { net: true, ..own };
        for (name, value, shared, vm, good) in [
            ("net.ipv4.ip_forward", "1", own, false, true),
            ("net/ipv4/ip_forward", "1", own, false, true),
            ("net.ipv4.conf.eth0/1.forwarding", "1", own, false, true),
            ("net.ipv4.ip_forward", "1", node_net, false, false),
            ("kernel.shmmax", "1", own, false, true),
            ("kernel.core_pattern", "|/x", own, false, false),
            ("kernel.core_pattern", "core", own, true, true),
            ("vm.swappiness", "1", own, false, false),
            ("net..x", "1", own, false, false),
            ("net.../../kernel.core_pattern", "1", own, false, false),
            ("net/../kernel/core_pattern", "1", own, false, false),
            ("net.ipv4.ip_forward", "1\n2", own, false, false),
            ("net.ipv4.ip forward", "1", own, false, false),
            ("net", "1", own, true, false),
            ("", "1", own, true, false),
        ] {
            let map = HashMap::from([(name.to_owned(), value.to_owned())]);
            assert_eq!(check_sysctls(&map, vm, shared).is_ok(), good, "{name}={value:?}");
        }
        let map = HashMap::from([("net.ipv4.conf.eth0/1.forwarding".to_owned(), "1".to_owned())]);
        let got = check_sysctls(&map, false, own).unwrap();
        assert_eq!(got[0].path, Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
    }

    #[test]
    fn a_sysctl_that_the_kernel_lacks_or_refuses_is_named_as_it_was_asked_for() {
        // Neither changes anything: the one is not there, the other only takes a number.
        for (name, words) in
            [("net.ipv4.no_such_thing", "does not have"), ("kernel.shmmni", "kernel.shmmni to \"many\"")]
        {
            let map = HashMap::from([(name.to_owned(), "many".to_owned())]);
            let error = check_sysctls(&map, true, Shared::default()).unwrap()[0].set().unwrap_err();
            let status = tonic::Status::from(error);
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
            assert!(status.message().contains(name) && status.message().contains(words), "{status}");
        }
    }

    #[test]
    fn host_names() {
        for (name, good) in [("", true), ("pod-1.x_y", true), ("a b", false), ("a\nb", false), (&"x".repeat(65), false)]
        {
            assert_eq!(check_hostname(name).is_ok(), good, "{name:?}");
        }
    }
}

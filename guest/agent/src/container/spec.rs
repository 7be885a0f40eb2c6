//! A container as it was asked for: the request, checked once, in the types that the rest works with.

use std::ffi::CString;
use std::path::PathBuf;

use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::{CreateContainerRequest, Mount, Process, Resources, User};
use rustix::process::{Resource, Rlimit};

use super::capabilities::Caps;
use super::devices::Devices;
use super::memory::Owner;
use super::paths::{check_absolute, check_relative};
use super::seccomp::{self, Filter};
use super::swapped::check_link;
use super::volumes;
use crate::error::{Doing, Error, Result};

/// Most mounts, masked paths, groups and the like of one container.
const MAX_ITEMS: usize = 4096;
/// The kernel's own limit on overlay layers.
const MAX_LAYERS: usize = 500;
/// Type of a mount that the agent adds for a volume of the image; no request has it.
const IMAGE_VOLUME: &str = "image volume";

/// One container.
#[derive(Debug)]
pub struct Spec {
    /// Its id.
    pub id: String,
    /// Layer directories, topmost first.
    pub lower: Vec<PathBuf>,
    /// No writes to the root.
    pub readonly_rootfs: bool,
    /// Besides the standard ones.
    pub mounts: Vec<MountSpec>,
    /// Its first process.
    pub process: ProcessSpec,
    /// Limits.
    pub resources: Resources,
    /// Which pid namespace.
    pub pid: PidMode,
    /// For [`PidMode::Target`].
    pub pid_target: String,
    /// Hidden.
    pub masked: Vec<PathBuf>,
    /// Not written to.
    pub readonly: Vec<PathBuf>,
    /// All of the machine.
    pub privileged: bool,
    /// Nodes and what may be done with them.
    pub devices: Devices,
    /// Keep a pipe to its standard input.
    pub stdin: bool,
    /// Standard input is for one attached client.
    pub stdin_once: bool,
    /// Above its cgroup.
    pub cgroup_parent: PathBuf,
}

/// What a process is, but for its user's numbers.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Never empty.
    pub args: Vec<CString>,
    /// `KEY=value`.
    pub env: Vec<CString>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// Resolved in the image.
    pub user: User,
    /// Has a terminal.
    pub terminal: bool,
    /// Capabilities.
    pub caps: Caps,
    /// `PR_SET_NO_NEW_PRIVS`
    pub no_new_privileges: bool,
    /// System calls.
    pub seccomp: Option<Filter>,
    /// Limits of the process.
    pub rlimits: Vec<(Resource, Rlimit)>,
    /// Who dies first.
    pub oom_score_adj: Option<i32>,
    /// Empty: none.
    pub apparmor: String,
}

/// How changes of mounts travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They do not.
    Private,
    /// In only.
    Slave,
    /// In and out.
    Shared,
}

/// One mount.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// In the container.
    pub destination: PathBuf,
    /// As the agent (on a node: the node) sees it.
    pub source: PathBuf,
    /// `bind`, or a file system.
    pub kind: String,
    /// No writes.
    pub readonly: bool,
    /// No writes below either.
    pub recursive_readonly: bool,
    /// With what is mounted below.
    pub recursive: bool,
    /// Owners are shown as the pod's users.
    pub idmap: bool,
    /// How changes travel.
    pub propagation: Propagation,
    /// `MOUNT_ATTR_*`
    pub attributes: u64,
    /// Parameters of the file system.
    pub data: Vec<(String, Option<String>)>,
    /// Below a read-only source, and yet writable.
    pub writable_below: Vec<PathBuf>,
    /// Layers of an image volume, topmost first.
    pub lower: Vec<PathBuf>,
    /// What of an image or a memory volume is mounted.
    pub sub_path: PathBuf,
    /// Name of a memory volume.
    pub memory: String,
    /// Of `sub_path` in a memory volume.
    pub owner: Owner,
    /// Where a volume's link points that the node swaps; empty: it has none.
    pub data_link: String,
}

impl MountSpec {
    /// Whether it is a bind mount.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind"
    }

    /// Whether it is an image volume.
    pub fn is_image(&self) -> bool {
        self.kind == "image"
    }

    /// Whether it is a volume in memory that the pod's containers share.
    pub fn is_memory(&self) -> bool {
        self.kind == "memory"
    }

    /// Whether it is a volume that the image declares.
    pub fn is_image_volume(&self) -> bool {
        self.kind == IMAGE_VOLUME
    }

    /// A volume that the image declares at `destination`.
    pub(super) fn of_image_volume(destination: PathBuf) -> Self {
        Self {
            destination,
            source: PathBuf::new(),
            kind: IMAGE_VOLUME.to_owned(),
            readonly: false,
            recursive_readonly: false,
            recursive: false,
            idmap: false,
            propagation: Propagation::Private,
            attributes: 0,
            data: Vec::new(),
            writable_below: Vec::new(),
            lower: Vec::new(),
            sub_path: PathBuf::new(),
            memory: String::new(),
            owner: Owner::default(),
            data_link: String::new(),
        }
    }

    pub(super) fn parse(m: &Mount) -> Result<Self> {
        let destination = check_absolute(&m.destination)?;
        const KINDS: [&str; 9] = ["bind", "image", "memory", "tmpfs", "proc", "sysfs", "mqueue", "cgroup2", "devpts"];
        if !KINDS.contains(&m.r#type.as_str()) {
            return Err(Error::invalid(format!("cannot mount {:?}: {:?} is not a type", m.destination, m.r#type)));
        }
        let source = if m.r#type == "bind" { check_absolute(&m.source)? } else { PathBuf::new() };
        let (lower, sub_path) = image_parts(m)?;
        if m.r#type == "memory" {
            check_id(&m.memory)?;
        }
        if m.writable_below.len() > MAX_ITEMS {
            return Err(Error::invalid(format!("{:?} has more than {MAX_ITEMS} mounts below it", m.source)));
        }
        if !m.data_link.is_empty() {
            check_link(&m.data_link)?;
        }
        let mut propagation = match m.propagation.as_str() {
            "" | "private" | "rprivate" => Propagation::Private,
            "slave" | "rslave" => Propagation::Slave,
            "shared" | "rshared" => Propagation::Shared,
            other => return Err(Error::invalid(format!("{other:?} is not a propagation"))),
        };
        let (mut readonly, mut recursive) = (m.readonly, m.recursive);
        let (mut attributes, mut data, mut idmap) = (0, Vec::new(), false);
        for option in &m.options {
            match option.as_str() {
                "ro" => readonly = true,
                "rw" | "bind" | "defaults" | "suid" | "dev" | "exec" | "relatime" | "private" | "rprivate" => {}
                "idmap" if matches!(m.r#type.as_str(), "bind" | "image") => idmap = true,
                "rbind" => recursive = true,
                "slave" | "rslave" => propagation = Propagation::Slave,
                "shared" | "rshared" => propagation = Propagation::Shared,
                "nosuid" => attributes |= libc::MOUNT_ATTR_NOSUID,
                "nodev" => attributes |= libc::MOUNT_ATTR_NODEV,
                "noexec" => attributes |= libc::MOUNT_ATTR_NOEXEC,
                "noatime" => attributes |= libc::MOUNT_ATTR_NOATIME,
                "strictatime" => attributes |= libc::MOUNT_ATTR_STRICTATIME,
                "nodiratime" => attributes |= libc::MOUNT_ATTR_NODIRATIME,
                "nosymfollow" => attributes |= libc::MOUNT_ATTR_NOSYMFOLLOW,
                other if matches!(m.r#type.as_str(), "bind" | "image") => {
                    return Err(Error::invalid(format!("{other:?} is not an option of a mount of type {}", m.r#type)));
                }
                other => data.push(match other.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (other.to_owned(), None),
                }),
            }
        }
        Ok(Self {
            destination,
            source,
            kind: m.r#type.clone(),
            readonly: readonly || m.recursive_readonly,
            recursive_readonly: m.recursive_readonly,
            recursive,
            idmap,
            propagation,
            attributes,
            data,
            writable_below: m.writable_below.iter().map(|p| check_relative(p)).collect::<Result<_>>()?,
            lower,
            sub_path,
            memory: m.memory.clone(),
            owner: Owner { uid: m.sub_uid, gid: m.sub_gid, mode: m.sub_mode },
            data_link: m.data_link.clone(),
        })
    }
}

/// Layers of an image volume, and the path in it or in a memory volume; nothing for other mounts.
fn image_parts(m: &Mount) -> Result<(Vec<PathBuf>, PathBuf)> {
    let sub_path = if m.sub_path.is_empty() { PathBuf::new() } else { check_relative(&m.sub_path)? };
    match m.r#type.as_str() {
        "image" => {}
        "memory" => return Ok((Vec::new(), sub_path)),
        _ => return Ok(Default::default()),
    }
    if m.lower.is_empty() || m.lower.len() > MAX_LAYERS {
        return Err(Error::invalid(format!("an image volume has 1 to {MAX_LAYERS} layers, not {}", m.lower.len())));
    }
    let lower = m.lower.iter().map(|p| check_absolute(p)).collect::<Result<_>>()?;
    Ok((lower, sub_path))
}

/// Refuses ids that are no single, plain path component.
///
/// # Errors
/// Says so.
pub fn check_id(id: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if id.is_empty() || id.len() > 128 || !id.bytes().all(plain) || id.starts_with('.') {
        return Err(Error::invalid(format!("{id:?} is not a container's id")));
    }
    Ok(())
}

fn strings(list: &[impl AsRef<[u8]>], what: &str) -> Result<Vec<CString>> {
    list.iter().map(|s| crate::sys::c_string(s).asked(format!("use {what}"))).collect()
}

fn rlimit(name: &str) -> Option<Resource> {
    Some(match name {
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_STACK" => Resource::Stack,
        _ => return None,
    })
}

impl ProcessSpec {
    fn parse(p: Process) -> Result<Self> {
        if p.args.first().is_none_or(String::is_empty) {
            return Err(Error::invalid("there is no command to run"));
        }
        let caps = Caps::parse(p.capabilities.as_ref())?;
        let mut rlimits = Vec::new();
        for r in &p.rlimits {
            let resource = rlimit(&r.r#type)
                .or_else(|| rlimit(&format!("RLIMIT_{}", r.r#type.to_ascii_uppercase())))
                .ok_or_else(|| Error::invalid(format!("{:?} is not an rlimit", r.r#type)))?;
            let value = |n: u64| (n != u64::MAX).then_some(n);
            if r.soft > r.hard {
                return Err(Error::invalid(format!("the soft {} is above the hard one", r.r#type)));
            }
            rlimits.push((resource, Rlimit { current: value(r.soft), maximum: value(r.hard) }));
        }
        if p.oom_score_adj.is_some_and(|n| !(-1000..=1000).contains(&n)) {
            return Err(Error::invalid("oom_score_adj is not within -1000 and 1000"));
        }
        let env = strings(&p.env, "an environment variable")?;
        if env.iter().any(|e| e.as_bytes().first() == Some(&b'=') || !e.as_bytes().contains(&b'=')) {
            return Err(Error::invalid("an environment variable is not KEY=value"));
        }
        let apparmor = p.apparmor_profile;
        if !apparmor.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::invalid("the AppArmor profile's name is not a word"));
        }
        Ok(Self {
            args: strings(&p.args, "an argument")?,
            env,
            cwd: if p.cwd.is_empty() { PathBuf::from("/") } else { check_absolute(&p.cwd)? },
            user: p.user.unwrap_or_default(),
            terminal: p.terminal,
            seccomp: seccomp::filter(p.seccomp.as_ref(), &caps)?,
            caps,
            no_new_privileges: p.no_new_privileges,
            rlimits,
            oom_score_adj: p.oom_score_adj,
            apparmor: if apparmor == "unconfined" { String::new() } else { apparmor },
        })
    }
}

impl Spec {
    /// Checks a request.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(r: CreateContainerRequest) -> Result<Self> {
        check_id(&r.id)?;
        if r.lower.is_empty() || r.lower.len() > MAX_LAYERS {
            return Err(Error::invalid(format!("a container has 1 to {MAX_LAYERS} layers, not {}", r.lower.len())));
        }
        if [r.mounts.len(), r.masked_paths.len(), r.readonly_paths.len(), r.devices.len()]
            .iter()
            .any(|n| *n > MAX_ITEMS)
        {
            return Err(Error::invalid(format!("more than {MAX_ITEMS} mounts, paths or devices")));
        }
        let paths = |list: &[String]| list.iter().map(|p| check_absolute(p)).collect::<Result<Vec<_>>>();
        let namespaces = r.namespaces.unwrap_or_default();
        let pid = PidMode::try_from(namespaces.pid)
            .map_err(|_| Error::invalid(format!("pid namespace {} is unknown", namespaces.pid)))?;
        let mut mounts = r.mounts.iter().map(MountSpec::parse).collect::<Result<_>>()?;
        volumes::add(&mut mounts, &r.image_volumes)?;
        Ok(Self {
            id: r.id,
            lower: paths(&r.lower)?,
            readonly_rootfs: r.readonly_rootfs,
            mounts,
            process: ProcessSpec::parse(r.process.ok_or_else(|| Error::invalid("there is no process"))?)?,
            resources: r.resources.unwrap_or_default(),
            pid,
            pid_target: namespaces.pid_target,
            masked: paths(&r.masked_paths)?,
            readonly: paths(&r.readonly_paths)?,
            privileged: r.privileged,
            devices: Devices::parse(&r.devices, r.privileged)?,
            stdin: r.stdin,
            stdin_once: r.stdin_once,
            cgroup_parent: PathBuf::from(r.cgroup_parent),
        })
    }

    /// Whether a mount of the request takes the place of a standard one.
    pub fn mounts_over(&self, destination: &str) -> bool {
        self.mounts.iter().any(|m| m.destination.as_os_str() == destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CreateContainerRequest {
        CreateContainerRequest {
            id: "a".into(),
            lower: vec!["/".into()],
            process: Some(Process { args: vec!["x".into()], ..Process::default() }),
            ..CreateContainerRequest::default()
        }
    }

    #[test]
    fn bad_requests_are_refused() {
        assert!(Spec::parse(request()).is_ok());
        type Spoil = fn(&mut CreateContainerRequest);
        let mount = |kind: &str| Mount { destination: "/x".into(), r#type: kind.into(), ..Mount::default() };
        assert!(
            MountSpec::parse(&Mount { lower: vec!["/l".into()], sub_path: "a/b".into(), ..mount("image") }).is_ok()
        );
        for bad in [
            mount("image"),
            mount("memory"),
            Mount { memory: "../x".into(), ..mount("memory") },
            Mount { memory: "a".into(), sub_path: "a/../..".into(), ..mount("memory") },
            Mount { lower: vec!["l".into()], ..mount("image") },
            Mount { lower: vec!["/l".into(); 501], ..mount("image") },
            Mount { lower: vec!["/l".into()], sub_path: "/etc".into(), ..mount("image") },
            Mount { lower: vec!["/l".into()], sub_path: "../etc".into(), ..mount("image") },
            Mount { lower: vec!["/l".into()], options: vec!["size=1".into()], ..mount("image") },
            Mount { source: "/v".into(), writable_below: vec!["a/../..".into()], ..mount("bind") },
            Mount { source: "/v".into(), writable_below: vec!["/a".into()], ..mount("bind") },
            Mount { source: "/v".into(), writable_below: vec![String::new()], ..mount("bind") },
            Mount { source: "/v".into(), data_link: "../etc".into(), ..mount("bind") },
        ] {
            assert!(MountSpec::parse(&bad).is_err(), "{bad:?}");
        }
        let rows: [(&str, Spoil); 14] = [
            ("empty id", |r| r.id.clear()),
            ("id that climbs", |r| r.id = "..".into()),
            ("id with a slash", |r| r.id = "a/b".into()),
            ("no layer", |r| r.lower.clear()),
            ("too many layers", |r| r.lower = vec!["/".into(); 501]),
            ("relative layer", |r| r.lower = vec!["x".into()]),
            ("no process", |r| r.process = None),
            ("no command", |r| r.process.as_mut().unwrap().args.clear()),
            ("NUL in an argument", |r| r.process.as_mut().unwrap().args.push("a\0b".into())),
            ("NUL in a variable", |r| r.process.as_mut().unwrap().env.push(b"A=\0".into())),
            ("variable without a name", |r| r.process.as_mut().unwrap().env.push(b"=x".into())),
            ("directory that climbs", |r| r.process.as_mut().unwrap().cwd = "/a/../..".into()),
            ("masked path that climbs", |r| r.masked_paths.push("/../etc".into())),
            ("unknown mount", |r| {
                r.mounts.push(Mount { destination: "/x".into(), r#type: "nfs".into(), ..Mount::default() });
            }),
        ];
        for (name, spoil) in rows {
            let mut r = request();
            spoil(&mut r);
            assert_eq!(Spec::parse(r).err().map(|e| e.kind()), Some(crate::error::Kind::Invalid), "{name}");
        }
    }
}

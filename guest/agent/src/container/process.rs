//! The last steps before a container's program runs, the same for its init process and for an exec.
//!
//! Everything here happens in the child, which is root and has all capabilities until [`Launch::drop_rights`].

use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use rustix::thread::{Gid, Uid};

use super::channel::Inner;
use super::spec::ProcessSpec;
use super::stdio;
use super::user::Resolved;
use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::sys;
use crate::users::Users;

/// PATH of a process whose environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A process about to run a program.
#[derive(Debug)]
pub struct Launch<'a> {
    /// What it runs.
    pub spec: &'a ProcessSpec,
    /// Who it is.
    pub user: &'a Resolved,
    /// To the agent.
    pub channel: &'a Inner,
    /// Limit on open files when the request names none.
    pub nofile: Rlimit,
    /// It dies with the agent.
    pub die_with_agent: bool,
    /// Users of the pod's own, which it enters after [`Launch::prepare`].
    pub users: Option<&'a Users>,
}

/// Settings that need /proc as the agent sees it, so they come before the root is changed. What a request leaves open is
/// inherited, but never the agent's own protection.
///
/// # Errors
/// When the kernel refuses.
pub fn early(spec: &ProcessSpec) -> Result<()> {
    // Always set: the agent's own score protects it from the kernel, and must not be inherited.
    let score = spec.oom_score_adj.unwrap_or(0);
    sys::write_knob(Path::new("/proc/self/oom_score_adj"), score.to_string()).doing("set oom_score_adj")?;
    if !spec.apparmor.is_empty() {
        let knob = Path::new("/proc/self/attr/apparmor/exec");
        let knob = if knob.exists() { knob } else { Path::new("/proc/self/attr/exec") };
        sys::write_knob(knob, format!("exec {}", spec.apparmor))
            .asked(format!("use the AppArmor profile {}", spec.apparmor))?;
    }
    Ok(())
}

/// The environment with what every program expects.
pub fn environment(spec: &ProcessSpec, user: &Resolved, hostname: &str) -> Vec<CString> {
    let mut env = spec.env.clone();
    // An empty HOME counts as none.
    env.retain(|e| e.as_bytes() != b"HOME=");
    let mut add = |key: &str, value: &str| {
        let prefix = format!("{key}=");
        if !env.iter().any(|e| e.as_bytes().starts_with(prefix.as_bytes()))
            && let Ok(entry) = CString::new(prefix + value)
        {
            env.push(entry);
        }
    };
    add("PATH", DEFAULT_PATH);
    if !hostname.is_empty() {
        add("HOSTNAME", hostname);
    }
    if spec.terminal {
        add("TERM", "xterm");
    }
    add("HOME", user.home.as_deref().unwrap_or("/"));
    env
}

impl<'a> Launch<'a> {
    /// A process of a container of `agent`'s.
    pub fn new(agent: &'a Agent, spec: &'a ProcessSpec, user: &'a Resolved, channel: &'a Inner) -> Self {
        let die_with_agent = agent.node_pid;
        Self { spec, user, channel, nofile: agent.nofile, die_with_agent, users: agent.users() }
    }

    /// The user's number outside the pod's user namespace.
    fn owner(&self) -> Result<Uid> {
        let uid = self.user.uid;
        Ok(Uid::from_raw(self.users.map_or(Ok(uid), |users| users.on_node(uid))?))
    }

    /// Makes `streams` descriptors 0, 1, 2, closes all others but the channel, and sets limits and the directory.
    /// With one stream, it is a terminal and becomes the controlling one.
    ///
    /// # Errors
    /// When the kernel refuses, or the directory is outside the root.
    pub fn prepare(&self, stdin: OwnedFd, others: Option<(OwnedFd, OwnedFd)>) -> Result<()> {
        // Descriptors 0, 1, 2 are open in the agent, so these are higher and none overwrites another.
        sys::dup_to(&stdin, 0).doing("set standard input")?;
        if let Some((stdout, stderr)) = &others {
            // A program may open its own output again by name (/dev/stdout), which a pipe of root's forbids its user.
            for pipe in [&stdin, stdout, stderr] {
                if super::paths::file_type(pipe).doing("look at a pipe")? == rustix::fs::FileType::Fifo {
                    rustix::fs::fchown(pipe, Some(self.owner()?), None).doing("give a pipe to the user")?;
                }
            }
            sys::dup_to(stdout, 1).doing("set standard output")?;
            sys::dup_to(stderr, 2).doing("set standard error")?;
        } else {
            sys::dup_to(&stdin, 1).doing("set standard output")?;
            sys::dup_to(&stdin, 2).doing("set standard error")?;
            rustix::process::ioctl_tiocsctty(&stdin).doing("take the terminal")?;
            rustix::fs::fchown(&stdin, Some(self.owner()?), None).doing("give the terminal to the user")?;
        }
        std::mem::forget((stdin, others)); // close_range closes them.
        let mut first = 3;
        let mut kept: Vec<u32> =
            self.users.iter().map(|users| users.descriptor().as_raw_fd().cast_unsigned()).collect();
        kept.push(self.channel.number());
        kept.sort_unstable();
        for number in kept {
            sys::close_range(first, number - 1).doing("close descriptors")?;
            first = number + 1;
        }
        sys::close_range(first, u32::MAX).doing("close descriptors")?;
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        setrlimit(Resource::Nofile, self.nofile).doing("set the limit on open files")?;
        // Programs may dump core, as under other runtimes; only the daemon and what it runs beside them must not.
        let most = getrlimit(Resource::Core).maximum;
        setrlimit(Resource::Core, Rlimit { current: most, maximum: most }).doing("set the limit on core files")?;
        for (resource, limit) in &self.spec.rlimits {
            setrlimit(*resource, *limit).doing(format!("set the limit {resource:?}"))?;
        }
        sys::new_session_keyring();
        Ok(())
    }

    /// Goes to the working directory; false when this user may not yet (root may be kept out by the file system).
    ///
    /// # Errors
    /// When it is missing or outside the root.
    pub fn enter_directory(&self) -> Result<bool> {
        let name = self.spec.cwd.display();
        match rustix::process::chdir(&self.spec.cwd) {
            Ok(()) => {}
            Err(Errno::ACCESS) => return Ok(false),
            Err(e) => return Err(e).asked(format!("enter the working directory {name}")),
        }
        // The kernel says "(unreachable)" of a directory outside the root, which a descriptor in /proc may lead to.
        let cwd = rustix::process::getcwd(Vec::new()).asked(format!("find out where {name} is"))?;
        if cwd.as_bytes().first() != Some(&b'/') {
            return Err(Error::invalid(format!("the working directory {name} is outside the container's root")));
        }
        Ok(true)
    }

    /// Becomes the user with the capabilities and the seccomp filter that were asked for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn drop_rights(&self, entered: bool) -> Result<()> {
        let spec = self.spec;
        spec.caps.bound()?;
        // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so it must be now; with it, as late as possible.
        if let (Some(filter), false) = (&spec.seccomp, spec.no_new_privileges) {
            filter.load()?;
        }
        rustix::thread::set_keep_capabilities(true).doing("keep capabilities")?;
        let groups: Vec<Gid> = self.user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        rustix::thread::set_thread_groups(&groups).doing("set the groups")?;
        rustix::thread::set_thread_res_gid(gid, gid, gid).doing(format!("become group {}", self.user.gid))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).doing(format!("become user {}", self.user.uid))?;
        rustix::thread::set_keep_capabilities(false).doing("keep capabilities")?;
        spec.caps.apply()?;
        if self.die_with_agent {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).doing("die with the agent")?;
        }
        if !entered && !self.enter_directory()? {
            let name = spec.cwd.display();
            return Err(Error::invalid(format!("the user may not enter the working directory {name}")));
        }
        if spec.no_new_privileges {
            rustix::thread::set_no_new_privs(true).doing("set no_new_privs")?;
            if let Some(filter) = &spec.seccomp {
                filter.load()?;
            }
        }
        Ok(())
    }

    /// Runs the program; returns why it did not.
    pub fn exec(&self, env: &[CString]) -> Error {
        let args = &self.spec.args;
        let Some(name) = args.first() else { return Error::invalid("there is no command to run") };
        let shown = name.to_string_lossy().into_owned();
        let text = |e: std::io::Error| -> Error {
            let why = match e.raw_os_error() {
                Some(libc::ENOENT) => "not found: there is no such file, or its interpreter is missing".to_owned(),
                Some(libc::EACCES) => "permission denied".to_owned(),
                Some(libc::ENOEXEC) => "exec format error: it is not a program for this machine".to_owned(),
                _ => e.to_string(),
            };
            Error::invalid(format!("cannot run {shown:?}: {why}"))
        };
        if name.as_bytes().contains(&b'/') {
            return text(sys::execve(name, args, env));
        }
        let path = env.iter().rev().find_map(|e| e.as_bytes().strip_prefix(b"PATH=")).unwrap_or_default();
        let mut denied = None;
        for dir in path.split(|b| *b == b':') {
            let dir = if dir.is_empty() { Path::new(".") } else { Path::new(OsStr::from_bytes(dir)) };
            let file = dir.join(OsStr::from_bytes(name.as_bytes()));
            let Ok(file) = CString::new(file.as_os_str().as_bytes()) else { continue };
            let error = sys::execve(&file, args, env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => denied = Some(error),
                _ => return text(error),
            }
        }
        match denied {
            Some(error) => text(error),
            None => Error::invalid(format!("cannot run {shown:?}: executable file not found in $PATH")),
        }
    }
}

/// Descriptors 0, 1, 2 of a process without a terminal.
///
/// # Errors
/// When the root has no null device.
pub fn or_null(stdin: Option<OwnedFd>) -> Result<OwnedFd> {
    stdin.map_or_else(stdio::null, Ok)
}

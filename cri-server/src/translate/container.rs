//! CreateContainer's configuration and the image's, checked whole and turned into what the agent is
//! asked.

use cofferdam_image_store::{Image, Reference};
use cofferdam_proto::agent::namespaces::Pid;
use cofferdam_proto::agent::{self, Namespaces, Process};
use cofferdam_proto::cri::{ContainerConfig, ImageSpec, LinuxContainerSecurityContext, NamespaceMode};

use super::devices::{self, Disk};
use super::mounts::Volume;
use super::{apparmor, capabilities, cdi, cgroups, mounts, resources, seccomp, selinux, signal, text, user, users};
use crate::apparmor::Kernel;
use crate::error::CriError;
use crate::records::{ContainerPhase, ContainerRecord, Info, PodRecord, UserRecord};

/// Most arguments, variables or paths of one container.
const MAX_ITEMS: usize = 16_384;
/// Longest of them: the kernel's own limit (MAX_ARG_STRLEN).
const MAX_STRING: usize = 128 << 10;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a checked request leads to.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    /// The record, phase `Creating`.
    pub(crate) record: ContainerRecord,
    /// What the agent is asked, without layers and volumes, which have no paths of the agent's yet.
    pub(crate) request: agent::CreateContainerRequest,
    /// Volumes, in the order in which they are mounted.
    pub(crate) volumes: Vec<Volume>,
    /// Block devices for a microVM, which the agent does not see yet.
    pub(crate) disks: Vec<Disk>,
}

/// Checks the configuration of a container that gets `id`, in a pod as [`super::pod::as_sent`]
/// shows it. Blocks: a seccomp profile or CDI specifications may have to be read, and devices
/// looked at.
pub(crate) fn plan(
    id: &str,
    pod: &PodRecord,
    asked: &ContainerConfig,
    image: &Image,
    now: i64,
) -> Result<ContainerPlan, CriError> {
    let metadata = asked.metadata.as_ref().ok_or_else(|| CriError::invalid("container config has no metadata"))?;
    if let Some(kind) = &image.artifact {
        let name = image.repo_tags.first().or(image.repo_digests.first()).unwrap_or(&image.id);
        return Err(CriError::State(format!(
            "{name} is an OCI artifact ({kind}) and no container image: it has no program to run; mount it as an \
             image volume"
        )));
    }
    text::name("container name", &metadata.name, 253)?;
    let linux = asked.linux.clone().unwrap_or_default();
    let context = linux.security_context.clone().unwrap_or_default();
    if context.privileged && !pod.privileged {
        return Err(CriError::invalid(
            "a privileged container needs a privileged pod sandbox, and the sandbox_config of the request is not",
        ));
    }
    let selinux_kernel = selinux::Kernel::default();
    selinux::check("the container", context.selinux_options.as_ref(), context.privileged, &selinux_kernel)?;
    cgroups::check(&context)?;
    if !asked.log_path.is_empty() {
        crate::container_log::check(&asked.log_path).map_err(|e| CriError::invalid(e.to_string()))?;
    }
    let limits = linux.resources.clone().unwrap_or_default();
    let spec = asked.image.clone().unwrap_or_default();
    let stop_signal = signal::of_cri(asked.stop_signal)
        .ok_or_else(|| CriError::invalid(format!("unknown stop signal {}", asked.stop_signal)))?
        .or_else(|| image.config.stop_signal.as_deref().and_then(signal::parse))
        .unwrap_or(signal::TERM);
    let folders = cdi::FOLDERS.map(std::path::Path::new);
    let edits = cdi::edits(pod.kind, &cdi::asked(&asked.cdi_devices, &asked.annotations)?, &folders)?;
    let volumes = mounts::volumes(&edits.mounts(&asked.mounts), pod.kind, pod.namespaces.users)?;
    let (devices, disks) = devices::given(pod.kind, &asked.devices)?;
    let mut request = agent::CreateContainerRequest {
        id: id.to_owned(),
        readonly_rootfs: context.readonly_rootfs,
        process: Some(process(pod, asked, &context, &limits, image)?),
        resources: Some(resources::agent(&limits, pod.kind)?),
        namespaces: Some(namespaces(pod, &context)?),
        masked_paths: paths("masked path", &context.masked_paths, context.privileged)?,
        readonly_paths: paths("read-only path", &context.readonly_paths, context.privileged)?,
        privileged: context.privileged,
        devices,
        stdin: asked.stdin,
        stdin_once: asked.stdin_once,
        stop_signal,
        image_volumes: image_volumes(image)?,
        ..Default::default()
    };
    edits.apply(&mut request);
    let record = ContainerRecord {
        id: id.to_owned(),
        pod: pod.id.clone(),
        name: metadata.name.clone(),
        attempt: metadata.attempt,
        phase: ContainerPhase::Creating,
        image_digest: image_digest(&spec, image),
        image_name: image_name(&spec, image),
        user_image: spec.user_specified_image,
        image_annotations: spec.annotations,
        image: spec.image,
        image_id: image.id.clone(),
        created_at: now,
        started_at: 0,
        finished_at: 0,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        labels: asked.labels.clone(),
        annotations: asked.annotations.clone(),
        mounts: asked.mounts.iter().map(mounts::record).collect(),
        log_path: asked.log_path.clone(),
        log_directory: pod.log_directory.clone(),
        resources: linux.resources.as_ref().map(resources::record),
        user: UserRecord::default(),
        stop_signal,
        terminal: asked.tty,
        agent_pid: 0,
        info: Info::default(),
        unanswered: String::new(),
        disks: Vec::new(),
    };
    Ok(ContainerPlan { record, request, volumes, disks })
}

/// `repository@digest`: of the repository that the pod's author named, if the image came from
/// there.
fn image_digest(spec: &ImageSpec, image: &Image) -> String {
    let named = if spec.user_specified_image.is_empty() { &spec.image } else { &spec.user_specified_image };
    let repository = named.parse().map(|reference: Reference| reference.name() + "@").ok();
    let of_it = |digest: &&String| repository.as_ref().is_some_and(|name| digest.starts_with(name.as_str()));
    image.repo_digests.iter().find(of_it).or(image.repo_digests.first()).cloned().unwrap_or_default()
}

/// The image as people know it, for the status. The kubelet creates containers by the image's id:
/// its author's name for it is shown then, whole where the image has it, or else the image's first
/// tag.
fn image_name(spec: &ImageSpec, image: &Image) -> String {
    let named = if spec.user_specified_image.is_empty() { &spec.image } else { &spec.user_specified_image };
    if let Some(whole) = named.parse().ok().map(|reference: Reference| reference.to_string())
        && image.repo_tags.contains(&whole)
    {
        return whole;
    }
    let bare = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_owned();
    let by_id = spec.user_specified_image.is_empty() && bare(&image.id).starts_with(&bare(named));
    image.repo_tags.first().filter(|_| by_id).unwrap_or(named).clone()
}

fn process(
    pod: &PodRecord,
    asked: &ContainerConfig,
    context: &LinuxContainerSecurityContext,
    limits: &cofferdam_proto::cri::LinuxContainerResources,
    image: &Image,
) -> Result<Process, CriError> {
    let cwd = match (asked.working_dir.as_str(), image.config.working_dir.as_str()) {
        ("", "") => "/",
        ("", image) => image,
        (asked, _) => asked,
    };
    text::line("working_dir", cwd, 4096)?;
    if !cwd.starts_with('/') {
        return Err(CriError::invalid(format!("working_dir {cwd:?} is not absolute")));
    }
    // The kubelet's values lie within -1000 and 1000; others would make the kernel refuse the
    // start.
    let oom = limits.oom_score_adj.clamp(-1000, 1000);
    Ok(Process {
        args: args(asked, image)?,
        env: env(pod, asked, image)?,
        cwd: cwd.to_owned(),
        user: Some(user::user(context, &image.config.user)?),
        terminal: asked.tty,
        capabilities: Some(capabilities::sets(context.capabilities.as_ref(), context.privileged)?),
        no_new_privileges: context.no_new_privs,
        seccomp: Some(seccomp::profile(context)?),
        rlimits: Vec::new(),
        oom_score_adj: i32::try_from(oom).ok(),
        apparmor_profile: apparmor::profile(pod.kind, context, &Kernel::default())?,
    })
}

/// Where the image wants volumes. A relative path begins at the root, as in other runtimes.
fn image_volumes(image: &Image) -> Result<Vec<String>, CriError> {
    let absolute = image.config.volumes.iter().map(|path| {
        text::line("a volume of the image", path, 4096)?;
        Ok(if path.starts_with('/') { path.clone() } else { format!("/{path}") })
    });
    absolute.collect()
}

/// CRI's `command` takes the place of the image's entrypoint and arguments; `args` that of its
/// arguments alone. An entrypoint that is one empty word is none: so a Dockerfile unsets it.
fn args(asked: &ContainerConfig, image: &Image) -> Result<Vec<String>, CriError> {
    let config = &image.config;
    let unset = matches!(&config.entrypoint[..], [word] if word.is_empty());
    let entrypoint: &[String] = if unset { &[] } else { &config.entrypoint };
    let (first, rest) = match (asked.command.is_empty(), asked.args.is_empty()) {
        (false, _) => (&asked.command[..], &asked.args),
        (true, false) => (entrypoint, &asked.args),
        (true, true) => (entrypoint, &config.cmd),
    };
    let args: Vec<String> = first.iter().chain(rest).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(CriError::invalid("no command: neither the container nor the image names one"));
    }
    check_strings("argument", &args)?;
    Ok(args)
}

fn check_strings(what: &str, list: &[String]) -> Result<(), CriError> {
    if list.len() > MAX_ITEMS {
        return Err(CriError::invalid(format!("more than {MAX_ITEMS} of {what}")));
    }
    match list.iter().find(|s| s.contains('\0') || s.len() > MAX_STRING) {
        Some(bad) => {
            let shown = crate::node::shorten(bad);
            Err(CriError::invalid(format!("{what} {shown:?} has a NUL or is longer than {MAX_STRING} bytes")))
        }
        None => Ok(()),
    }
}

/// The image's variables, in its order, then the container's own; a later one takes the place of an
/// earlier one of its name. One of the image's without `=` takes an earlier one away, as in other
/// runtimes. Values are bytes: a Secret's need not be text.
fn env(pod: &PodRecord, asked: &ContainerConfig, image: &Image) -> Result<Vec<Vec<u8>>, CriError> {
    let mut env: Vec<(&str, &[u8])> = vec![("PATH", DEFAULT_PATH.as_bytes())];
    if !pod.hostname.is_empty() {
        env.push(("HOSTNAME", pod.hostname.as_bytes()));
    }
    if asked.tty {
        env.push(("TERM", b"xterm"));
    }
    let image = image.config.env.iter().map(|e| e.split_once('=').map_or((&e[..], None), |(key, v)| (key, Some(v))));
    for (key, value) in image.clone() {
        text::line("the name of the image's environment variable", key, MAX_STRING)?;
        // Programs copy it into files that are read by lines, as /etc/passwd is.
        if key == "HOME" {
            text::line("the image's HOME", value.unwrap_or_default(), 4096)?;
        }
    }
    let image = image.map(|(key, value)| ("the image's", key, value.map(str::as_bytes)));
    let own = asked.envs.iter().map(|e| ("the container's", e.key.as_str(), Some(e.value.as_slice())));
    for (whose, key, value) in image.chain(own) {
        let Some(value) = value else {
            env.retain(|(known, _)| *known != key);
            continue;
        };
        if key.is_empty() || key.contains(['=', '\0']) || value.contains(&0) || key.len() + value.len() > MAX_STRING {
            let shown = crate::node::shorten(key);
            return Err(CriError::invalid(format!(
                "{whose} environment variable {shown:?} has no name, an = in it, a NUL, or is longer than {MAX_STRING} bytes"
            )));
        }
        match env.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => env.push((key, value)),
        }
    }
    if env.len() > MAX_ITEMS {
        return Err(CriError::invalid(format!("more than {MAX_ITEMS} environment variables")));
    }
    Ok(env.into_iter().map(|(key, value)| [key.as_bytes(), b"=", value].concat()).collect())
}

fn namespaces(pod: &PodRecord, context: &LinuxContainerSecurityContext) -> Result<Namespaces, CriError> {
    let options = context.namespace_options.clone().unwrap_or_default();
    let node = i32::from(NamespaceMode::Node);
    let pid = match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Pod) => Pid::Pod,
        Ok(NamespaceMode::Container) => Pid::Container,
        Ok(NamespaceMode::Node) if pod.namespaces.pid != node => {
            return Err(CriError::invalid("the container wants the node's pid namespace and its pod sandbox does not"));
        }
        Ok(NamespaceMode::Node) => Pid::Node,
        Ok(NamespaceMode::Target) if options.target_id.is_empty() => {
            return Err(CriError::invalid("pid namespace TARGET needs a target_id"));
        }
        Ok(NamespaceMode::Target) => Pid::Target,
        Err(_) => return Err(CriError::invalid(format!("unknown pid namespace mode {}", options.pid))),
    };
    users::of_container(options.userns_options.as_ref(), pod.namespaces.users)?;
    Ok(Namespaces {
        pid: pid.into(),
        pid_target: if pid == Pid::Target { options.target_id } else { String::new() },
        ipc_node: pod.namespaces.ipc == node,
    })
}

fn paths(what: &str, list: &[String], privileged: bool) -> Result<Vec<String>, CriError> {
    if privileged {
        return Ok(Vec::new());
    }
    for path in list {
        text::name(what, path, 4096)?;
        if !path.starts_with('/') {
            return Err(CriError::invalid(format!("{what} {path:?} is not absolute")));
        }
    }
    Ok(list.to_vec())
}

#[cfg(test)]
pub(super) mod tests;

//! A container's init process, from the fork to its program.
//!
//! ```text
//!  agent's mount namespace      take the pod's /dev/shm and files
//!  the node's                   take the sources of bind mounts (so that mounts travel as the pod asked)
//!  one of its own               image volumes, overlay, standard mounts, mounts of the request, devices, masks; change the root
//! ```
//!
//! In a microVM the agent's namespace is the node's. All mounts die with the container's last process, so there is nothing to unmount.

use std::path::Path;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::os::fd::{AsFd, OwnedFd};

use super::channel::{Inner, Report};
use super::memory;
use super::mounts::{self, Trees};
use super::process::{self, Launch};
use super::rootfs::{self, Layer};
use super::spec::{MountSpec, Spec};
use super::stdio::{self, Inside};
use super::{dev, paths, user, volumes};
use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::users::Users;

/// Runs in the child; the result is its exit status.
pub fn run(agent: &Agent, spec: &Spec, layer: &Layer, inside: Inside, channel: Inner) -> u8 {
    let error = match set_up(agent, spec, layer, inside, &channel) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    let _ = channel.report(&Report::Failed(error.kind(), error.chain()), None);
    128
}

fn set_up(
    agent: &Agent,
    spec: &Spec,
    layer: &Layer,
    inside: Inside,
    channel: &Inner,
) -> Result<std::convert::Infallible, Error> {
    rustix::process::setsid().doing("start a session")?;
    crate::sys::default_signals();
    rustix::process::umask(rustix::fs::Mode::empty());
    process::early(&spec.process)?;

    let mut trees = take_trees(agent, spec)?;

    unshare_mounts(spec.privileged)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).doing("make mounts private")?;

    trees.binds = sources(agent, spec, layer, &mut trees)?;
    let root = match agent.mapping() {
        Some(users) => {
            let lower = rootfs::map_layers(&spec.lower, users, &agent.dirs.mapped_layers())?;
            rootfs::mount_overlay(&lower, layer, &agent.dirs.run)?
        }
        None => rootfs::mount_overlay(&spec.lower, layer, &agent.dirs.run)?,
    };
    // By the image's own files: a volume over /etc must not decide who a named user is.
    let mut user = user::resolve(&root, &spec.process.user)?;
    volumes::fill(&root, &spec.mounts, layer, agent.users().map_or(0, Users::root))?;
    if let Some(users) = agent.users() {
        users.own_what_is_made()?;
    }
    mounts::standard(&root, spec, &mut trees)?;
    let dev = dev::make(&root, spec, agent.users(), &mut trees)?;
    dev::device_nodes(&root, &spec.devices.nodes)?;
    mounts::requested(&root, &spec.mounts, std::mem::take(&mut trees.binds))?;
    dev::complete(&root, spec, &dev, &mut trees)?;
    user.home = user::home(&root, user.uid);
    if let Some(users) = agent.users() {
        for id in user.groups.iter().chain([&user.uid, &user.gid]) {
            users.on_node(*id)?;
        }
    }
    paths::make_dir(&root, &spec.process.cwd)?;
    mounts::make_readonly(&root, &spec.readonly)?;
    mounts::mask(&root, dev.dir.as_ref(), &spec.masked)?;

    let mut slave = None;
    channel.report(&Report::Devpts, Some(&dev.pts))?;
    if spec.process.terminal {
        let (master, inner) = stdio::terminal(&dev.pts)?;
        dev::console(&root, spec, &dev, &inner)?;
        channel.report(&Report::Terminal, Some(&master))?;
        slave = Some(inner);
    }
    rootfs::pivot(&root)?;
    if spec.readonly_rootfs {
        crate::sys::mount_setattr(&root, false, libc::MOUNT_ATTR_RDONLY, 0, 0).doing("make the root read-only")?;
    }

    // What follows closes all descriptors at once; their owners must not do so again.
    std::mem::forget((root, dev, trees));
    let launch = Launch::new(agent, &spec.process, &user, channel);
    match (inside, slave) {
        (Inside::Pipes { stdin, stdout, stderr }, _) => {
            launch.prepare(process::or_null(stdin)?, Some((stdout, stderr)))?;
        }
        (Inside::Terminal, Some(slave)) => launch.prepare(slave, None)?,
        (Inside::Terminal, None) => return Err(Error::invalid("there is no terminal")),
    }
    let entered = launch.enter_directory()?;
    let env = process::environment(&spec.process, &user, &hostname());
    if let Some(users) = agent.users() {
        users.enter_with_mounts()?;
    }
    channel.report(&Report::Ready(user.clone()), None)?;
    channel.wait_for_go()?;
    launch.drop_rights(entered)?;
    Err(launch.exec(&env))
}

/// The pod's host name.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn take_trees(agent: &Agent, spec: &Spec) -> Result<Trees> {
    let mut trees = Trees::default();
    if !agent.node_ipc {
        trees.shm = Some(mounts::take(&agent.dirs.shm(), false)?);
    }
    for name in ["resolv.conf", "hosts", "hostname"] {
        let file = agent.dirs.pod_file(name);
        if file.exists() {
            trees.pod_files.push((Path::new("/etc").join(name), mounts::take(&file, false)?));
        }
    }
    for mount in spec.mounts.iter().filter(|m| m.is_memory()) {
        trees.memory.push(memory::take(&agent.dirs, mount)?);
    }
    move_into_link_name_space(agent.node_mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .doing("enter the node's mount namespace")?;
    if agent.node_ipc {
        trees.shm = Some(mounts::take(Path::new("/dev/shm"), false)?);
    }
    for mount in spec.mounts.iter().filter(|m| m.is_bind()) {
        let tree = mounts::take(&mount.source, mount.recursive)?;
        map_owners(agent, mount, &tree)?;
        trees.binds.push(tree);
    }
    Ok(trees)
}

fn map_owners(agent: &Agent, mount: &MountSpec, tree: &OwnedFd) -> Result<()> {
    let (true, Some(users)) = (mount.idmap, agent.mapping()) else { return Ok(()) };
    let name = mount.destination.display();
    users.map_mount(tree, mount.recursive).asked(format!(
        "map the owners of volume {name} to the pod's users: its file system, and each mounted below it, must be able to"
    ))
}

/// The sources of binds, memory volumes, image volumes and volumes that the image declares, in their order; those of images are
/// mounted in the container's own namespace.
fn sources(agent: &Agent, spec: &Spec, layer: &Layer, trees: &mut Trees) -> Result<Vec<OwnedFd>> {
    let mut binds = std::mem::take(&mut trees.binds).into_iter();
    let mut memory = std::mem::take(&mut trees.memory).into_iter();
    let (mut all, mut volumes) = (Vec::new(), 0);
    for mount in &spec.mounts {
        if mount.is_image() {
            let tree = mounts::image(mount, layer)?;
            map_owners(agent, mount, &tree)?;
            all.push(tree);
        } else if mount.is_memory() {
            all.extend(memory.next());
        } else if mount.is_bind() {
            all.extend(binds.next());
        } else if mount.is_image_volume() {
            all.push(volumes::take(layer, volumes)?);
            volumes += 1;
        }
    }
    Ok(all)
}

#[allow(unsafe_code)] // unshare
fn unshare_mounts(privileged: bool) -> Result<()> {
    let mut flags = UnshareFlags::NEWNS;
    // Privileged programs look after all cgroups of the machine (cAdvisor, Falco), so they see them.
    if !privileged {
        flags |= UnshareFlags::NEWCGROUP;
    }
    // SAFETY: neither flag makes descriptors or memory unshared.
    unsafe { rustix::thread::unshare_unsafe(flags) }.doing("make namespaces")
}

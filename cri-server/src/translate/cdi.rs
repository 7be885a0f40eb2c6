//! Devices by the Container Device Interface: a name of a request leads to what a file of the node's administrator says is to be
//! changed in the container. Host pods only: a device of the node is not one of a microVM's.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

mod names;
mod spec;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use cofferdam_proto::agent;
use cofferdam_proto::cri::{CdiDevice, Mount};
use cofferdam_sandbox::Kind;

use self::spec::{ContainerEdits, Device, DeviceNode, Spec};
use super::text;
use crate::error::CriError;
use crate::node::shorten;

/// Where specifications are; of a device that several folders have, the last one's counts.
pub(crate) const FOLDERS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What annotations that name devices begin with.
const ANNOTATIONS: &str = "cdi.k8s.io/";

/// Most devices of one container.
const MAX_DEVICES: usize = 256;
/// Most specifications of one folder.
const MAX_FILES: usize = 256;
/// Most edits of one sort in one container.
const MAX_EDITS: usize = 4096;
/// Longest variable, bytes.
const MAX_VARIABLE: usize = 32 << 10;
/// The file's broken neighbours that an error still names.
const MAX_NAMED: usize = 4;

/// What is changed in a container.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Edits {
    /// Name and value.
    env: Vec<(String, String)>,
    devices: Vec<agent::Device>,
    mounts: Vec<Mount>,
    groups: Vec<u32>,
}

/// The devices of a request: its field's, then those of the annotations by which device plugins named them before there was a field.
pub(crate) fn asked(field: &[CdiDevice], annotations: &HashMap<String, String>) -> Result<Vec<CdiDevice>, CriError> {
    let mut all = field.to_vec();
    let mut annotated: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATIONS)).collect();
    annotated.sort();
    for (key, value) in annotated {
        for name in value.split(',') {
            if names::split(name).is_none() {
                let (key, name) = (shorten(key), shorten(name));
                return Err(CriError::invalid(format!("annotation {key}: {name:?} is not vendor/class=device")));
            }
            all.push(CdiDevice { name: name.to_owned() });
        }
    }
    Ok(all)
}

/// What the devices of a request change. `folders` are searched from the last to the first. Blocks.
pub(crate) fn edits(kind: Kind, asked: &[CdiDevice], folders: &[&Path]) -> Result<Edits, CriError> {
    let mut edits = Edits::default();
    if asked.is_empty() {
        return Ok(edits);
    }
    if kind == Kind::Vm {
        return Err(CriError::invalid(
            "CDI devices are the node's and cannot be given to a microVM: use the runtime handler \"host\"",
        ));
    }
    if asked.len() > MAX_DEVICES {
        return Err(CriError::invalid(format!("more than {MAX_DEVICES} CDI devices")));
    }
    let found: Vec<Folder> = folders.iter().map(|folder| Folder::read(folder)).collect();
    // A specification's own edits are made once, before its first device's; a device asked for twice is given once.
    let mut made = BTreeSet::new();
    for name in asked.iter().map(|d| d.name.as_str()) {
        let (file, spec, device) = find(name, folders, &found)?;
        let refused = |why| CriError::invalid(format!("CDI device {name} of {}: {why}", file.display()));
        if made.insert((file, None)) {
            edits.add(&spec.container_edits).map_err(refused)?;
        }
        if made.insert((file, Some(&device.name))) {
            edits.add(&device.container_edits).map_err(refused)?;
        }
    }
    Ok(edits)
}

/// The specifications of a folder.
#[derive(Default)]
struct Folder {
    specs: Vec<(PathBuf, Spec)>,
    /// Files that are none, and why.
    broken: Vec<String>,
}

impl Folder {
    /// A folder that is not there has none; a broken file is not in the way of the others.
    fn read(path: &Path) -> Self {
        let mut folder = Self::default();
        let entries = match std::fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return folder,
            Err(e) => {
                folder.broken.push(format!("{}: {e}", path.display()));
                return folder;
            }
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).take(MAX_FILES + 1).collect();
        if files.len() > MAX_FILES {
            folder.broken.push(format!("{}: holds more than {MAX_FILES} files; some were not read", path.display()));
            files.truncate(MAX_FILES);
        }
        files.sort();
        for file in files {
            match Spec::read(&file) {
                Some(Ok(spec)) => folder.specs.push((file, spec)),
                Some(Err(why)) => folder.broken.push(format!("{}: {why}", file.display())),
                None => {}
            }
        }
        folder
    }
}

fn find<'a>(name: &str, folders: &[&Path], found: &'a [Folder]) -> Result<(&'a Path, &'a Spec, &'a Device), CriError> {
    let Some((kind, device)) = names::split(name) else {
        return Err(CriError::invalid(format!("CDI device {:?} is not named vendor/class=device", shorten(name))));
    };
    for folder in found.iter().rev() {
        let mut here =
            folder.specs.iter().filter(|(_, spec)| spec.kind == kind).filter_map(|(file, spec)| {
                Some((file.as_path(), spec, spec.devices.iter().find(|d| d.name == device)?))
            });
        match (here.next(), here.next()) {
            (Some(one), None) => return Ok(one),
            (Some((one, ..)), Some((other, ..))) => {
                let (one, other) = (one.display(), other.display());
                return Err(CriError::invalid(format!("CDI device {name} is in both {one} and {other}: remove one")));
            }
            (None, _) => {}
        }
    }
    let searched: Vec<String> = folders.iter().map(|f| f.display().to_string()).collect();
    let mut message = format!("there is no CDI device {name} in {}", searched.join(" or "));
    let broken: Vec<&str> = found.iter().flat_map(|f| &f.broken).map(String::as_str).take(MAX_NAMED).collect();
    if !broken.is_empty() {
        message += &format!("; not usable there: {}", broken.join("; "));
    }
    Err(CriError::invalid(message))
}

impl Edits {
    /// Adds what a specification says; of two edits of one thing the later counts.
    fn add(&mut self, edits: &ContainerEdits) -> Result<(), String> {
        for (what, there) in [
            ("hooks", !edits.hooks.is_empty()),
            ("netDevices", !edits.net_devices.is_empty()),
            ("intelRdt", edits.intel_rdt.is_some()),
        ] {
            if there {
                return Err(format!("has {what}, which Cofferdam does not do: use a specification without"));
            }
        }
        for variable in &edits.env {
            let (key, value) = variable_of(variable)?;
            self.env.retain(|(known, _)| *known != key);
            self.env.push((key, value));
        }
        for node in &edits.device_nodes {
            let device = device_of(node)?;
            self.devices.retain(|known| known.path != device.path);
            self.devices.push(device);
        }
        for mount in &edits.mounts {
            let mount = mount_of(mount)?;
            self.mounts.retain(|known| known.container_path != mount.container_path);
            self.mounts.push(mount);
        }
        for group in &edits.additional_gids {
            match *group {
                u32::MAX => return Err(format!("additional gid {group} is none")),
                // Specifications write it for "no group" (the reference implementation leaves it out too).
                0 => {}
                group if self.groups.contains(&group) => {}
                group => self.groups.push(group),
            }
        }
        if [self.env.len(), self.devices.len(), self.mounts.len(), self.groups.len()].into_iter().any(|n| n > MAX_EDITS)
        {
            return Err(format!("makes more than {MAX_EDITS} edits of one sort"));
        }
        Ok(())
    }

    /// The mounts of a request with those of the devices, which take the place of what is at the same path.
    pub(crate) fn mounts(&self, asked: &[Mount]) -> Vec<Mount> {
        let same = |a: &Mount, b: &Mount| rooted(&a.container_path) == rooted(&b.container_path);
        let kept = asked.iter().filter(|a| !self.mounts.iter().any(|own| same(a, own)));
        kept.chain(&self.mounts).cloned().collect()
    }

    /// Makes the other edits, on top of what was asked for.
    pub(crate) fn apply(self, request: &mut agent::CreateContainerRequest) {
        let process = request.process.get_or_insert_default();
        for (key, value) in self.env {
            let prefix = [key.as_bytes(), b"="].concat();
            let whole = [&prefix, value.as_bytes()].concat();
            match process.env.iter_mut().find(|known| known.starts_with(&prefix)) {
                Some(known) => *known = whole,
                None => process.env.push(whole),
            }
        }
        let groups = &mut process.user.get_or_insert_default().supplemental_groups;
        groups.extend(self.groups.into_iter().filter(|g| !groups.contains(g)).collect::<Vec<_>>());
        for device in self.devices {
            request.devices.retain(|known| rooted(&known.path) != rooted(&device.path));
            request.devices.push(device);
        }
    }
}

fn rooted(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

fn variable_of(variable: &str) -> Result<(String, String), String> {
    text::name("a variable", variable, MAX_VARIABLE).map_err(|e| e.to_string())?;
    match variable.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("variable {:?} is not NAME=value", shorten(variable))),
    }
}

/// A path of a specification: absolute, not the root, and without `..`, which means one thing here and another behind a link.
fn path_of(what: &str, path: &str) -> Result<(), String> {
    text::name(what, path, 4096).map_err(|e| e.to_string())?;
    let parts = Path::new(path);
    let good =
        parts.is_absolute() && parts.parent().is_some() && !parts.components().any(|c| c == Component::ParentDir);
    if good { Ok(()) } else { Err(format!("{what} {path:?} is not absolute, or climbs, or is the root")) }
}

/// Numbers, permission bits and owner are the node's own; a specification that says otherwise is out of date, or wants what is not done.
fn device_of(node: &DeviceNode) -> Result<agent::Device, String> {
    let source = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    path_of("device path", &node.path)?;
    path_of("device hostPath", source)?;
    let meta = std::fs::metadata(source).map_err(|e| format!("device {source}: {e}"))?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return Err(format!("{source} is not a device")),
    };
    // "u" is an older name of "c".
    if !["", kind].contains(&node.r#type.as_str()) && (node.r#type != "u" || kind != "c") {
        return Err(format!("{source} is of type {kind} and not {:?}", shorten(&node.r#type)));
    }
    let number = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let differs = |said: Option<i64>, is: u32| said.is_some_and(|said| said != i64::from(is));
    if differs(node.major, number.0) || differs(node.minor, number.1) {
        return Err(format!("{source} is device {}:{} and not the one that is said", number.0, number.1));
    }
    let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    if node.file_mode.is_some_and(|m| m & 0o7777 != mode)
        || node.uid.is_some_and(|u| u != uid)
        || node.gid.is_some_and(|g| g != gid)
    {
        return Err(format!(
            "{source} has mode {mode:o} and owner {uid}:{gid}, which a container sees too: another fileMode, uid or gid is not given"
        ));
    }
    if !node.permissions.bytes().all(|b| b"rwm".contains(&b)) {
        return Err(format!("permissions {:?} are not of r, w, m", shorten(&node.permissions)));
    }
    let permissions = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
    Ok(agent::Device { path: node.path.clone(), source: source.clone(), permissions: permissions.to_owned() })
}

fn mount_of(mount: &spec::Mount) -> Result<Mount, String> {
    path_of("mount's containerPath", &mount.container_path)?;
    path_of("mount's hostPath", &mount.host_path)?;
    // A volume that is missing is made as a folder; a driver's library must not be.
    std::fs::metadata(&mount.host_path).map_err(|e| format!("mount of {}: {e}", mount.host_path))?;
    if !["", "bind", "none"].contains(&mount.r#type.as_str()) {
        return Err(format!("mount at {}: {:?} is not a bind mount", mount.container_path, shorten(&mount.r#type)));
    }
    let mut made = Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        ..Default::default()
    };
    for option in &mount.options {
        match option.as_str() {
            "ro" => made.readonly = true,
            "rw" => made.readonly = false,
            "nosuid" | "nodev" | "noexec" if made.mount_options.contains(option) => {}
            "nosuid" | "nodev" | "noexec" => made.mount_options.push(option.clone()),
            // How every volume is mounted.
            "bind" | "rbind" | "private" | "rprivate" => {}
            other => {
                return Err(format!("mount at {}: option {:?} is not given", mount.container_path, shorten(other)));
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests;

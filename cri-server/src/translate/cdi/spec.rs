//! A CDI specification file: its format, read within bounds. What a hostile or broken file could do is a message, never more.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::names;

/// Longest file that is read, bytes; those of vendors have some ten thousand.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// Most devices of one file.
const MAX_DEVICES: usize = 4096;
/// The released versions of the format. A newer one may mean what this reader would not do.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A file. As the reference implementation does, a field that the format does not have is an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Spec {
    cdi_version: String,
    /// `vendor/class`.
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// Made once, when any device of the file is given.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) container_edits: ContainerEdits,
}

/// What is changed in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct ContainerEdits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<DeviceNode>,
    pub(super) mounts: Vec<Mount>,
    pub(super) additional_gids: Vec<u32>,
    // Read so that the file's other devices can be used; asked for, they are refused.
    pub(super) hooks: Vec<IgnoredAny>,
    pub(super) net_devices: Vec<IgnoredAny>,
    pub(super) intel_rdt: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    pub(super) path: String,
    #[serde(default)]
    pub(super) host_path: String,
    #[serde(default)]
    pub(super) r#type: String,
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default)]
    pub(super) r#type: String,
}

impl Spec {
    /// Reads a file. `None`: it has no name of a specification's. Blocks.
    pub(super) fn read(path: &Path) -> Option<Result<Self, String>> {
        let parse: fn(&str) -> Result<Self, String> = match path.extension()?.to_str()? {
            "json" => json,
            "yaml" | "yml" => yaml,
            _ => return None,
        };
        Some(text(path).and_then(|text| parse(&text)).and_then(Self::checked))
    }

    fn checked(self) -> Result<Self, String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            let shown = crate::node::shorten(&self.cdi_version);
            return Err(format!("cdiVersion {shown:?} is not one of {}", VERSIONS.join(", ")));
        }
        if !names::is_kind(&self.kind) {
            return Err(format!("kind {:?} is not vendor/class", crate::node::shorten(&self.kind)));
        }
        if self.devices.is_empty() || self.devices.len() > MAX_DEVICES {
            return Err(format!("has {} devices and not 1 to {MAX_DEVICES}", self.devices.len()));
        }
        let mut seen = std::collections::BTreeSet::new();
        for device in &self.devices {
            if !names::is_device(&device.name) {
                return Err(format!("{:?} is not a device's name", crate::node::shorten(&device.name)));
            }
            if !seen.insert(&device.name) {
                return Err(format!("has two devices {:?}", crate::node::shorten(&device.name)));
            }
        }
        Ok(self)
    }
}

/// The text of an ordinary file; a link to one will do.
fn text(path: &Path) -> Result<String, String> {
    // Before it is opened: a pipe would block, and opening some devices does something.
    if !std::fs::metadata(path).map_err(|e| e.to_string())?.is_file() {
        return Err("is not a file".into());
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > MAX_FILE {
        return Err(format!("is longer than {MAX_FILE} bytes"));
    }
    String::from_utf8(text).map_err(|_| "is not UTF-8".into())
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|e| shown(&e))
}

/// The parser keeps to budgets of its own (nodes, depth, what aliases stand for), which one file does not exhaust.
fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|e| shown(&e))
}

/// The first line of a parser's message: the rest draws the text.
fn shown(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().chars().take(200).collect()
}

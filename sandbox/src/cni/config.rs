//! Which network: the configuration in CNI's directory.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::spec::CniConfig;

/// Longest configuration file, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Newest version of the specification that is spoken here.
const NEWEST: (u32, u32) = (1, 1);

/// One network configuration: a chain of plugins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    /// Name of the network.
    pub(crate) name: String,
    /// Version of the specification that plugins are spoken to in.
    pub(crate) version: String,
    /// Configurations of the plugins, in order.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// Reads the first configuration of the directory by name, and checks that its plugins are installed.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub(crate) fn load(config: &CniConfig) -> Result<Self, String> {
        let folder = config.conf_dir.display();
        let entries = fs::read_dir(&config.conf_dir).map_err(|error| {
            format!("cannot read CNI's configurations in {folder}: {error}; install a network plugin")
        })?;
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension().is_some_and(|e| e == "conflist" || e == "conf" || e == "json") && path.is_file()
            })
            .collect();
        files.sort();
        let Some(file) = files.first() else {
            return Err(format!("there is no CNI configuration in {folder}: install a network plugin"));
        };
        let named = |reason: String| format!("CNI configuration {}: {reason}", file.display());
        let list = read(file).and_then(|text| Self::parse(&text)).map_err(named)?;
        for plugin in &list.plugins {
            find(kind(plugin), &config.bin_dirs).map_err(named)?;
        }
        Ok(list)
    }

    /// Reads a `.conflist`, or a `.conf` with one plugin.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("malformed: {error}"))?;
        let Value::Object(object) = value else { return Err("malformed: not an object".into()) };
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(allowed) {
            return Err(format!("name {name:?} is no network name"));
        }
        let name = name.to_owned();
        let version = version(&object)?;
        let plugins = match object.get("plugins") {
            Some(Value::Array(plugins)) => {
                plugins.iter().map(|plugin| plugin.as_object().cloned()).collect::<Option<Vec<_>>>()
            }
            Some(_) => None,
            None => Some(vec![object]),
        };
        let plugins = plugins.filter(|plugins| !plugins.is_empty()).ok_or("plugins must be a list of objects")?;
        for plugin in &plugins {
            let kind = kind(plugin);
            if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
                return Err(format!("type {kind:?} is no plugin name"));
            }
        }
        Ok(Self { name, version, plugins })
    }

    /// Whether the network speaks version `major.minor` of the specification or a newer one.
    pub(crate) fn at_least(&self, major: u32, minor: u32) -> bool {
        numbers(&self.version).is_some_and(|version| version >= (major, minor))
    }
}

/// The newest version of those that the configuration offers and we speak.
fn version(object: &Map<String, Value>) -> Result<String, String> {
    let single = object.get("cniVersion").and_then(Value::as_str);
    let several = object.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let offered: Vec<&str> = single.into_iter().chain(several).collect();
    if offered.is_empty() {
        return Ok("0.2.0".into()); // what the specification had before the field came
    }
    offered
        .iter()
        .filter_map(|text| Some((numbers(text)?, *text)))
        .filter(|(numbers, _)| *numbers <= NEWEST)
        .max()
        .map(|(_, text)| text.to_owned())
        .ok_or_else(|| format!("CNI {} is newer than {}.{}", offered.join(", "), NEWEST.0, NEWEST.1))
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let opened = fs::File::open(file).map_err(|error| error.to_string())?;
    opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MAX_FILE { Err(format!("longer than {MAX_FILE} bytes")) } else { Ok(text) }
}

/// Name of the plugin's program.
pub(crate) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// The plugin's program in the first directory that has it.
pub(crate) fn find(kind: &str, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    folders.iter().map(|folder| folder.join(kind)).find(executable).ok_or_else(|| {
        let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        format!("plugin {kind} is not in {}: install it", searched.join(", "))
    })
}

//! From files to a configuration.

#![expect(clippy::disallowed_methods, reason = "before the daemon has workers")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::{Config, ConfigError, DEFAULT_PATH, Settings, keys, product};

/// Longest configuration file, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Reads `path`, or the usual file when it is absent (which need not exist), and `conf.d` beside it.
pub(crate) fn load(path: Option<&Path>) -> Result<(Settings, Config), ConfigError> {
    let main = path.unwrap_or(Path::new(DEFAULT_PATH));
    let mut files = Vec::new();
    match read(main) {
        Ok(text) => files.push((main.to_owned(), text)),
        Err(ConfigError::Read { source, .. }) if path.is_none() && source.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for extra in conf_d(main)? {
        let text = read(&extra)?;
        files.push((extra, text));
    }
    merge(&files, &product::folder())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(ConfigError::Syntax { path: path.to_owned(), text: format!("is longer than {MAX_FILE} bytes") });
    }
    fs::read_to_string(path).map_err(failed)
}

/// Files of `conf.d` beside the main file, by name.
fn conf_d(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let folder = main.parent().unwrap_or(Path::new("/")).join("conf.d");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(ConfigError::Read { path: folder, source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| ConfigError::Read { path: folder.clone(), source })?.path();
        let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|e| e == "toml") && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Checks each file alone, then all of them together; the later of two values of a key counts. `lib` is the folder of this build.
pub(super) fn merge(files: &[(PathBuf, String)], lib: &Path) -> Result<(Settings, Config), ConfigError> {
    let mut merged = Table::new();
    let mut origins: BTreeMap<String, PathBuf> = BTreeMap::new();
    for (path, text) in files {
        let syntax = |e: toml::de::Error| ConfigError::Syntax {
            path: path.clone(),
            text: e.to_string().trim().replace('\n', " "),
        };
        let table: Table = toml::from_str(text).map_err(syntax)?;
        if let Some((key, nearest)) = keys::unknown(&table) {
            return Err(ConfigError::UnknownKey { path: path.clone(), key, nearest });
        }
        let _: Settings = toml::from_str(text).map_err(syntax)?;
        for key in keys::leaves(&table) {
            origins.insert(key.join("."), path.clone());
        }
        overlay(&mut merged, table);
    }
    let settings: Settings = merged.try_into().map_err(|e: toml::de::Error| ConfigError::Value {
        key: "(merged)".into(),
        reason: e.to_string(),
        path: None,
    })?;
    let settings = settings.complete(lib);
    let config = settings.check().map_err(|(key, reason)| ConfigError::Value {
        path: origins.get(key).cloned(),
        key: key.into(),
        reason,
    })?;
    Ok((settings, config))
}

fn overlay(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => overlay(old, new),
            (_, value) => drop(below.insert(key, value)),
        }
    }
}

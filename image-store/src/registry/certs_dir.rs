//! The folder with one folder for each registry, as containerd's `certs.d` and Docker's.
//!
//! ```text
//!  certs.d/
//!  ├── registry.example:5000/hosts.toml    or registry.example_5000_/
//!  ├── other.example/ca.crt, a.cert, a.key without hosts.toml: Docker's layout
//!  └── _default/hosts.toml                 for registries without a folder of their own
//! ```

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::hosts_file;
use super::place::Place;
use crate::error::{StoreError, StoreResult};

/// The largest `hosts.toml`, bytes.
const MAX_FILE: u64 = 1 << 20;
/// The most files of a registry's folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// What the folder says of a registry: `None` when it has nothing.
pub(crate) fn places(root: &Path, registry: &str) -> StoreResult<Option<Vec<Place>>> {
    for name in names(registry) {
        let folder = root.join(name);
        match fs::metadata(&folder) {
            Ok(metadata) if metadata.is_dir() => return of_folder(&folder, registry).map(Some),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(e) => return Err(StoreError::io(format!("reading {}", folder.display()), e)),
        }
    }
    Ok(None)
}

/// Names of the folder by precedence. File systems of other systems have no colon in names.
fn names(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':')
        && !port.contains(']')
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".into());
    names
}

fn of_folder(folder: &Path, registry: &str) -> StoreResult<Vec<Place>> {
    let path = folder.join("hosts.toml");
    let text = match read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => String::new(),
        Err(e) => return Err(StoreError::io(format!("reading {}", path.display()), e)),
    };
    if text.is_empty() {
        return docker_layout(folder, registry).map_err(|e| StoreError::io(format!("reading {}", folder.display()), e));
    }
    hosts_file::parse(&path, &text, registry).map_err(StoreError::Config)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it is longer than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// The registry itself with the certificates beside each other: `*.crt` are authorities, `*.cert`
/// are client certificates with their keys in `*.key`.
fn docker_layout(folder: &Path, registry: &str) -> io::Result<Vec<Place>> {
    let mut place = Place::upstream(registry);
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(folder)?.take(MAX_ENTRIES) {
        files.push(entry?.path());
    }
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => place.trust.authorities.push(file.clone()),
            Some("cert") => {
                let key = Some(file.with_extension("key")).filter(|key| key.exists());
                place.trust.identities.push((file.clone(), key));
            }
            _ => {}
        }
    }
    if !place.trust.authorities.is_empty() {
        (place.trust.skip_verify, place.skip_verify_here) = (false, false);
    }
    Ok(vec![place])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn folders_are_found_by_all_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let first = |registry: &str| -> Option<String> {
            let places = places(dir.path(), registry).unwrap()?;
            Some(format!("{} of {}", places[0].host, places.len()))
        };
        assert_eq!(first("r.example:5000"), None);
        assert_eq!(places(&dir.path().join("absent"), "x").unwrap().map(|p| p.len()), None);
        write(dir.path().join("_default/hosts.toml"), "[host.\"https://d\"]\n");
        assert_eq!(first("r.example:5000").unwrap(), "d of 2");
        write(dir.path().join("r.example:5000/hosts.toml"), "[host.\"https://colon\"]\n");
        assert_eq!(first("r.example:5000").unwrap(), "colon of 2");
        write(dir.path().join("r.example_5000_/hosts.toml"), "[host.\"https://underscore\"]\n");
        assert_eq!(first("r.example:5000").unwrap(), "underscore of 2");
        assert_eq!(first("r.example").unwrap(), "d of 2");
        // It is read anew each time.
        write(dir.path().join("r.example_5000_/hosts.toml"), "[host.\"https://new\"]\n");
        assert_eq!(first("r.example:5000").unwrap(), "new of 2");
        write(dir.path().join("[::1]:5000/hosts.toml"), "[host.\"https://six\"]\n");
        assert_eq!(first("[::1]:5000").unwrap(), "six of 2");
        assert_eq!(names("[::1]"), ["[::1]", "_default"]);
    }

    #[test]
    fn dockers_layout_counts_without_hosts_toml() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("r.example");
        for name in ["b.crt", "a.crt", "c.cert", "c.key", "d.cert", "e.key", "note.txt", "f.crt/x"] {
            write(folder.join(name), "");
        }
        let places = places(dir.path(), "r.example").unwrap().unwrap();
        assert_eq!(places.len(), 1);
        let trust = &places[0].trust;
        assert_eq!(trust.authorities, [folder.join("a.crt"), folder.join("b.crt")]);
        let (c, d) = ((folder.join("c.cert"), Some(folder.join("c.key"))), (folder.join("d.cert"), None));
        assert_eq!(trust.identities, [c, d]);
        assert!(!trust.skip_verify && places[0].origin);
    }

    #[test]
    fn a_bad_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path().join("x/hosts.toml"), "server = \"https://x\"\nserver = 1\n");
        let error = places(dir.path(), "x").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("x/hosts.toml:2: "), "{error}");
    }
}

//! Files and links that are there whole or not at all, also after a power cut.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};

/// A file's text; none when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).doing(|| format!("read {}", path.display())),
    }
}

/// Replaces a file atomically and durably. It keeps the owner and the mode of the file that was
/// there; a new one gets `mode`.
pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    let step = || format!("write {}", path.display());
    // Through a link to the file itself, as some distributions have for the kubelet's
    // configuration.
    if path.is_symlink()
        && let Ok(real) = fs::canonicalize(path)
    {
        return write(&real, text, mode);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).doing(step)?;
    let new = beside(path);
    remove(&new)?;
    let before = fs::metadata(path).ok();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).doing(step)?;
    file.write_all(text.as_bytes()).doing(step)?;
    if let Some(before) = &before {
        fchown(&file, Some(before.uid()), Some(before.gid())).doing(step)?;
    }
    let mode = before.map_or(mode, |before| before.mode() & 0o7777);
    file.set_permissions(fs::Permissions::from_mode(mode)).doing(step)?;
    file.sync_all().doing(step)?;
    fs::rename(&new, path).doing(step)?;
    sync_folder(folder)
}

/// Puts a file back as it was: with this text, or away.
pub(crate) fn restore(path: &Path, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => write(path, text, 0o644),
        None => {
            remove(path)?;
            path.parent().filter(|folder| folder.exists()).map_or(Ok(()), sync_folder)
        }
    }
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e).doing(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Leads a link to `target`, in one step; without a target the link is removed.
pub(crate) fn link(path: &Path, target: Option<&Path>) -> Result<()> {
    let Some(target) = target else { return restore(path, None) };
    let step = || format!("lead {} to {}", path.display(), target.display());
    let new = beside(path);
    remove(&new)?;
    std::os::unix::fs::symlink(target, &new).doing(step)?;
    fs::rename(&new, path).doing(step)?;
    sync_folder(path.parent().unwrap_or(Path::new("/")))
}

/// Copies a folder with all that is in it (files, folders, no links) and makes it durable, before
/// it has its name.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    let step = || format!("copy {} to {}", from.display(), to.display());
    fs::create_dir_all(to).doing(step)?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755)).doing(step)?;
    for entry in fs::read_dir(from).doing(step)? {
        let entry = entry.doing(step)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().doing(step)?;
        if kind.is_dir() {
            copy_folder(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).doing(|| format!("copy {} to {}", source.display(), target.display()))?;
            File::open(&target).and_then(|file| file.sync_all()).doing(step)?;
        }
    }
    sync_folder(to)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).doing(|| format!("sync {}", path.display()))
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.cofferdam-new"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_its_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, name) = (dir.path().join("store/real"), dir.path().join("config.yaml"));
        write(&real, "a", 0o640).unwrap();
        std::os::unix::fs::symlink("store/real", &name).unwrap();
        write(&name, "b", 0o644).unwrap();
        assert!(name.is_symlink(), "the link stays");
        assert_eq!(fs::read_to_string(&real).unwrap(), "b");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn a_link_is_led_elsewhere_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("current");
        link(&path, Some(Path::new("versions/1"))).unwrap();
        link(&path, Some(Path::new("versions/2"))).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("versions/2"));
        link(&path, None).unwrap();
        link(&path, None).unwrap();
        assert!(!path.is_symlink());
    }
}

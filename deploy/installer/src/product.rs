//! Brings the image's product into the node's folder of versions. What is there is whole, or has
//! another name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use crate::error::{Doing, Result, refuse};
use crate::files;
use crate::paths::{Paths, version_of};

/// Copies `product` to its version's folder, unless it is there. Returns the version.
///
/// # Errors
/// When it cannot be copied, or that version is there with other contents: two builds have been
/// given one version.
pub(crate) fn place(product: &Path, paths: &Paths) -> Result<String> {
    let version = version_of(product)?;
    let target = paths.version(&version);
    let manifest = |folder: &Path| files::read(&folder.join("MANIFEST"));
    let wanted = manifest(product)?;
    if wanted.is_none() {
        return refuse(format!("{} has no MANIFEST: it is no product that `make dist` has made", product.display()));
    }
    if target.exists() {
        return match manifest(&target)? == wanted {
            true => Ok(version),
            false => refuse(format!(
                "{} is there with other contents; remove it if it is not in use, or build with another VERSION",
                target.display()
            )),
        };
    }
    fs::create_dir_all(paths.versions()).doing(|| format!("make {}", paths.versions().display()))?;
    let new = paths.versions().join(format!(".{version}.new"));
    if new.exists() {
        fs::remove_dir_all(&new).doing(|| format!("remove {}, which an earlier try has left", new.display()))?;
    }
    let placed = files::copy_folder(product, &new)
        .and_then(|()| unpack_disk(&new.join("lib/cofferdam")))
        .and_then(|()| fs::rename(&new, &target).doing(|| format!("rename {} to {}", new.display(), target.display())));
    if placed.is_err() {
        // A full disk: the rest of the copy is of no use to anybody.
        let _ = fs::remove_dir_all(&new);
    }
    placed?;
    files::sync_folder(&paths.versions())?;
    Ok(version)
}

/// The template of pods' disks is a sparse file of many GiB, which an image's layer cannot hold. It
/// comes as a sparse archive, and is made of it here.
fn unpack_disk(lib: &Path) -> Result<()> {
    let archive = lib.join("pod-disk.tar");
    let step = || format!("unpack {}", archive.display());
    let file = match File::open(&archive) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.doing(step)?,
    };
    tar::Archive::new(file).unpack(lib).doing(step)?;
    File::open(lib.join("pod-disk.ext4")).and_then(|disk| disk.sync_all()).doing(step)?;
    files::remove(&archive)?;
    files::sync_folder(lib)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_sparse_disk_stays_sparse() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("pod-disk.ext4");
        let file = File::create(&disk).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"data", 300 << 20).unwrap();
        let tar = Command::new("tar")
            .args(["--sparse", "-cf", "pod-disk.tar", "pod-disk.ext4"])
            .current_dir(dir.path())
            .status();
        assert!(tar.unwrap().success());
        fs::remove_file(&disk).unwrap();
        unpack_disk(dir.path()).unwrap();
        let made = fs::metadata(&disk).unwrap();
        assert_eq!(made.len(), 1 << 30);
        assert!(made.blocks() * 512 < 1 << 20, "{} blocks", made.blocks());
        let mut read = [0; 4];
        File::open(&disk).unwrap().read_exact_at(&mut read, 300 << 20).unwrap();
        assert_eq!(&read, b"data");
        assert!(!dir.path().join("pod-disk.tar").exists());
    }

    fn product(at: &Path, version: &str, content: &str) {
        fs::create_dir_all(at.join("bin")).unwrap();
        fs::write(at.join("VERSION"), format!("{version}\n")).unwrap();
        fs::write(at.join("bin/cofferdam"), content).unwrap();
        fs::write(at.join("MANIFEST"), format!("{content}  bin/cofferdam\n")).unwrap();
    }

    #[test]
    fn a_version_is_placed_whole_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let (image, paths) = (dir.path().join("image"), Paths::below(dir.path().join("node")));
        product(&image, "1.0", "a");
        // What a try left that was killed.
        fs::create_dir_all(paths.versions().join(".1.0.new/bin/rest")).unwrap();
        assert_eq!(place(&image, &paths).unwrap(), "1.0");
        assert_eq!(fs::read_to_string(paths.version("1.0").join("bin/cofferdam")).unwrap(), "a");
        assert_eq!(fs::read_dir(paths.versions()).unwrap().count(), 1);
        assert_eq!(place(&image, &paths).unwrap(), "1.0", "a second time changes nothing");
        product(&image, "1.0", "b");
        let error = place(&image, &paths).unwrap_err().to_string();
        assert!(error.contains("another VERSION"), "{error}");
        product(&image, "../1", "b");
        assert!(place(&image, &paths).is_err());
    }
}

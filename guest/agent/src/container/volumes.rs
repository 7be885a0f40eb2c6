//! Volumes that an image declares (`VOLUME`): for each, a writable folder of the container's own beside its writable
//! layer, with the image's content. It goes with the container.
//!
//! ```text
//!  <state>/<id>/upper, work       the overlay
//!  <state>/<id>/volumes/0 ..      mounted where the image says, also on a read-only root
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::copy_tree;
use super::mounts;
use super::paths;
use super::rootfs::Layer;
use super::spec::MountSpec;
use crate::error::{Doing, Error, Result};

/// Most volumes of one image.
const MAX_VOLUMES: usize = 128;

/// The declared volumes as mounts among those of the request. A mount of the request at the same place replaces the
/// image's volume; one below it comes after it.
///
/// # Errors
/// For a path that is not absolute, or too many of them.
pub fn add(mounts: &mut Vec<MountSpec>, declared: &[String]) -> Result<()> {
    if declared.len() > MAX_VOLUMES {
        return Err(Error::invalid(format!("the image declares more than {MAX_VOLUMES} volumes")));
    }
    let mut paths: Vec<PathBuf> = declared.iter().map(|p| paths::check_absolute(p)).collect::<Result<_>>()?;
    paths.sort_by_key(|path| path.components().count());
    for path in paths {
        if path == Path::new("/") {
            return Err(Error::invalid("the image declares its root as a volume"));
        }
        if mounts.iter().any(|m| m.destination == path) {
            continue;
        }
        let at = mounts.iter().position(|m| m.destination.starts_with(&path)).unwrap_or(mounts.len());
        mounts.insert(at, MountSpec::of_image_volume(path));
    }
    Ok(())
}

/// Makes the empty folder of volume `number` and takes it for a mount.
///
/// # Errors
/// When it cannot be made.
pub fn take(layer: &Layer, number: usize) -> Result<OwnedFd> {
    mounts::take(&layer.volume(number)?, false)
}

/// Copies the image's content into the volumes' folders. `root` is the container's root, in which nothing is mounted
/// yet; `owner` owns the folder of a volume that the image has no directory for.
///
/// # Errors
/// When the image has something else than a directory there, or the copy fails.
pub fn fill(root: &OwnedFd, mounts: &[MountSpec], layer: &Layer, owner: u32) -> Result<()> {
    const READ: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
    for (number, m) in mounts.iter().filter(|m| m.is_image_volume()).enumerate() {
        let name = m.destination.display();
        let folder = rustix::fs::openat(CWD, layer.volume(number)?, READ, Mode::empty())
            .doing(format!("open the folder of volume {name}"))?;
        let source = match paths::open(root, &m.destination, OFlags::PATH) {
            Ok(source) => source,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                copy_tree::give_away(&folder, owner).doing(format!("give away the folder of volume {name}"))?;
                continue;
            }
            Err(e) => return Err(e).asked(format!("open the image's volume {name}")),
        };
        if paths::file_type(&source).doing(format!("look at the image's volume {name}"))? != FileType::Directory {
            return Err(Error::invalid(format!("the image declares {name} as a volume, which is not a directory")));
        }
        let source =
            rustix::fs::openat(&source, ".", READ, Mode::empty()).doing(format!("open the image's volume {name}"))?;
        copy_tree::copy(&source, &folder).doing(format!("copy the image's content into volume {name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cofferdam_proto::agent::Mount;

    use super::*;

    #[test]
    fn a_volume_is_mounted_before_what_is_mounted_below_it_and_not_at_all_where_the_request_mounts() {
        let tmpfs = |at: &str| {
            MountSpec::parse(&Mount { destination: at.into(), r#type: "tmpfs".into(), ..Mount::default() }).unwrap()
        };
        let mut mounts = vec![tmpfs("/other"), tmpfs("/data/cache"), tmpfs("/covered")];
        let declared = ["/late", "/data/deep/er", "/covered/", "/data", "/data"].map(str::to_owned);
        add(&mut mounts, &declared).unwrap();
        let order: Vec<_> = mounts.iter().map(|m| m.destination.to_str().unwrap()).collect();
        assert_eq!(order, ["/other", "/data", "/data/cache", "/covered", "/late", "/data/deep/er"]);
        assert_eq!(mounts.iter().filter(|m| m.is_image_volume()).count(), 3);
        for bad in ["/", "relative", "/a/../b", ""] {
            assert!(add(&mut Vec::new(), &[bad.to_owned()]).is_err(), "{bad:?}");
        }
        assert!(add(&mut Vec::new(), &vec!["/a".to_owned(); MAX_VOLUMES + 1]).is_err());
    }
}

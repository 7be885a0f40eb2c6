//! Symbolic links in the directory part of a path, followed inside the layer's root.
//!
//! The walk gives a path without links, which is then opened with `RESOLVE_NO_SYMLINKS`. An
//! absolute target begins at the layer's root and `..` stops there, as in a chroot. A component
//! that does not exist is taken as it is: the directory will be made there, as containerd does.

use std::os::fd::BorrowedFd;

use rustix::fs::{self as rfs, OFlags};
use rustix::io::Errno;

use super::ExtractError;
use super::name::{cut, join};
use super::reader::lossy;
use super::root::{open_beneath, path};

/// Links in one path, as containerd counts them.
const MAX_LINKS: usize = 255;
/// Components looked at in one path: more than any path within `PATH_MAX` through a few links has.
const MAX_STEPS: usize = 16 << 10;

/// What stands at a path.
pub(crate) enum Seen {
    /// A symbolic link to this.
    Link(Vec<u8>),
    /// Something else, or nothing.
    Other,
}

/// Bounds on following links.
pub(crate) struct Bounds {
    /// Components that all the paths of a layer may still look at together.
    pub(crate) steps: u64,
    /// Directories in a path.
    pub(crate) depth: usize,
}

impl Bounds {
    pub(crate) fn new(depth: usize) -> Self {
        // A layer of a million entries whose paths go through `/lib -> usr/lib` needs a quarter of
        // it.
        Self { steps: 16 << 20, depth }
    }
}

/// Follows the links in `dir`, of which `look` tells; the result has none.
///
/// # Errors
/// The links go round in circles, or the path is beyond the bounds; or `look` fails.
pub(crate) fn follow(
    entry: &[u8],
    dir: &[u8],
    bounds: &mut Bounds,
    mut look: impl FnMut(&[u8]) -> Result<Seen, Errno>,
) -> Result<Vec<u8>, ExtractError> {
    let mut todo: Vec<Vec<u8>> = Vec::new();
    push(&mut todo, dir);
    let mut real: Vec<u8> = Vec::new();
    let (mut links, mut steps) = (0, 0);
    while let Some(component) = todo.pop() {
        if component == b".." {
            real = cut(&real).0.to_vec();
            continue;
        }
        steps += 1;
        bounds.steps = bounds.steps.saturating_sub(1);
        if bounds.steps == 0 || steps > MAX_STEPS {
            return Err(ExtractError::too_large(&lossy(entry), format!("{MAX_STEPS} steps through symbolic links")));
        }
        let at = join(&real, &component);
        match look(&at).map_err(super::root::failed(entry, "looking at its path"))? {
            Seen::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    let reason = format!("its path goes through more than {MAX_LINKS} symbolic links");
                    return Err(ExtractError::malformed(&lossy(entry), &reason));
                }
                if target.first() == Some(&b'/') {
                    real.clear();
                }
                push(&mut todo, &target);
            }
            Seen::Other => {
                if at.iter().filter(|b| **b == b'/').count() >= bounds.depth {
                    return Err(ExtractError::too_large(&lossy(entry), format!("{} directories deep", bounds.depth)));
                }
                real = at;
            }
        }
    }
    Ok(real)
}

fn push(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    let components = path.split(|b| *b == b'/').rev();
    todo.extend(components.filter(|c| !matches!(*c, b"" | b".")).map(<[u8]>::to_vec));
}

/// What stands at a path (without links before its last component) below one directory.
pub(crate) fn look_in(root: BorrowedFd<'_>, at: &[u8]) -> Result<Seen, Errno> {
    let (dir, name) = cut(at);
    let parent = match open_beneath(root, dir, OFlags::PATH) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Seen::Other),
        other => other?,
    };
    read_link(&parent, name)
}

/// What stands at a name in an open directory.
pub(crate) fn read_link(parent: impl std::os::fd::AsFd, name: &[u8]) -> Result<Seen, Errno> {
    match rfs::readlinkat(parent, path(name), Vec::new()) {
        Ok(target) => Ok(Seen::Link(target.into_bytes())),
        // INVAL: it is there and no link.
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(Seen::Other),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn followed(links: &[(&str, &str)], dir: &str) -> Result<String, ExtractError> {
        let links: BTreeMap<&str, &str> = links.iter().copied().collect();
        let look = |at: &[u8]| {
            let target = links.get(std::str::from_utf8(at).unwrap());
            Ok(target.map_or(Seen::Other, |target| Seen::Link(target.as_bytes().to_vec())))
        };
        let real = follow(b"entry", dir.as_bytes(), &mut Bounds::new(16), look)?;
        Ok(String::from_utf8(real).unwrap())
    }

    #[test]
    fn links_stay_inside() {
        let links = [
            ("lib", "usr/lib"),
            ("var/run", "/run"),
            ("up", "../../.."),
            ("d/e/up", "../../x"),
            ("two", "lib/y"),
            ("etc", "/"),
        ];
        for (dir, real) in [
            ("lib", "usr/lib"),
            ("lib/x", "usr/lib/x"),
            ("var/run/app", "run/app"),
            ("up/etc2", "etc2"),
            ("d/e/up/z", "x/z"),
            ("two", "usr/lib/y"),
            ("etc/lib", "usr/lib"),
            ("none/at/all", "none/at/all"),
        ] {
            assert_eq!(followed(&links, dir).unwrap(), real, "{dir}");
        }
    }

    #[test]
    fn circles_and_depths_end() {
        assert!(matches!(followed(&[("a", "a")], "a/b"), Err(ExtractError::Malformed { .. })));
        assert!(matches!(followed(&[("a", "b"), ("b", "a")], "a"), Err(ExtractError::Malformed { .. })));
        assert!(matches!(followed(&[("a", "a/a")], "a"), Err(ExtractError::Malformed { .. })));
        let deep = "d/".repeat(40);
        assert!(matches!(followed(&[("a", &deep)], "a"), Err(ExtractError::TooLarge { .. })));
        let wide = "a/".repeat(2000);
        assert!(followed(&[("a", &wide)], "a").is_err());
    }
}

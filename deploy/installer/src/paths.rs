//! Where things are on a node.
//!
//! ```text
//!  /opt/cofferdam/versions/VERSION/     one build: bin/, lib/cofferdam/, share/ (unit, configuration), MANIFEST
//!  /opt/cofferdam/current               a link to versions/VERSION
//!  /etc/systemd/system/                 cofferdam.service, cofferdam-recover.service
//!  /var/lib/cofferdam-installer/        what is being done, what was done, what there was before
//! ```

use std::path::{Path, PathBuf};

/// The daemon's unit.
pub(crate) const UNIT: &str = "cofferdam.service";
/// The unit that undoes, at boot, what a power cut has interrupted.
pub(crate) const RECOVER_UNIT: &str = "cofferdam-recover.service";
/// The transient unit that works on the host for a pod of the installer. There is one, so there is
/// one work at a time.
pub(crate) const WORK_UNIT: &str = "cofferdam-installer.service";

/// The paths, below a root that is `/` except in tests.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Those of this node.
    pub(crate) fn node() -> Self {
        Self::below("/")
    }

    /// Those of a node whose root is somewhere else.
    pub(crate) fn below(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path of the host, below the root.
    pub(crate) fn host(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Everything that is installed.
    pub(crate) fn home(&self) -> PathBuf {
        self.host("/opt/cofferdam")
    }

    /// All versions.
    pub(crate) fn versions(&self) -> PathBuf {
        self.home().join("versions")
    }

    /// One version.
    pub(crate) fn version(&self, version: &str) -> PathBuf {
        self.versions().join(version)
    }

    /// The link to the version in use.
    pub(crate) fn current(&self) -> PathBuf {
        self.home().join("current")
    }

    /// The version that the link leads to, if there is one.
    pub(crate) fn installed(&self) -> Option<String> {
        let target = std::fs::read_link(self.current()).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// A unit file of the administrator's folder.
    pub(crate) fn unit(&self, name: &str) -> PathBuf {
        self.host("/etc/systemd/system").join(name)
    }

    /// The daemon's configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.host("/etc/cofferdam/config.toml")
    }

    /// A file of the installer's own state.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.host("/var/lib/cofferdam-installer").join(name)
    }

    /// Whether a work has begun that was neither finished nor undone.
    pub(crate) fn unfinished(&self) -> bool {
        [crate::node::install::JOURNAL, crate::node::switch::JOURNAL].iter().any(|name| self.state(name).exists())
    }
}

/// Whether `version` can be a folder's name and a label's value.
pub(crate) fn is_version(version: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    version.len() <= 63
        && version.bytes().all(plain)
        && ends(version.bytes().next())
        && ends(version.bytes().next_back())
}

/// The product that a folder holds: its version, as `VERSION` in it says.
pub(crate) fn version_of(product: &Path) -> crate::error::Result<String> {
    use crate::error::{Doing, refuse};
    let path = product.join("VERSION");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    let version = text.trim();
    if is_version(version) {
        Ok(version.to_owned())
    } else {
        refuse(format!("{} says {version:?}, which is no version's name", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_names_a_folder_and_nothing_else() {
        for good in ["0.1.0", "0.1.0-a1b2c3d4e5f6", "1"] {
            assert!(is_version(good), "{good}");
        }
        for bad in ["", ".", "..", ".1", "a/b", "1-", "a b", "a\n", &"1".repeat(64)] {
            assert!(!is_version(bad), "{bad:?}");
        }
    }
}

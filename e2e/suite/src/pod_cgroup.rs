//! The cgroup that the kubelet makes for a pod with limits.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::{Doing, Outcome};

/// A cgroup like the kubelet's for one pod, gone when it is dropped.
pub(crate) struct Parent {
    pub(crate) name: &'static str,
    path: PathBuf,
}

impl Parent {
    /// Makes it with `settings`: files and what to write into them.
    pub(crate) fn new(name: &'static str, settings: &[(&str, &str)]) -> Outcome<Self> {
        let mut path = PathBuf::from("/sys/fs/cgroup");
        for part in name.trim_start_matches('/').split('/') {
            fs::write(path.join("cgroup.subtree_control"), "+memory +cpu").doing("hand controllers down")?;
            path.push(part);
            fs::create_dir_all(&path).doing("make a cgroup")?;
        }
        let parent = Self { name, path };
        settings.iter().try_for_each(|(file, text)| parent.set(file, text))?;
        Ok(parent)
    }

    /// Writes `text` to one of its files.
    pub(crate) fn set(&self, file: &str, text: &str) -> Outcome {
        fs::write(self.path.join(file), text).doing(&format!("write {text} to {file} of {}", self.name))
    }

    /// What one of its files says.
    pub(crate) fn read(&self, file: &str) -> Outcome<String> {
        fs::read_to_string(self.path.join(file)).doing(&format!("read {file} of {}", self.name))
    }

    /// How many processes the node has killed in it for lack of memory.
    pub(crate) fn oom_kills(&self) -> Outcome<u64> {
        let events = self.read("memory.events")?;
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).and_then(|n| n.parse().ok());
        count.ok_or_else(|| format!("memory.events says {events}").into())
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // With the folders above it, as far as they are empty.
        let mut path: &Path = &self.path;
        while path != Path::new("/sys/fs/cgroup") && fs::remove_dir(path).is_ok() {
            path = path.parent().unwrap_or(Path::new("/sys/fs/cgroup"));
        }
    }
}

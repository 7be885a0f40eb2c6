//! AppArmor on the node: which profiles the kernel holds, and our own default one.
//!
//! The kernel's list is read anew each time: an administrator may load a profile at any moment, and a pod that names it then runs.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

/// The profile of host containers that name none.
pub(crate) const DEFAULT: &str = "cofferdam-default";
const DEFAULT_TEXT: &str = include_str!("../../deploy/apparmor/cofferdam-default");
/// Where distributions have it.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// How long it may take; an emulated node needs a few seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// Most of the kernel's list that is read, bytes.
const MAX_LIST: u64 = 8 << 20;

/// The kernel's files.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    enabled: PathBuf,
    profiles: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            enabled: "/sys/module/apparmor/parameters/enabled".into(),
            profiles: "/sys/kernel/security/apparmor/profiles".into(),
        }
    }
}

impl Kernel {
    /// Whether the kernel enforces AppArmor.
    #[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
    pub(crate) fn enabled(&self) -> bool {
        std::fs::read(&self.enabled).is_ok_and(|text| text.first() == Some(&b'Y'))
    }

    /// Whether it holds a profile of exactly this name. Blocks.
    #[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
    pub(crate) fn holds(&self, name: &str) -> std::io::Result<bool> {
        let mut text = String::new();
        File::open(&self.profiles)?.take(MAX_LIST).read_to_string(&mut text)?;
        // "name (enforce)"; a name may hold blanks itself.
        Ok(text.lines().filter_map(|line| line.rsplit_once(" (")).any(|(known, _)| known == name))
    }

    /// For tests: files of these contents.
    #[cfg(test)]
    pub(crate) fn fake(folder: &Path, enabled: &str, profiles: &str) -> Self {
        let kernel = Self { enabled: folder.join("enabled"), profiles: folder.join("profiles") };
        std::fs::write(&kernel.enabled, enabled).unwrap();
        std::fs::write(&kernel.profiles, profiles).unwrap();
        kernel
    }
}

/// Loads the default profile where the kernel has AppArmor. What goes wrong is logged: then containers that name no profile have none, and
/// those that ask for the runtime's default are refused. A profile of an earlier start is replaced behind the caller's back, since
/// it serves until then.
pub(crate) async fn load_default() {
    let kernel = Kernel::default();
    if !kernel.enabled() {
        tracing::info!("the node's kernel has no AppArmor: host containers have no profile");
        return;
    }
    if kernel.holds(DEFAULT).unwrap_or(false) {
        tokio::spawn(load_and_tell());
    } else {
        load_and_tell().await;
    }
}

async fn load_and_tell() {
    match load(DEFAULT_TEXT).await {
        Ok(()) => tracing::info!(profile = DEFAULT, "AppArmor profile loaded"),
        Err(reason) => tracing::warn!(
            profile = DEFAULT,
            reason,
            "AppArmor profile not loaded: host containers that name no profile run without one"
        ),
    }
}

/// Where the distribution's parser is.
async fn parser() -> Option<&'static Path> {
    for path in PARSERS.iter().map(Path::new) {
        if tokio::fs::try_exists(path).await.unwrap_or(false) {
            return Some(path);
        }
    }
    None
}

/// Gives a profile to the distribution's parser, which compiles it and replaces what the kernel has of this name.
async fn load(text: &str) -> Result<(), String> {
    let parser = parser().await.ok_or_else(|| format!("there is no {}: install the package apparmor", PARSERS[0]))?;
    let mut child = tokio::process::Command::new(parser)
        // Replace; from standard input; the cache is of no use for one small profile.
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("cannot run {}: {e}", parser.display()))?;
    let stdin = child.stdin.take();
    let work = async {
        if let Some(mut stdin) = stdin {
            stdin.write_all(text.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| format!("{} took more than {} s", parser.display(), LIMIT.as_secs()))?
        .map_err(|e| format!("cannot run {}: {e}", parser.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(500).collect();
    Err(format!("{} ended with {}: {}", parser.display(), output.status, said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = Kernel::fake(dir.path(), "Y\n", "a (enforce)\nb c (complain)\n/usr/bin/x//y (unconfined)\n");
        assert!(kernel.enabled());
        for (name, held) in
            [("a", true), ("b c", true), ("/usr/bin/x//y", true), ("b", false), ("", false), ("a (enforce)", false)]
        {
            assert_eq!(kernel.holds(name).unwrap(), held, "{name:?}");
        }
        assert!(!Kernel::fake(dir.path(), "N\n", "").enabled());
        assert!(Kernel { profiles: dir.path().join("none"), ..kernel }.holds("a").is_err());
    }

    #[test]
    fn the_profile_has_the_name_that_is_loaded() {
        let heads: Vec<&str> = DEFAULT_TEXT.lines().filter(|l| l.starts_with("profile ")).collect();
        assert_eq!(heads.len(), 1);
        assert_eq!(heads[0].split(' ').nth(1), Some(DEFAULT));
        assert!(!DEFAULT_TEXT.lines().any(|l| l.trim_start().starts_with("#include") || l.contains("include <")));
    }
}

//! SELinux options of pods and containers.
//!
//! ```text
//!  node                      privileged, or type spc_t      other options
//!  without SELinux           they mean nothing: passed over, as other runtimes do
//!  with SELinux              passed over                    refused, by name
//! ```
//!
//! Charts that were made for a node with SELinux run on one without it; there no runtime sets a label. On a node that has it, options ask
//! for a confinement that Cofferdam does not set: its programs run in the daemon's own domain, or in a guest without SELinux. A privileged
//! container is confined by none, and `spc_t` is the type of those.

use std::path::PathBuf;

use cofferdam_proto::cri::SeLinuxOption;

use crate::error::CriError;

/// The kernel's files.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    enforce: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self { enforce: "/sys/fs/selinux/enforce".into() }
    }
}

impl Kernel {
    /// Whether SELinux is on, enforcing or not. Blocks.
    #[expect(clippy::disallowed_methods, reason = "files of the kernel's, which are in memory")]
    fn enabled(&self) -> bool {
        self.enforce.exists()
    }
}

/// Refuses options that would have to be honoured and are not. `what` has them: "the pod sandbox". Blocks.
pub(crate) fn check(
    what: &str,
    options: Option<&SeLinuxOption>,
    privileged: bool,
    kernel: &Kernel,
) -> Result<(), CriError> {
    let Some(options) = options else { return Ok(()) };
    let parts =
        [("user", &options.user), ("role", &options.role), ("type", &options.r#type), ("level", &options.level)];
    let asked: Vec<String> = parts
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {:?}", crate::node::shorten(value)))
        .collect();
    if asked.is_empty() || privileged || options.r#type == "spc_t" || !kernel.enabled() {
        return Ok(());
    }
    Err(CriError::invalid(format!(
        "{what} asks for the SELinux label of {}, and Cofferdam sets none: remove seLinuxOptions from the pod, or run it on a node \
         with another runtime",
        asked.join(", ")
    )))
}

/// The kernel's files below `folder`, for tests.
#[cfg(test)]
pub(crate) fn fake(folder: &std::path::Path, enabled: bool) -> Kernel {
    let kernel = Kernel { enforce: folder.join("enforce") };
    if enabled {
        std::fs::write(&kernel.enforce, "1").unwrap();
    }
    kernel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_honoured_is_refused_by_name_where_it_would_mean_something() {
        let option =
            |kind: &str, level: &str| SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() };
        // options, privileged, refused on a node with SELinux
        for (options, privileged, refused) in [
            (None, false, false),
            (Some(SeLinuxOption::default()), false, false),
            (Some(option("", "s0:c1,c2")), false, true),
            (Some(option("container_t", "")), false, true),
            (Some(option("container_t", "")), true, false),
            (Some(option("spc_t", "s0")), false, false),
        ] {
            for enabled in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let got = check("the container", options.as_ref(), privileged, &fake(dir.path(), enabled));
                assert_eq!(got.is_err(), refused && enabled, "{options:?}, privileged {privileged}: {got:?}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let kernel = fake(dir.path(), true);
        let text = check("the pod sandbox", Some(&option("a_t", "s0")), false, &kernel).unwrap_err().to_string();
        for part in ["the pod sandbox", "type \"a_t\", level \"s0\"", "seLinuxOptions"] {
            assert!(text.contains(part), "{text}");
        }
    }
}

//! Where the other files of this daemon's build are: its monitor, its agent and what a guest boots.
//!
//! ```text
//!  PREFIX/bin/cofferdam      this program, links followed
//!  PREFIX/lib/cofferdam/     the rest of its build
//! ```
//!
//! Several builds can thus be on a node, and none uses a file of another.

#![expect(clippy::disallowed_methods, reason = "before the daemon has workers")]

use std::path::{Path, PathBuf};

/// Where packages put it, and what counts when the program is in no folder `bin`, as a test is.
pub(super) const USUAL: &str = "/usr/lib/cofferdam";

/// The folder of the build that this program is of.
pub(super) fn folder() -> PathBuf {
    let program = std::env::current_exe().and_then(|path| path.canonicalize().or(Ok(path)));
    program.ok().and_then(|path| beside(&path)).unwrap_or_else(|| USUAL.into())
}

/// `PREFIX/lib/cofferdam` of `PREFIX/bin/anything`.
fn beside(program: &Path) -> Option<PathBuf> {
    let bin = program.parent()?;
    let prefix = bin.parent()?;
    (bin.file_name()? == "bin").then(|| prefix.join("lib/cofferdam"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_program() {
        for (program, folder) in [
            ("/usr/bin/cofferdam", Some("/usr/lib/cofferdam")),
            ("/opt/cofferdam/versions/1/bin/cofferdam", Some("/opt/cofferdam/versions/1/lib/cofferdam")),
            // Replaced since it was started, as the kernel says it.
            ("/usr/bin/cofferdam (deleted)", Some("/usr/lib/cofferdam")),
            ("/work/target/debug/cofferdam", None),
            ("/bin/cofferdam", Some("/lib/cofferdam")),
            ("cofferdam", None),
        ] {
            assert_eq!(beside(Path::new(program)), folder.map(PathBuf::from), "{program}");
        }
    }
}

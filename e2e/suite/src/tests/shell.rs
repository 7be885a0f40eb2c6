//! A shell's command in a container, by crictl.

use crate::crictl::{Crictl, Output};
use crate::failure::{Outcome, ensure};

/// Runs `script`; its code may be any.
pub(super) fn sh(container: &str, script: &str) -> Outcome<Output> {
    Crictl::default().attempt(&["exec", "--sync", container, "sh", "-c", script])
}

/// Runs `script`, which has to print `wanted`, but for blanks around it.
pub(super) fn prints(container: &str, script: &str, wanted: &str) -> Outcome {
    let got = sh(container, script)?;
    ensure!(got.stdout.trim() == wanted, "{script}: printed {:?} and {:?}, not {wanted:?}", got.stdout, got.stderr);
    Ok(())
}

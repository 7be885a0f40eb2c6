//! Can this node run pods? Tried, not guessed.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

mod host;
mod kvm;
mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::SandboxError;
use crate::spec::{Config, Kind};

/// Tries whether pods of `kind` can run here.
pub(crate) fn probe(config: &Config, kind: Kind) -> Result<(), SandboxError> {
    let (kind, outcome) = match kind {
        Kind::Vm => ("vm", vm(config)),
        Kind::Host => ("host", host::check(config)),
    };
    outcome.map_err(|reason| SandboxError::Unusable { kind, reason })
}

fn vm(config: &Config) -> Result<(), String> {
    program("the monitor", &config.vm.monitor)?;
    for (what, path) in [
        ("the guest kernel", &config.vm.kernel),
        ("the initramfs", &config.vm.initramfs),
        ("the disk template", &config.vm.disk_template),
    ] {
        fs::File::open(path).map_err(|error| missing(what, path, &error.to_string()))?;
    }
    if let Err(error) = fs::metadata("/dev/net/tun") {
        return Err(format!("cannot use /dev/net/tun: {error}; load the tun module"));
    }
    kvm::check()
}

fn program(what: &str, path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| missing(what, path, &error.to_string()))?;
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(missing(what, path, "it is not executable"));
    }
    Ok(())
}

fn missing(what: &str, path: &Path, why: &str) -> String {
    format!(
        "cannot use {what} {}: {why}; install Cofferdam again, or correct its path in the configuration",
        path.display()
    )
}

#[cfg(test)]
mod tests;

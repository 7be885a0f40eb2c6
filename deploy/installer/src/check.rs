//! What can be seen from a container of whether its node can have Cofferdam. Whether microVMs run
//! there is tried after the installation, on the host: `/dev/kvm` opens where it cannot run a
//! kernel, and a container may not open it at all.

use crate::error::{Result, chain, refuse};
use crate::systemd::Systemd;

/// The oldest kernel that Cofferdam runs on.
const KERNEL: (u32, u32) = (6, 8);
/// statfs(2): `CGROUP2_SUPER_MAGIC`.
const CGROUP2: i64 = 0x6367_7270;

/// Prints what the node has, and fails if something is missing that every pod needs.
///
/// # Errors
/// What is missing.
pub(crate) async fn run() -> Result<()> {
    let mut missing = Vec::new();
    let mut say = |what: &str, answer: std::result::Result<String, String>| match answer {
        Ok(text) => println!("{what:<14} yes: {text}"),
        Err(text) => {
            println!("{what:<14} no: {text}");
            missing.push(format!("{what}: {text}"));
        }
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    say("kernel", kernel(&release));
    say("cgroup v2", cgroup());
    say(
        "systemd",
        match Systemd::connect().await {
            Ok(systemd) => systemd.version().await.map_err(|error| chain(&error)),
            Err(error) => Err(chain(&error)),
        },
    );
    if missing.is_empty() { Ok(()) } else { refuse(format!("this node cannot have Cofferdam: {}", missing.join("; "))) }
}

fn kernel(release: &str) -> std::result::Result<String, String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL {
        Ok(release.to_owned())
    } else {
        Err(format!("{release} is older than {}.{}; upgrade the node's kernel", KERNEL.0, KERNEL.1))
    }
}

fn cgroup() -> std::result::Result<String, String> {
    match rustix::fs::statfs("/sys/fs/cgroup") {
        Ok(is) if is.f_type == CGROUP2 => Ok("/sys/fs/cgroup".into()),
        Ok(_) => {
            Err("the node boots with cgroup v1; remove systemd.unified_cgroup_hierarchy=0 from its kernel's arguments"
                .into())
        }
        Err(error) => Err(format!("/sys/fs/cgroup: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_by_numbers() {
        for good in ["6.8.0-45-generic", "6.12.48+deb13-amd64", "7.0.0", "10.1"] {
            assert!(kernel(good).is_ok(), "{good}");
        }
        for bad in ["6.1.0-18-amd64", "5.15.0", "6", ""] {
            assert!(kernel(bad).is_err(), "{bad}");
        }
    }
}

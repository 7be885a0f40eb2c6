//! Landlock: what may be opened from now on.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};

/// What is asked for; a kernel that knows less restricts less.
const WANTED: ABI = ABI::V6;
/// What the versions after the first one added.
const ADDED: [(ABI, &str); 5] = [
    (ABI::V2, "moving files from one folder to another"),
    (ABI::V3, "cutting files"),
    (ABI::V4, "TCP"),
    (ABI::V5, "requests to devices (ioctl)"),
    (ABI::V6, "signals and abstract sockets"),
];

/// Allows the calling thread what a file server does, below `share` and whatever is mounted there, and nothing elsewhere: no other
/// file is opened any more, no TCP connection made, no signal sent to others. Descriptors that are open stay as they are. Answers
/// what this kernel's Landlock does not restrict, for people; nothing if it restricts all that.
pub(super) fn restrict(share: BorrowedFd<'_>) -> Result<Option<String>, RulesetError> {
    let all = AccessFs::from_all(WANTED);
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    // The crate leaves out what the kernel does not know.
    let status = Ruleset::default()
        .handle_access(all)?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?
        .add_rule(PathBeneath::new(share, all & !never))?
        .restrict_self()?;
    Ok(unrestricted(&status.landlock))
}

fn unrestricted(status: &LandlockStatus) -> Option<String> {
    let LandlockStatus::Available { effective_abi, .. } = status else {
        return Some("this kernel has no Landlock: what the monitor may open is not restricted by it".into());
    };
    let missing: Vec<&str> = ADDED.iter().filter(|(abi, _)| abi > effective_abi).map(|(_, what)| *what).collect();
    let version = *effective_abi as i32;
    (!missing.is_empty())
        .then(|| format!("this kernel's Landlock (version {version}) does not restrict: {}", missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_restricted_is_said() {
        let of = |effective_abi| unrestricted(&LandlockStatus::Available { effective_abi, kernel_abi: None });
        assert_eq!(of(ABI::V6), None);
        assert_eq!(of(ABI::V10), None);
        let old = of(ABI::V4).unwrap();
        assert!(old.contains("version 4") && old.ends_with("(ioctl), signals and abstract sockets"), "{old}");
        assert!(unrestricted(&LandlockStatus::NotEnabled).unwrap().contains("no Landlock"));
    }
}

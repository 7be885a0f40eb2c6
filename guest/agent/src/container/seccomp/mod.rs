//! Seccomp filters: the default profile, and profiles of the OCI runtime specification, as BPF programs.

mod arch;
mod compile;
mod default_profile;
mod profile;

use cofferdam_proto::agent::Seccomp;
use cofferdam_proto::agent::seccomp::Kind;

use arch::Arch;
pub use compile::Filter;
use compile::{Action, Condition, Operator, Rule};

use super::capabilities::{self, Caps};
use crate::error::{Error, Result};

/// The filter that a request asks for; `None` is no filter.
///
/// # Errors
/// For a profile that cannot be read or that this agent cannot enforce.
pub fn filter(request: Option<&Seccomp>, caps: &Caps) -> Result<Option<Filter>> {
    let Some(request) = request else { return Ok(None) };
    match Kind::try_from(request.kind) {
        Ok(Kind::Unconfined) => Ok(None),
        Ok(Kind::RuntimeDefault) => default_filter(caps).map(Some),
        Ok(Kind::Profile) => profile::filter(&request.profile, caps).map(Some),
        Err(_) => Err(Error::invalid(format!("seccomp kind {} is unknown", request.kind))),
    }
}

/// As runc where a profile says nothing of flags: what mitigates speculation is left to the kernel's own default.
const DEFAULT_FLAGS: u64 = 4; // SECCOMP_FILTER_FLAG_SPEC_ALLOW

fn default_filter(caps: &Caps) -> Result<Filter> {
    let arches = [Arch::X86_64, Arch::X86].map(|arch| (arch, default_rules(arch, caps)));
    compile::compile(&arches, Action::Errno(libc::EPERM as u16), DEFAULT_FLAGS)
}

fn default_rules(arch: Arch, caps: &Caps) -> Vec<Rule> {
    let names = |list: &'static str| {
        let numbers = list.split_whitespace().filter_map(move |name| arch.number(name));
        numbers.map(|syscall| Rule { syscall, conditions: Vec::new(), action: Action::Allow })
    };
    let mut rules: Vec<Rule> = names(default_profile::ALLOWED).collect();
    rules.extend(names(default_profile::ALLOWED_32));
    let has = |name: &str| capabilities::number(name).is_some_and(|n| caps.bounding & (1 << n) != 0);
    for (capability, list) in default_profile::WITH_CAPABILITY {
        if has(capability) {
            rules.extend(names(list));
        }
    }
    let mut when = |name: &str, index: u8, operator: Operator, value: u64, action: Action| {
        if let Some(syscall) = arch.number(name) {
            rules.push(Rule { syscall, conditions: vec![Condition { index, operator, value }], action });
        }
    };
    if !has("CAP_SYS_ADMIN") {
        when("clone", 0, Operator::MaskedEqual(default_profile::NEW_NAMESPACES), 0, Action::Allow);
    }
    for value in default_profile::PERSONALITIES {
        when("personality", 0, Operator::Equal, value, Action::Allow);
    }
    when("socket", 0, Operator::NotEqual, default_profile::AF_VSOCK, Action::Allow);
    if !has("CAP_SYS_ADMIN")
        && let Some(syscall) = arch.number("clone3")
    {
        // Its flags are behind a pointer; libc falls back to clone.
        rules.push(Rule { syscall, conditions: Vec::new(), action: Action::Errno(libc::ENOSYS as u16) });
    }
    rules
}

#[cfg(test)]
mod tests;

//! Profiles in the JSON of the OCI runtime specification (`linux.seccomp`), and of the files that docker and the kubelet use,
//! which add `includes`, `excludes` and `archMap`.

use serde::Deserialize;

use super::DEFAULT_FLAGS;
use super::arch::Arch;
use super::compile::{Action, Condition, Filter, Operator, Rule, compile};
use crate::container::capabilities::{self, Caps};
use crate::error::{Doing, Error, Result};

/// Longest profile that is read.
const MAX_PROFILE: usize = 1 << 20;
const NATIVE: &str = "SCMP_ARCH_X86_64";
const X86: &str = "SCMP_ARCH_X86";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Option<Vec<Syscalls>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

impl Profile {
    /// Whether it is for programs of 32 bits too. Without a word of architectures it is for the kernel's own alone.
    fn names_x86(&self) -> bool {
        let subs = self.arch_map.iter().flatten().filter(|map| map.architecture == NATIVE);
        let mut subs = subs.flat_map(|map| map.sub_architectures.iter().flatten());
        self.architectures.iter().any(|a| a == X86) || subs.any(|a| a == X86)
    }

    fn flags(&self) -> Result<u64> {
        let Some(names) = &self.flags else { return Ok(DEFAULT_FLAGS) };
        names.iter().try_fold(0, |flags, name| {
            Ok(flags
                | match name.as_str() {
                    // One thread: nothing to synchronize. Without a listener, nobody waits for its answers.
                    "SECCOMP_FILTER_FLAG_TSYNC" | "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
                    "SECCOMP_FILTER_FLAG_LOG" => 2,
                    "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 4,
                    other => return Err(Error::invalid(format!("the seccomp profile has an unknown flag {other:?}"))),
                })
        })
    }

    fn rules(&self, arch: Arch, caps: &Caps) -> Result<Vec<Rule>> {
        let mut rules = Vec::new();
        for entry in self.syscalls.iter().flatten().filter(|e| applies(e, caps)) {
            let action = action(&entry.action, entry.errno_ret)?;
            let alternatives = alternatives(entry.args.as_deref().unwrap_or(&[]))?;
            for name in entry.names.iter().chain(&entry.name) {
                // Names of other architectures are in every profile.
                let Some(syscall) = arch.number(name) else { continue };
                rules.extend(alternatives.iter().map(|c| Rule { syscall, conditions: c.clone(), action }));
            }
        }
        Ok(rules)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscalls {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Conditions>,
    #[serde(default)]
    excludes: Option<Conditions>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Conditions {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

fn action(name: &str, errno: Option<u16>) -> Result<Action> {
    let errno = errno.unwrap_or(libc::EPERM as u16);
    match name {
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_LOG" => Ok(Action::Log),
        "SCMP_ACT_ERRNO" if errno <= 4095 => Ok(Action::Errno(errno)),
        "SCMP_ACT_TRACE" => Ok(Action::Trace(errno)),
        "SCMP_ACT_TRAP" => Ok(Action::Trap),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
        "SCMP_ACT_NOTIFY" => Err(Error::invalid("the seccomp profile asks for a listener, which is not supported")),
        other => Err(Error::invalid(format!("the seccomp profile has an unknown action {other:?} or errno {errno}"))),
    }
}

fn condition(arg: &Arg) -> Result<Condition> {
    let operator = match arg.op.as_str() {
        "SCMP_CMP_EQ" => Operator::Equal,
        "SCMP_CMP_NE" => Operator::NotEqual,
        "SCMP_CMP_LT" => Operator::Less,
        "SCMP_CMP_LE" => Operator::LessOrEqual,
        "SCMP_CMP_GT" => Operator::Greater,
        "SCMP_CMP_GE" => Operator::GreaterOrEqual,
        // `value` is the mask there, `valueTwo` what must be left.
        "SCMP_CMP_MASKED_EQ" => Operator::MaskedEqual(arg.value),
        other => return Err(Error::invalid(format!("the seccomp profile has an unknown operator {other:?}"))),
    };
    if arg.index > 5 {
        return Err(Error::invalid(format!("a seccomp rule names argument {}; there are 6", arg.index)));
    }
    let value = if let Operator::MaskedEqual(_) = operator { arg.value_two } else { arg.value };
    Ok(Condition { index: arg.index, operator, value })
}

fn applies(entry: &Syscalls, caps: &Caps) -> bool {
    let has = |name: &String| capabilities::number(name).is_some_and(|n| caps.bounding & (1 << n) != 0);
    let ours = |name: &String| matches!(name.as_str(), "amd64" | "x86_64");
    let included = entry.includes.as_ref().is_none_or(|c| {
        c.caps.as_ref().is_none_or(|c| c.iter().all(has))
            && c.arches.as_ref().is_none_or(|a| a.is_empty() || a.iter().any(ours))
    });
    let excluded = entry.excludes.as_ref().is_some_and(|c| {
        c.caps.as_ref().is_some_and(|c| c.iter().any(has)) || c.arches.as_ref().is_some_and(|a| a.iter().any(ours))
    });
    included && !excluded
}

/// One rule for each set of arguments: an index that comes twice means "or", as in libseccomp's users.
fn alternatives(args: &[Arg]) -> Result<Vec<Vec<Condition>>> {
    let conditions: Vec<_> = args.iter().map(condition).collect::<Result<_>>()?;
    let twice = conditions.iter().enumerate().any(|(at, c)| conditions[..at].iter().any(|b| b.index == c.index));
    Ok(if twice { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] })
}

/// Reads and compiles a profile.
///
/// # Errors
/// For what cannot be read, is unknown, or cannot be enforced.
pub fn filter(json: &[u8], caps: &Caps) -> Result<Filter> {
    if json.len() > MAX_PROFILE {
        return Err(Error::invalid(format!("the seccomp profile is longer than {MAX_PROFILE} bytes")));
    }
    let profile: Profile = serde_json::from_slice(json).asked("read the seccomp profile")?;
    if !profile.listener_path.is_empty() {
        return Err(Error::invalid("the seccomp profile asks for a listener, which is not supported"));
    }
    if !profile.architectures.is_empty() && !profile.architectures.iter().any(|a| a == NATIVE) {
        return Err(Error::invalid("the seccomp profile is not for x86_64"));
    }
    let flags = profile.flags()?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut arches = vec![(Arch::X86_64, profile.rules(Arch::X86_64, caps)?)];
    if profile.names_x86() {
        arches.push((Arch::X86, profile.rules(Arch::X86, caps)?));
    }
    compile(&arches, default, flags)
}

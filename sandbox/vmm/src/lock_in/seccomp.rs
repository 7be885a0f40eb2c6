//! The filters of system calls, made from the table in [`super::calls`].
//!
//! The first one is for the whole process and allows what any thread needs. Each thread then puts the filter of its kind on
//! top of it: the kernel takes the stricter answer of the two. A call that is not allowed ends the process with SIGSYS.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::calls::{Arguments, REFUSED, ROWS, Refused, ThreadKind};

/// Restricts the calling thread, and what it starts, to what any thread needs.
pub(super) fn restrict_process() -> io::Result<()> {
    restrict_thread(ThreadKind::Starter)
}

/// Restricts the calling thread, and what it starts, to what threads of `kind` need.
pub(super) fn restrict_thread(kind: ThreadKind) -> io::Result<()> {
    // An error is stricter than leave. The filter that gives leave comes last, since it takes away the leave to add filters.
    for refused in REFUSED.iter().filter(|refused| refused.is_for(kind)) {
        apply(&fails(refused).map_err(io::Error::other)?)?;
    }
    apply(&allowed(kind).map_err(io::Error::other)?)
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(io::Error::other)
}

/// Allows what `kind` needs; anything else ends the process.
fn allowed(kind: ThreadKind) -> Result<BpfProgram, seccompiler::BackendError> {
    // A call without rules is allowed whatever its arguments, and so must not also have rules.
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| row.is_for(kind)) {
        rules.entry(row.call).or_default().extend(conditions(row.arguments)?);
    }
    for refused in REFUSED.iter().filter(|refused| refused.is_for(kind)) {
        rules.entry(refused.call).or_default();
    }
    compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Lets one call fail, and gives leave to all others.
fn fails(refused: &Refused) -> Result<BpfProgram, seccompiler::BackendError> {
    let error = SeccompAction::Errno(refused.errno.cast_unsigned());
    compile([(refused.call, Vec::new())].into(), SeccompAction::Allow, error)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matched, architecture)?.try_into()
}

/// One rule for each way in which the arguments may be right; none when they may be anything.
fn conditions(arguments: Arguments) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |argument, operator, value: u32| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value.into())?;
        SeccompRule::new(vec![condition])
    };
    match arguments {
        Arguments::Any => Ok(Vec::new()),
        Arguments::OneOf(argument, values) => {
            values.iter().map(|value| rule(argument, SeccompCmpOp::Eq, *value)).collect()
        }
        Arguments::With(argument, bits) => Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits.into()), bits)?]),
        Arguments::Without(argument, bits) => Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)?]),
        Arguments::OwnProcess => Ok(vec![rule(0, SeccompCmpOp::Eq, std::process::id())?]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// An unconditional row beside a conditional one of the same call would be read as conditional.
    #[test]
    fn no_call_is_both_free_and_conditional() {
        let calls = |free: bool| -> BTreeSet<i64> {
            let rows = ROWS.iter().filter(|row| matches!(row.arguments, Arguments::Any) == free);
            rows.map(|row| row.call).collect()
        };
        assert_eq!(calls(true).intersection(&calls(false)).collect::<Vec<_>>(), Vec::<&i64>::new());
    }

    #[test]
    fn every_kind_has_a_filter_of_its_own() {
        let kinds = [
            ThreadKind::Main,
            ThreadKind::Vcpu,
            ThreadKind::Block,
            ThreadKind::Files,
            ThreadKind::End,
            ThreadKind::Starter,
        ];
        let lengths: Vec<usize> = kinds.iter().map(|kind| allowed(*kind).unwrap().len()).collect();
        let starter = lengths[5];
        assert!(lengths[..5].iter().all(|length| *length < starter), "{lengths:?}");
    }
}

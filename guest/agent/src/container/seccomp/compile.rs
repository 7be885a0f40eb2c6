//! From rules to a BPF program.
//!
//! ```text
//!  x86_64? ──► its calls      for each call:  nr == N ? its rules, one after the other
//!  i386? ────► its calls                      none holds: the default action
//!  another architecture, x32, newer than the profile ──► ENOSYS
//! ```
//!
//! Each architecture has its own numbers, so each has its own chain.
//!
//! The kernel runs each call without conditions once, when the filter is loaded, and remembers that it is allowed; so the
//! length of the chain costs nothing.

use std::collections::BTreeMap;

use super::arch::Arch;
use crate::error::{Doing, Error, Result};

/// Longest program that the kernel takes.
const MAX_INSTRUCTIONS: usize = 4096;

const X32_BIT: u32 = 0x4000_0000;

const LD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It runs.
    Allow,
    /// It runs and is logged.
    Log,
    /// It fails with this number.
    Errno(u16),
    /// SIGSYS.
    Trap,
    /// A tracer decides.
    Trace(u16),
    /// The thread ends.
    KillThread,
    /// The process ends.
    KillProcess,
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Self::Allow => 0x7fff_0000,
            Self::Log => 0x7ffc_0000,
            Self::Errno(n) => 0x0005_0000 | u32::from(n),
            Self::Trap => 0x0003_0000,
            Self::Trace(n) => 0x7ff0_0000 | u32::from(n),
            Self::KillThread => 0,
            Self::KillProcess => 0x8000_0000,
        }
    }
}

/// How an argument is compared: all its bits, unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `argument & mask == value`
    MaskedEqual(u64),
}

/// One argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0..=5
    pub index: u8,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: u64,
}

/// A call, when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub syscall: u32,
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Then this.
    pub action: Action,
}

/// A program ready for the kernel.
#[derive(Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: u64,
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Filter({} instructions, flags {:#x})", self.program.len(), self.flags)
    }
}

impl Filter {
    /// Puts the filter on this process, for ever.
    ///
    /// # Errors
    /// Without no_new_privs and without CAP_SYS_ADMIN.
    pub fn load(&self) -> Result<()> {
        crate::sys::set_seccomp(&self.program, self.flags).doing("load the seccomp filter")
    }

    #[cfg(test)]
    pub(super) fn program(&self) -> &[libc::sock_filter] {
        &self.program
    }
}

fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Instructions that fall through when the condition holds; each `u8::MAX` jump means "it does not hold".
fn condition(c: &Condition, arch: Arch) -> Vec<libc::sock_filter> {
    const NO: u8 = u8::MAX;
    if !arch.wide() {
        return narrow(c);
    }
    // struct seccomp_data: nr, arch, instruction pointer (8 bytes), args; little endian.
    let low = 16 + 8 * u32::from(c.index);
    let high = low + 4;
    let (value_low, value_high) = (c.value as u32, (c.value >> 32) as u32);
    match c.operator {
        Operator::Equal => {
            vec![op(LD_WORD, high), branch(JEQ, value_high, 0, NO), op(LD_WORD, low), branch(JEQ, value_low, 0, NO)]
        }
        Operator::NotEqual => {
            vec![op(LD_WORD, high), branch(JEQ, value_high, 0, 2), op(LD_WORD, low), branch(JEQ, value_low, NO, 0)]
        }
        Operator::MaskedEqual(mask) => vec![
            op(LD_WORD, high),
            op(AND, (mask >> 32) as u32),
            branch(JEQ, value_high, 0, NO),
            op(LD_WORD, low),
            op(AND, mask as u32),
            branch(JEQ, value_low, 0, NO),
        ],
        Operator::Greater => vec![
            op(LD_WORD, high),
            branch(JGT, value_high, 3, 0),
            branch(JEQ, value_high, 0, NO),
            op(LD_WORD, low),
            branch(JGT, value_low, 0, NO),
        ],
        Operator::GreaterOrEqual => vec![
            op(LD_WORD, high),
            branch(JGT, value_high, 3, 0),
            branch(JEQ, value_high, 0, NO),
            op(LD_WORD, low),
            branch(JGE, value_low, 0, NO),
        ],
        Operator::LessOrEqual => vec![
            op(LD_WORD, high),
            branch(JGT, value_high, NO, 0),
            branch(JEQ, value_high, 0, 2),
            op(LD_WORD, low),
            branch(JGT, value_low, NO, 0),
        ],
        Operator::Less => vec![
            op(LD_WORD, high),
            branch(JGT, value_high, NO, 0),
            branch(JEQ, value_high, 0, 2),
            op(LD_WORD, low),
            branch(JGE, value_low, NO, 0),
        ],
    }
}

/// Same for arguments of 32 bits; the upper half of a profile's value is nothing to them.
fn narrow(c: &Condition) -> Vec<libc::sock_filter> {
    const NO: u8 = u8::MAX;
    let value = c.value as u32;
    let mut code = vec![op(LD_WORD, 16 + 8 * u32::from(c.index))];
    if let Operator::MaskedEqual(mask) = c.operator {
        code.push(op(AND, mask as u32));
    }
    code.push(match c.operator {
        Operator::Equal | Operator::MaskedEqual(_) => branch(JEQ, value, 0, NO),
        Operator::NotEqual => branch(JEQ, value, NO, 0),
        Operator::Less => branch(JGE, value, NO, 0),
        Operator::LessOrEqual => branch(JGT, value, NO, 0),
        Operator::Greater => branch(JGT, value, 0, NO),
        Operator::GreaterOrEqual => branch(JGE, value, 0, NO),
    });
    code
}

/// All conditions, then the action; what does not hold goes on behind it.
fn rule(rule: &Rule, arch: Arch) -> Result<Vec<libc::sock_filter>> {
    let mut code: Vec<_> = rule.conditions.iter().flat_map(|c| condition(c, arch)).collect();
    code.push(op(RET, rule.action.value()));
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        let to_end = u8::try_from(end - at - 1).ok().filter(|n| *n < u8::MAX);
        let to_end = to_end.ok_or_else(|| Error::invalid("a seccomp rule has too many conditions"))?;
        for jump in [&mut instruction.jt, &mut instruction.jf] {
            if *jump == u8::MAX {
                *jump = to_end;
            }
        }
    }
    Ok(code)
}

/// Compiles the rules of each architecture. For one call, rules with conditions come first, in their order, then the one
/// without.
///
/// # Errors
/// When the program would be longer than the kernel takes.
pub fn compile(arches: &[(Arch, Vec<Rule>)], default: Action, flags: u64) -> Result<Filter> {
    let mut code = vec![op(LD_WORD, 4)];
    for (arch, rules) in arches {
        let block = calls(*arch, rules, default)?;
        code.push(branch(JEQ, arch.audit(), 1, 0));
        code.push(op(JUMP, block.len() as u32));
        code.extend(block);
    }
    code.push(op(RET, Action::Errno(libc::ENOSYS as u16).value()));
    if code.len() > MAX_INSTRUCTIONS {
        return Err(Error::invalid(format!(
            "the seccomp profile needs {} instructions, the kernel takes {MAX_INSTRUCTIONS}",
            code.len()
        )));
    }
    Ok(Filter { program: code, flags })
}

/// What happens to calls of one architecture; ends with a return.
fn calls(arch: Arch, rules: &[Rule], default: Action) -> Result<Vec<libc::sock_filter>> {
    let mut by_call: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in rules {
        by_call.entry(rule.syscall).or_default().push(rule);
    }
    let mut code = vec![op(LD_WORD, 0)];
    if arch == Arch::X86_64 {
        code.push(branch(JGE, X32_BIT, 0, 1));
        code.push(op(RET, Action::Errno(libc::ENOSYS as u16).value()));
    }
    // A call that is newer than the profile does not exist, so that libc falls back to an older one.
    if let (Some((newest, _)), Action::Errno(_)) = (by_call.last_key_value(), default) {
        code.push(branch(JGT, *newest, 0, 1));
        code.push(op(RET, Action::Errno(libc::ENOSYS as u16).value()));
    }
    for (number, rules) in &by_call {
        let mut block = Vec::new();
        for r in rules.iter().filter(|r| !r.conditions.is_empty()) {
            block.extend(rule(r, arch)?);
        }
        let always = rules.iter().rev().find(|r| r.conditions.is_empty()).map_or(default, |r| r.action);
        block.push(op(RET, always.value()));
        match u8::try_from(block.len()) {
            Ok(skip) => code.push(branch(JEQ, *number, 0, skip)),
            Err(_) => {
                code.push(branch(JEQ, *number, 1, 0));
                code.push(op(JUMP, block.len() as u32));
            }
        }
        code.extend(block);
    }
    code.push(op(RET, default.value()));
    Ok(code)
}

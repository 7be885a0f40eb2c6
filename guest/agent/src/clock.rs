//! A microVM's wall clock, which the daemon compares with the node's.

use std::time::{SystemTime, UNIX_EPOCH};

use cofferdam_proto::agent::ClockReply;

use crate::agent::{Agent, Mode};
use crate::error::{Doing, Error, Result};
use crate::sys;

/// From so many nanoseconds on, the clock is set; less is added by and by, which takes 200 s for this much.
const STEP_FROM: u64 = 100_000_000;

/// How the clock is changed.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Nothing,
    /// By and by, in microseconds.
    Slew(i64),
    /// At once, in nanoseconds.
    Step(i64),
}

impl Change {
    fn of(nanos: i64) -> Self {
        match nanos.unsigned_abs() {
            0 => Self::Nothing,
            STEP_FROM.. => Self::Step(nanos),
            _ => Self::Slew(nanos / 1000),
        }
    }
}

/// Adds `nanos` to the clock, and tells it.
///
/// # Errors
/// On the node, whose clock is not the agent's to set; and when the kernel refuses.
pub fn adjust(agent: &Agent, nanos: i64) -> Result<ClockReply> {
    if agent.mode != Mode::Vm {
        return Err(Error::precondition("the clock of a host pod is the node's"));
    }
    let change = Change::of(nanos);
    match change {
        Change::Nothing => Ok(()),
        Change::Slew(micros) => sys::slew_clock(micros),
        Change::Step(nanos) => sys::step_clock(nanos),
    }
    .doing(format!("add {nanos} ns to the clock"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_nanos = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    Ok(ClockReply { unix_nanos, stepped: matches!(change, Change::Step(_)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_change_is_no_jump() {
        let ms = |count: i64| count * 1_000_000;
        assert_eq!(Change::of(0), Change::Nothing);
        assert_eq!(Change::of(ms(99)), Change::Slew(99_000));
        assert_eq!(Change::of(-ms(6)), Change::Slew(-6_000));
        assert_eq!(Change::of(ms(100)), Change::Step(ms(100)));
        assert_eq!(Change::of(-ms(3_600_000)), Change::Step(-ms(3_600_000)));
        assert_eq!(Change::of(i64::MIN), Change::Step(i64::MIN));
    }
}

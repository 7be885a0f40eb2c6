//! The tour of `make demo`, whole and with the daemon killed between any two of its steps.

use super::Test;
use crate::daemon;
use crate::demo::{STEPS, Tour};
use crate::failure::{Failure, Outcome};

pub(super) const TESTS: &[Test] =
    &[("tour", || walk(false)), ("tour_with_the_daemon_killed_between_any_two_steps", || walk(true))];

pub(super) fn walk(kill: bool) -> Outcome {
    let mut tour = Tour::new()?;
    for (number, (title, step)) in STEPS.iter().enumerate() {
        if kill && number > 0 {
            daemon::kill_and_restart()?;
        }
        step(&mut tour).map_err(|f| Failure(format!("step {} ({title}): {f}", number + 1)))?;
    }
    Ok(())
}

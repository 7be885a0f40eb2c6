//! The leak test of `make soak`, short enough for every run.

use super::Test;
use crate::soak::{self, Options};

pub(super) const TESTS: &[Test] =
    &[("pods_come_and_go_and_leave_nothing", || soak::run(&Options { host: 30, cni: 4, vm: 6, warm_up: 2 }))];

//! `cofferdam-agent`: starts containers, as PID 1 of a microVM or as the supervisor of a host pod.
//!
//! One thread, so that it may fork: see docs/design.md.

mod agent;
mod apart;
mod before_pod;
mod clock;
mod container;
mod disks;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod guest;
mod logs;
mod network;
mod pod;
mod port_forward;
mod reaper;
mod reclaim;
mod service;
mod supervise;
mod sys;
mod users;
mod vcpus;

use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; what a panicking holder left is whole, since nothing here is changed in two steps.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Warnings and errors alone, as plain text: on a guest's console each byte costs the monitor an exit, and a supervisor's last lines are what
/// people are told of a pod that died.
fn start_log() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing::Level::WARN)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .init();
}

/// A program that serves one pod does not go on after a panic: the message first, then the end.
fn abort_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort()
    }));
}

/// The whole program.
pub fn main() -> ExitCode {
    abort_on_panic();
    if rustix::process::getpid().as_raw_nonzero().get() == 1 && std::env::args_os().len() <= 1 {
        guest::run();
    }
    start_log();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["supervise", "--config-fd", number] => match number.parse() {
            Ok(fd) => supervise::run(fd),
            Err(_) => Err(error::Error::invalid(format!("{number:?} is not a descriptor"))),
        },
        ["--version"] => {
            println!("cofferdam-agent {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => Err(error::Error::invalid("usage: cofferdam-agent supervise --config-fd N, or as PID 1 of a microVM")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cofferdam-agent: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

//! `cofferdam-vmm --config-fd N`: one process, one microVM (`cofferdam_proto::monitor`).
//!
//! The main thread runs one epoll loop for the control socket and most devices; each vCPU has a thread, and so have
//! the disks and the file server, and one starts the others. Nothing polls: an idle VM's threads
//! all sleep in the kernel.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads as they like"))]

// First, since its macro is for all of them.
#[macro_use]
mod stderr;

mod accept;
mod boot;
mod bus;
mod control;
mod counters;
mod devices;
mod disks;
mod ending;
mod event_loop;
mod fill;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod kvm;
mod launch;
mod lock_in;
mod log_sink;
mod memory;
mod process;
mod report;
mod saved;
mod saver;
mod timeline;
mod vm;

use std::error::Error;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;

use cofferdam_proto::monitor::ExitReason;

use crate::ending::End;
use crate::launch::Launch;
use crate::timeline::Timeline;
use crate::vm::Prepared;

/// The whole program.
pub fn main() -> ExitCode {
    abort_on_panic();
    let timeline = Arc::new(Timeline::new());
    process::prepare();
    let mut launch = match Launch::read(std::env::args().skip(1)) {
        Ok(launch) => launch,
        Err(error) => {
            eprintln!("{}", report::chain(&error));
            return ExitCode::FAILURE;
        }
    };
    match run(&mut launch, timeline) {
        Ok((End { reason: ExitReason::PowerOff, .. }, true)) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let end = End { reason: ExitReason::MonitorError, detail: report::chain(error.as_ref()) };
            eprintln!("the VM did not start: {}", end.detail);
            if let Err(error) = report::write(&launch.exit, &end) {
                eprintln!("cannot write the exit report: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A program that serves one pod does not go on after a panic: the message first, then the end.
fn abort_on_panic() {
    let say = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say(panic);
        std::process::abort()
    }));
}

/// Runs the VM; answers how it ended, and whether the exit report was written.
fn run(launch: &mut Launch, timeline: Arc<Timeline>) -> Result<(End, bool), Box<dyn Error>> {
    process::end_by_signals()?;
    let (settings, mut handed) = launch.check()?;
    process::name(&settings.name);
    let (share, mounts) = (handed.share.try_clone()?, handed.mounts.take());
    let prepared = Prepared::new(&settings, handed, timeline)?;
    lock_in::lock_in(share.as_fd(), mounts)?;
    Ok(prepared.start(&launch.exit)?.wait())
}

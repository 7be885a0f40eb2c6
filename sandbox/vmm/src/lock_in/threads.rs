#![allow(clippy::disallowed_methods)] // the one place that starts threads
//! Starts the monitor's threads, each under the filter of its kind.
//!
//! Threads begin at any time: the guest's driver starts the disk and the file server, and vCPUs are added. A thread inherits
//! the filters of the one that starts it, which cannot be taken off, and a vCPU's thread must not be able to do what the file
//! server does. So one thread, the starter, does nothing but start the others.

use std::io;
use std::sync::{OnceLock, mpsc};
use std::thread::{Builder, JoinHandle};

use super::calls::ThreadKind;
use super::seccomp;

/// Stack of the starter.
const STACK: usize = 64 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// Where jobs for the starter go; there is none before the monitor is locked in.
static STARTER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

/// Starts a thread of `kind` that runs `body`.
pub(crate) fn start<T: Send + 'static>(
    kind: ThreadKind,
    name: impl Into<String>,
    stack: usize,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let builder = Builder::new().name(name.into()).stack_size(stack);
    let spawn = move || {
        builder.spawn(move || {
            if is_filtered() {
                enter(kind);
            }
            body()
        })
    };
    let Some(starter) = starter() else { return spawn() };
    let (reply, started) = mpsc::sync_channel(1);
    let gone = |_| io::Error::other("the thread that starts threads is gone");
    let job = move || {
        let _ = reply.send(spawn());
    };
    starter.send(Box::new(job)).map_err(|_| gone(mpsc::RecvError))?;
    started.recv().map_err(gone)?
}

/// Starts the starter, which inherits the process's filter, and restricts the calling thread to what [`ThreadKind::Main`] needs.
pub(super) fn divide() -> io::Result<()> {
    STARTER.set(serve()?).map_err(|_| io::Error::other("the monitor is locked in already"))?;
    seccomp::restrict_thread(ThreadKind::Main)
}

/// Starts the starter; answers where its jobs go.
fn serve() -> io::Result<mpsc::Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let serve = move || jobs.iter().for_each(|job| job());
    Builder::new().name("starter".into()).stack_size(STACK).spawn(serve)?;
    Ok(sender)
}

/// Restricts the calling thread. One that cannot be restricted must not run.
fn enter(kind: ThreadKind) {
    if let Err(error) = seccomp::restrict_thread(kind) {
        eprintln!("cannot restrict the system calls of a thread ({kind:?}): {error}");
        std::process::abort();
    }
}

#[cfg(not(test))]
fn starter() -> Option<&'static mpsc::Sender<Job>> {
    STARTER.get()
}

/// Where tests are filtered, the first thread that they start brings a starter without a filter.
#[cfg(test)]
fn starter() -> Option<&'static mpsc::Sender<Job>> {
    is_filtered().then(|| STARTER.get_or_init(|| serve().unwrap()))
}

#[cfg(not(test))]
fn is_filtered() -> bool {
    STARTER.get().is_some()
}

/// Tests run without filters, but for those that `device_suites_pass_under_the_filters` runs.
#[cfg(test)]
pub(super) fn is_filtered() -> bool {
    STARTER.get().is_some() || std::env::var_os(super::tests::FILTERED).is_some()
}

/// Runs `body` as a thread of `kind` would, where tests are filtered at all.
#[cfg(test)]
pub(crate) fn run_as<T: Send>(kind: ThreadKind, body: impl FnOnce() -> T + Send) -> T {
    if !is_filtered() {
        return body();
    }
    starter(); // which `body`, under its filter, could not start
    std::thread::scope(|scope| {
        let filtered = scope.spawn(|| {
            enter(kind);
            body()
        });
        filtered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

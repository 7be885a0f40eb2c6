#![allow(unsafe_code)] // a signal to the thread that tries
//! Is KVM usable? There are machines whose `/dev/kvm` opens and creates VMs, and yet cannot run an ordinary kernel, so a few
//! instructions of 64-bit code are run, and an interrupt is delivered to them.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::machine::Machine;

/// How long the trial may take: it is over in milliseconds where KVM is real, and in a second in an emulated node.
const LIMIT: Duration = Duration::from_secs(20);
/// What to do where it does not work.
const ADVICE: &str = "vm pods need hardware virtualization (VT-x or AMD-V, switched on in the firmware, or passed on to a virtual node), \
                      the kvm-intel or kvm-amd module, and access to /dev/kvm";

/// Tries it.
pub(super) fn check() -> Result<(), String> {
    try_it(LIMIT).map_err(|why| format!("/dev/kvm is not usable: {why}; {ADVICE}"))
}

fn try_it(limit: Duration) -> Result<(), String> {
    ignore_signal();
    let (sender, receiver) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let thread_id = Arc::new(AtomicU64::new(0));
    let (stopped, id) = (Arc::clone(&stop), Arc::clone(&thread_id));
    let work = move || {
        // SAFETY: has no preconditions.
        id.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
        let outcome = Machine::new().and_then(|mut machine| machine.run(&stopped));
        let _ = sender.send(outcome);
        // It must not end before the other side has stopped sending it signals.
        while !stopped.load(Ordering::SeqCst) {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    };
    let thread = std::thread::Builder::new().name("kvm-probe".into()).spawn(work).map_err(|error| error.to_string())?;
    let outcome = match receiver.recv_timeout(limit) {
        Ok(outcome) => Some(outcome),
        Err(_) => interrupt(&stop, &thread_id, &receiver),
    };
    stop.store(true, Ordering::SeqCst);
    match outcome {
        Some(outcome) => {
            thread.thread().unpark();
            let _ = thread.join();
            outcome
        }
        // It is stuck in the kernel, and stays there.
        None => {
            Err(format!("a guest of a few instructions hangs for {} s, and cannot be interrupted", limit.as_secs()))
        }
    }
}

/// Gets the thread out of KVM_RUN.
fn interrupt(
    stop: &AtomicBool,
    thread: &AtomicU64,
    receiver: &mpsc::Receiver<Result<(), String>>,
) -> Option<Result<(), String>> {
    let deadline = Instant::now() + Duration::from_secs(2);
    let id = thread.load(Ordering::SeqCst);
    stop.store(true, Ordering::SeqCst);
    while id != 0 && Instant::now() < deadline {
        // SAFETY: the thread is not joined, so its id is valid, and the handler does nothing.
        unsafe { libc::pthread_kill(id, signal()) };
        // Again and again: a signal just before KVM_RUN interrupts nothing.
        if let Ok(outcome) = receiver.recv_timeout(Duration::from_millis(20)) {
            return Some(outcome);
        }
    }
    None
}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Installs a handler that does nothing: the signal just interrupts a system call.
fn ignore_signal() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all-zero is a valid sigaction (no flags, so system calls are not restarted), and the handler is async-signal-safe.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        libc::sigaction(signal(), &raw const action, std::ptr::null_mut());
    }
}

#![allow(unsafe_code)] // mallopt, _exit
//! The process itself: lean, and dead at once when it has a bug.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use vmm_sys_util::signal::register_signal_handler;

/// Sets the process up; call it before any thread starts.
pub(crate) fn prepare() {
    // SAFETY: only sets parameters of malloc, before there is a second thread. A few threads that rarely allocate share
    // two arenas, instead of one per thread; freed memory goes back early.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10);
    }
    // A thread that panicked would leave half a VM.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Lets the signals by which people and systemd end processes end this one. Process 1 of a PID namespace, which the monitor is, would
/// ignore them otherwise, and a node that shuts down would wait for it.
pub(crate) fn end_by_signals() -> io::Result<()> {
    extern "C" fn end(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        exit_at_once(false);
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        register_signal_handler(signal, end).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    }
    Ok(())
}

/// The folder of this process's descriptors, by whose numbers their files can be opened again. No path leads from it to anything else
/// of the node: it is the root of a mount that has no place.
pub(crate) fn descriptors() -> io::Result<OwnedFd> {
    const PATH: &str = "/proc/self/fd";
    match open_tree(CWD, PATH, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC) {
        // Not root, and so not a monitor of the daemon's: tests.
        Err(rustix::io::Errno::PERM) if !rustix::process::geteuid().is_root() => {
            Ok(rustix::fs::open(PATH, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

/// Ends the process, whatever its threads do.
pub(crate) fn exit_at_once(success: bool) -> ! {
    let code = if success { libc::EXIT_SUCCESS } else { libc::EXIT_FAILURE };
    // SAFETY: does not return, and runs nothing of this process any more.
    unsafe { libc::_exit(code) }
}

/// Names the process after its pod, for people who look at process lists.
pub(crate) fn name(pod: &str) {
    let short: String = pod.chars().filter(char::is_ascii_graphic).take(11).collect();
    let Ok(name) = std::ffi::CString::new(format!("vmm:{short}")) else { return };
    let _ = rustix::thread::set_name(&name);
}

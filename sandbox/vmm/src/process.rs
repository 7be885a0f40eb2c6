#![allow(unsafe_code)] // mallopt, _exit
//! The process itself: lean, and dead at once when it has a bug.

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

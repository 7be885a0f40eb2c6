#![allow(unsafe_code)] // raw system calls, to see what becomes of them
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use rustix::fs::RenameFlags;

use super::*;

/// Set in the process whose tests run under the filters.
pub(super) const FILTERED: &str = "COFFERDAM_TEST_FILTERED";
/// Says what the child of a test tries.
const ATTEMPT: &str = "COFFERDAM_TEST_ATTEMPT";

/// Runs this test program again, with `arguments` and one variable. Like the monitor, it makes no backtraces, for which a panic
/// would open files; and its property tests are short.
fn again(arguments: &[&str], variable: &str, value: &str) -> Output {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(arguments).env_remove("RUST_BACKTRACE").env("PROPTEST_CASES", "16");
    program.env(variable, value).output().unwrap()
}

/// Locks a thread of its own in but for the filters, with `dir` as the share, and tells `inside` there whether Landlock is on.
fn locked_in(dir: &std::path::Path, inside: impl FnOnce(bool) + Send) {
    let share = File::open(dir).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop_capabilities().unwrap();
            set_no_new_privs(true).unwrap();
            let has_landlock =
                landlock::restrict(share.as_fd()).unwrap().is_none_or(|missing| !missing.contains("no Landlock"));
            inside(has_landlock);
        });
    });
}

#[test]
fn only_the_share_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("file"), "shared").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    symlink("../secret", share.join("link")).unwrap();
    locked_in(&share, |has_landlock| {
        assert_eq!(fs::read_to_string(share.join("file")).unwrap(), "shared");
        fs::write(share.join("new"), "new").unwrap();
        let (from, to) = (share.join("new"), share.join("newer"));
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::empty()).unwrap();
        for path in [dir.path().join("secret"), share.join("../secret"), share.join("link"), "/etc/passwd".into()] {
            assert_eq!(File::open(&path).is_err(), has_landlock, "{}", path.display());
        }
        assert_eq!(fs::write(dir.path().join("made"), "x").is_err(), has_landlock);
        let kept = capabilities(None).unwrap();
        assert!(KEPT.contains(kept.permitted), "{kept:?}");
    });
    assert_eq!(fs::read_to_string(share.join("newer")).unwrap(), "new");
}

/// The file server's, the disk's and the vCPUs' threads of these tests run under their filters, and so do turns of the main loop.
#[test]
fn device_suites_pass_under_the_filters() {
    if threads::is_filtered() {
        return; // these are the suites
    }
    let suites = ["devices::", "control::", "kvm::", "log_sink::"];
    let output = again(&[&suites[..], &["--test-threads=1"]].concat(), FILTERED, "1");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().rev().find(|line| line.starts_with("test ")).unwrap_or("no test");
    assert_ne!(output.status.signal(), Some(libc::SIGSYS), "a call that calls.rs does not list: {last}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("devices::virtio::blk::tests::") && said.contains("devices::virtio::fs::tests::"), "{said}");
}

/// What a thread of a kind tries, and whether it may.
type Attempt = (&'static str, ThreadKind, bool, fn());

/// A raw system call; its result does not matter, since one that is not allowed does not come back.
fn call(number: libc::c_long, arguments: [libc::c_long; 4]) {
    let [a, b, c, d] = arguments;
    // SAFETY: the attempts below pass no address that the kernel would write to, and numbers of no descriptor or process but the own.
    unsafe { libc::syscall(number, a, b, c, d) };
}

fn own() -> (libc::c_long, libc::c_long) {
    // SAFETY: touches no memory.
    (std::process::id().into(), unsafe { libc::gettid() }.into())
}

fn ioctl(request: libc::c_long) {
    call(libc::SYS_ioctl, [-1, request, 0, 0]);
}

fn code(call_number: libc::c_long) {
    call(call_number, [0, 0, (libc::PROT_READ | libc::PROT_EXEC).into(), 0]);
}

/// Fails, but does not end the process: malloc does it too.
fn open_in_vain() {
    let file = rustix::fs::openat(rustix::fs::CWD, "/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
    assert_eq!(file.unwrap_err(), rustix::io::Errno::ACCESS);
}

const KVM_RUN: libc::c_long = 0xae80;
const KVM_CREATE_VCPU: libc::c_long = 0xae41;
const KVM_CREATE_DEVICE: libc::c_long = 0xc00c_aee0;
const TUNATTACHFILTER: libc::c_long = 0x4010_54d5;

#[rustfmt::skip]
const ATTEMPTS: &[Attempt] = &[
    // Nobody.
    ("socket", ThreadKind::Starter, false, || call(libc::SYS_socket, [libc::AF_INET.into(), 1, 0, 0])),
    ("fork", ThreadKind::Starter, false, || call(libc::SYS_fork, [0; 4])),
    ("clone a process", ThreadKind::Starter, false, || call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0])),
    ("execve", ThreadKind::Starter, false, || call(libc::SYS_execve, [0; 4])),
    ("ptrace", ThreadKind::Starter, false, || call(libc::SYS_ptrace, [0; 4])),
    ("mount", ThreadKind::Starter, false, || call(libc::SYS_mount, [0; 4])),
    ("new namespaces", ThreadKind::Starter, false, || call(libc::SYS_unshare, [libc::CLONE_NEWNS.into(), 0, 0, 0])),
    ("open by handle", ThreadKind::Starter, false, || call(libc::SYS_open_by_handle_at, [-1, 0, 0, 0])),
    ("map code", ThreadKind::Starter, false, || code(libc::SYS_mmap)),
    ("make code", ThreadKind::Starter, false, || code(libc::SYS_mprotect)),
    ("make a KVM device", ThreadKind::Starter, false, || ioctl(KVM_CREATE_DEVICE)),
    ("filter a tap", ThreadKind::Starter, false, || ioctl(TUNATTACHFILTER)),
    ("signal by kill", ThreadKind::Starter, false, || call(libc::SYS_kill, [0; 4])),
    ("signal init", ThreadKind::Starter, false, || call(libc::SYS_tgkill, [1, 1, 0, 0])),
    ("signal oneself", ThreadKind::Main, true, || call(libc::SYS_tgkill, [own().0, own().1, 0, 0])),
    ("be sent signals", ThreadKind::Starter, false, || call(libc::SYS_fcntl, [0, libc::F_SETOWN.into(), 1, 0])),
    ("send signals on I/O", ThreadKind::Starter, false, || call(libc::SYS_fcntl, [0, libc::F_SETFL.into(), 0, 0])),
    ("choose the signal", ThreadKind::Starter, false, || call(libc::SYS_fcntl, [0, 10 /* F_SETSIG */, 0, 0])),
    ("the library's probe", ThreadKind::Starter, true, || call(libc::SYS_clone3, [0; 4])),
    // Some, not others.
    ("run a vCPU", ThreadKind::Vcpu, true, || ioctl(KVM_RUN)),
    ("run a vCPU elsewhere", ThreadKind::Files, false, || ioctl(KVM_RUN)),
    ("make a vCPU", ThreadKind::Main, true, || ioctl(KVM_CREATE_VCPU)),
    ("make a vCPU in one", ThreadKind::Vcpu, false, || ioctl(KVM_CREATE_VCPU)),
    ("open a file", ThreadKind::Files, true, || call(libc::SYS_openat, [-1, 0, 0, 0])),
    ("open a file in the main loop", ThreadKind::Main, true, open_in_vain),
    ("open a file in a vCPU", ThreadKind::Vcpu, true, open_in_vain),
    ("open a file for the disk", ThreadKind::Block, true, open_in_vain),
    ("act for a user", ThreadKind::Files, true, || call(libc::SYS_setresuid, [-1, -1, -1, 0])),
    ("act for a user in a vCPU", ThreadKind::Vcpu, false, || call(libc::SYS_setresuid, [-1, -1, -1, 0])),
    ("start a thread", ThreadKind::Main, false, || drop(std::thread::spawn(|| {}))),
    ("take a connection", ThreadKind::Files, false, || call(libc::SYS_accept4, [-1, 0, 0, 0])),
    ("be filtered again", ThreadKind::Main, false, || drop(seccomp::restrict_thread(ThreadKind::Files))),
    ("panic", ThreadKind::Block, true, || drop(std::panic::catch_unwind(|| panic!("on purpose")))),
];

#[test]
fn calls_that_a_thread_does_not_need_end_the_process() {
    if threads::is_filtered() {
        return;
    }
    let child = ["--exact", "lock_in::tests::child", "--ignored", "--nocapture"];
    for (what, kind, allowed, _) in ATTEMPTS {
        let output = again(&child, ATTEMPT, what);
        let said = String::from_utf8_lossy(&output.stderr);
        if *allowed {
            assert!(output.status.success(), "{kind:?} may {what:?}: {:?}, {said}", output.status);
        } else {
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{kind:?} must not {what:?}: {said}");
        }
    }
}

/// The child of the test above.
#[test]
#[ignore = "a part of calls_that_a_thread_does_not_need_end_the_process"]
fn child() {
    let Ok(attempt) = std::env::var(ATTEMPT) else { return };
    let (_, kind, _, run) = ATTEMPTS.iter().find(|(what, ..)| *what == attempt).unwrap();
    std::thread::spawn(move || {
        // As in the monitor: the process's filters, and those of the kind on top.
        seccomp::restrict_process().unwrap();
        if *kind != ThreadKind::Starter {
            seccomp::restrict_thread(*kind).unwrap();
        }
        run();
    })
    .join()
    .unwrap();
}

/// As the monitor does it: the main thread locks itself in, and threads of all kinds are started later, by any thread.
#[test]
#[ignore = "a part of threads_of_all_kinds_start_later"]
fn divided() {
    std::thread::spawn(|| {
        seccomp::restrict_process().unwrap();
        threads::divide().unwrap();
        let inner = || {
            let (root, flags, mode) = (rustix::fs::CWD, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
            let opened = move || rustix::fs::openat(root, "/", flags, mode).is_ok();
            start_thread(ThreadKind::Files, "inner", 128 << 10, opened).unwrap().join().unwrap()
        };
        let outer = start_thread(ThreadKind::Vcpu, "outer", 128 << 10, inner).unwrap();
        assert!(outer.join().unwrap());
        println!("all started");
    })
    .join()
    .unwrap();
}

#[test]
fn threads_of_all_kinds_start_later() {
    if threads::is_filtered() {
        return;
    }
    let output = again(&["--exact", "lock_in::tests::divided", "--ignored", "--nocapture"], ATTEMPT, "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("all started"), "{:?}: {said}", output.status);
}

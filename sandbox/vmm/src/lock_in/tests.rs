#![allow(unsafe_code)] // raw system calls, to see what becomes of them
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, StatxFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::pivot_root;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::*;

/// Set in the process whose tests run under the filters.
pub(super) const FILTERED: &str = "COFFERDAM_TEST_FILTERED";
/// Says what the child of a test tries.
const ATTEMPT: &str = "COFFERDAM_TEST_ATTEMPT";

/// Runs this test program again, with `arguments` and one variable. Like the monitor, it is process
/// 1 of a PID namespace if this is root, and makes no backtraces, for which a panic would open
/// files; and its property tests are short.
fn again(arguments: &[&str], variable: &str, value: &str) -> Output {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(arguments).env_remove("RUST_BACKTRACE").env("PROPTEST_CASES", "16").env(variable, value);
    let run = move || {
        if rustix::process::geteuid().is_root() {
            // SAFETY: nothing changes but where the children of this thread are born.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.unwrap();
        }
        program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    std::thread::spawn(run).join().unwrap().wait_with_output().unwrap()
}

/// A mount namespace whose root is `dir`.
fn namespace_of(dir: &Path) -> OwnedFd {
    let make = || {
        // SAFETY: only this thread gets mounts, a root and a working directory of its own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        let own = rustix::fs::open("/proc/thread-self/ns", OFlags::PATH, Mode::empty()).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        rustix::mount::mount_bind(dir, dir).unwrap();
        std::env::set_current_dir(dir).unwrap();
        pivot_root(".", ".").unwrap();
        unmount(".", UnmountFlags::DETACH).unwrap();
        rustix::fs::openat(own, "mnt", OFlags::RDONLY, Mode::empty()).unwrap()
    };
    std::thread::scope(|scope| scope.spawn(make).join().unwrap())
}

/// What a monitor has of its share and of its descriptors, by which one might climb.
struct Held {
    share: OwnedFd,
    descriptors: OwnedFd,
}

/// Locks a thread of its own in but for namespaces and filters, after `enter`, which answers the
/// share.
fn locked_in(enter: impl FnOnce() -> OwnedFd + Send, inside: impl FnOnce(bool, Held) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let descriptors = crate::process::descriptors().unwrap();
            let share = enter();
            drop_capabilities().unwrap();
            set_no_new_privs(true).unwrap();
            let has_landlock =
                landlock::restrict(share.as_fd()).unwrap().is_none_or(|missing| !missing.contains("no Landlock"));
            inside(has_landlock, Held { share, descriptors });
        });
    });
}

fn path_fd(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// What Landlock does by itself.
#[test]
fn only_files_of_the_share_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    fs::create_dir(&share).unwrap();
    fs::write(share.join("file"), "shared").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    symlink("../secret", share.join("link")).unwrap();
    let enter = || path_fd(&share);
    locked_in(enter, |has_landlock, _| {
        assert_eq!(fs::read_to_string(share.join("file")).unwrap(), "shared");
        fs::write(share.join("new"), "new").unwrap();
        let (from, to) = (share.join("new"), share.join("newer"));
        rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::empty()).unwrap();
        for path in [dir.path().join("secret"), share.join("../secret"), share.join("link"), "/etc/passwd".into()] {
            assert_eq!(fs::File::open(&path).is_err(), has_landlock, "{}", path.display());
        }
        assert_eq!(fs::write(dir.path().join("made"), "x").is_err(), has_landlock);
        let kept = capabilities(None).unwrap();
        assert!(KEPT.contains(kept.permitted), "{kept:?}");
    });
    assert_eq!(fs::read_to_string(share.join("newer")).unwrap(), "new");
}

/// What the mount namespace adds: Landlock restricts neither looking at files nor changing their
/// attributes.
#[test]
fn nothing_but_the_share_can_be_named() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can make mount namespaces");
    }
    let dir = tempfile::tempdir().unwrap();
    let (share, secret) = (dir.path().join("share"), dir.path().join("secret"));
    fs::create_dir(&share).unwrap();
    fs::write(share.join("file"), "shared").unwrap();
    fs::write(&secret, "secret").unwrap();
    symlink("../secret", share.join("link")).unwrap();
    symlink(&secret, share.join("absolute")).unwrap();
    let state = || {
        let stat = fs::metadata(&secret).unwrap();
        (stat.mode(), stat.uid(), stat.nlink(), stat.mtime_nsec(), stat.ctime_nsec())
    };
    let before = state();
    let mounts = namespace_of(&share);
    let enter = || {
        // SAFETY: this thread alone gets a root and a working directory of its own.
        unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
        enter(mounts.as_fd()).unwrap();
        path_fd("/".as_ref()) // the daemon hands over one that is in the namespace, too
    };
    locked_in(enter, |_, held| {
        assert_eq!(fs::read_to_string("/file").unwrap(), "shared");
        fs::write("/new", "new").unwrap();
        rustix::fs::chmodat(CWD, "/new", Mode::RUSR, AtFlags::empty()).unwrap();
        let number = held.share.as_raw_fd().to_string();
        rustix::fs::statx(&held.descriptors, Path::new(&number).join("new"), AtFlags::empty(), StatxFlags::TYPE)
            .unwrap();
        nothing_else_is_reached(&held, &secret);
    });
    assert_eq!(state(), before);
    assert!(!dir.path().join("made").exists());
}

/// By no path can a file outside the share be opened, looked at, changed or linked, nor a new one
/// be made.
fn nothing_else_is_reached(held: &Held, secret: &Path) {
    let below_root = secret.strip_prefix("/").unwrap();
    let far_up = Path::new("../../../../../../..").join(below_root);
    let share_by_number = Path::new(&held.share.as_raw_fd().to_string()).join("../secret");
    let ways: [(BorrowedFd<'_>, PathBuf); 9] = [
        (CWD, secret.to_owned()),
        (CWD, "/../secret".into()),
        (CWD, "/link".into()),
        (CWD, "/absolute".into()),
        (CWD, "/etc/passwd".into()),
        (held.share.as_fd(), "../secret".into()),
        (held.share.as_fd(), far_up.clone()),
        (held.descriptors.as_fd(), far_up),
        (held.descriptors.as_fd(), share_by_number),
    ];
    for (at, path) in ways {
        let fails = |what: &str, result: rustix::io::Result<()>| {
            assert!(result.is_err(), "{what} {} reaches it", path.display());
        };
        let none = AtFlags::empty();
        fails("open", rustix::fs::openat(at, &path, OFlags::RDONLY, Mode::empty()).map(drop));
        fails("openat(O_PATH)", rustix::fs::openat(at, &path, OFlags::PATH, Mode::empty()).map(drop));
        fails("statx", rustix::fs::statx(at, &path, none, StatxFlags::BASIC_STATS).map(drop));
        fails("fchmodat", rustix::fs::chmodat(at, &path, Mode::from_raw_mode(0o4777), none));
        fails("fchownat", rustix::fs::chownat(at, &path, Some(Uid::from_raw(7)), None, none));
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        fails("utimensat", rustix::fs::utimensat(at, &path, &times, none));
        fails("linkat", rustix::fs::linkat(at, &path, &held.share, "linked", AtFlags::SYMLINK_FOLLOW));
        rustix::process::fchdir(at).ok();
        fails("setxattr", rustix::fs::setxattr(&path, "user.x", b"x", XattrFlags::empty()));
        fails("removexattr", rustix::fs::removexattr(&path, "user.x"));
        // Where the way leads into the share, the folder is made there.
        rustix::fs::mkdirat(at, path.with_file_name("made"), Mode::RWXU).ok();
    }
}

/// The file server's, the disk's and the vCPUs' threads of these tests run under their filters, and
/// so do turns of the main loop.
#[test]
fn device_suites_pass_under_the_filters() {
    if threads::is_filtered() {
        return; // these are the suites
    }
    let suites = ["devices::", "disks::", "control::", "kvm::", "log_sink::"];
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
const KVM_GET_XSAVE2: libc::c_long = 0x9000_aecf;
const KVM_GET_IRQCHIP: libc::c_long = 0xc208_ae62;
const KVM_SET_IRQCHIP: libc::c_long = 0x8208_ae63;
const KVM_CREATE_DEVICE: libc::c_long = 0xc00c_aee0;
const TUNATTACHFILTER: libc::c_long = 0x4010_54d5;
const BLKGETSIZE64: libc::c_long = 0x8008_1272;
const BLKROSET: libc::c_long = 0x125d;

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
    ("signal others", ThreadKind::Starter, false, || call(libc::SYS_tgkill, [own().0 + 1, own().0 + 1, 0, 0])),
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
    ("save a vCPU", ThreadKind::Vcpu, true, || ioctl(KVM_GET_XSAVE2)),
    ("save a vCPU elsewhere", ThreadKind::Main, false, || ioctl(KVM_GET_XSAVE2)),
    ("save a chip", ThreadKind::Main, true, || ioctl(KVM_GET_IRQCHIP)),
    ("save a chip in a vCPU", ThreadKind::Vcpu, false, || ioctl(KVM_GET_IRQCHIP)),
    ("restore a chip", ThreadKind::Starter, false, || ioctl(KVM_SET_IRQCHIP)),
    ("seal a file", ThreadKind::Main, true, || call(libc::SYS_fcntl, [-1, libc::F_ADD_SEALS.into(), 0, 0])),
    ("seal a file elsewhere", ThreadKind::Files, false, || call(libc::SYS_fcntl, [-1, libc::F_ADD_SEALS.into(), 0, 0])),
    ("size a device", ThreadKind::Main, true, || ioctl(BLKGETSIZE64)),
    ("size a device elsewhere", ThreadKind::Block, false, || ioctl(BLKGETSIZE64)),
    ("make a device read-only", ThreadKind::Starter, false, || ioctl(BLKROSET)),
    ("open a file", ThreadKind::Files, true, || call(libc::SYS_openat, [-1, 0, 0, 0])),
    ("open a file in the main loop", ThreadKind::Main, true, open_in_vain),
    ("open a file in a vCPU", ThreadKind::Vcpu, true, open_in_vain),
    ("open a file for the disk", ThreadKind::Block, true, open_in_vain),
    ("open a file for a log", ThreadKind::Logs, true, open_in_vain),
    ("cut a log", ThreadKind::Logs, false, || call(libc::SYS_ftruncate, [-1, 0, 0, 0])),
    ("act for a user in a log", ThreadKind::Logs, false, || call(libc::SYS_setresuid, [-1, -1, -1, 0])),
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

/// Process 1 ignores signals that it sends itself by default, and must end all the same. SIGTERM
/// comes from outside.
#[test]
fn process_1_can_end() {
    if threads::is_filtered() || !rustix::process::geteuid().is_root() {
        return;
    }
    for (how, expected) in [("abort", None), ("panic", None), ("touch", Some(libc::SIGSEGV)), ("term", None)] {
        let output = again(&["--exact", "lock_in::tests::ending", "--ignored", "--nocapture"], ATTEMPT, how);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("I am 1") && !said.contains("I am still here"), "{how}: {said}");
        assert!(!output.status.success(), "{how}: {:?}", output.status);
        assert!(expected.is_none_or(|signal| output.status.signal() == Some(signal)), "{how}: {:?}", output.status);
    }
}

/// The child of the test above.
#[test]
#[ignore = "it ends its process: process_1_can_end runs it in one of its own"]
fn ending() {
    let how = std::env::var(ATTEMPT).unwrap_or_default();
    println!("I am {}", std::process::id());
    crate::process::prepare();
    crate::process::end_by_signals().unwrap();
    match how.as_str() {
        "abort" => std::process::abort(),
        "panic" => panic!("on purpose"),
        // SAFETY: it is to fail.
        "touch" => unsafe { std::ptr::without_provenance_mut::<u8>(16).write_volatile(1) },
        "term" => {
            call(libc::SYS_kill, [own().0, libc::SIGTERM.into(), 0, 0]);
            // The kernel may give the signal to another thread, which needs a moment.
            std::thread::sleep(std::time::Duration::from_secs(10));
        }
        _ => return,
    }
    println!("I am still here");
}

/// The child of the test before.
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

/// As the monitor does it: the main thread locks itself in, and threads of all kinds are started
/// later, by any thread.
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

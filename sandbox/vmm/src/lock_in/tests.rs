#![allow(unsafe_code)] // fork and socket, to see them refused
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;

use rustix::fs::RenameFlags;

use super::*;

/// Locks a thread of its own in, with `dir` as the share, and runs `inside` there.
fn locked_in(dir: &std::path::Path, inside: impl FnOnce() + Send) {
    let share = File::open(dir).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop_capabilities().unwrap();
            set_no_new_privs(true).unwrap();
            if !landlock::restrict(share.as_fd()).unwrap() {
                eprintln!("no Landlock here");
            }
            seccomp::restrict().unwrap();
            inside();
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
    let has_landlock = landlock::version() >= 1;
    locked_in(&share, || {
        assert_eq!(fs::read_to_string(share.join("file")).unwrap(), "shared");
        fs::write(share.join("new"), "new").unwrap();
        let (from, to) = (share.join("new"), share.join("newer"));
        rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::empty()).unwrap();
        for path in [dir.path().join("secret"), share.join("../secret"), share.join("link"), "/etc/passwd".into()] {
            assert_eq!(File::open(&path).is_err(), has_landlock, "{}", path.display());
        }
        assert_eq!(fs::write(dir.path().join("made"), "x").is_err(), has_landlock);
    });
    assert_eq!(fs::read_to_string(share.join("newer")).unwrap(), "new");
}

#[test]
fn other_calls_are_refused_and_threads_are_not() {
    let dir = tempfile::tempdir().unwrap();
    locked_in(dir.path(), || {
        let refused = |result: i64| result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS);
        // SAFETY: refused calls touch nothing; were fork allowed, the child would only end this test as it should not.
        unsafe {
            assert!(refused(libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0)));
            assert!(refused(libc::fork().into()));
            assert!(refused(libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0)));
            assert!(refused(libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0)));
            assert!(refused(libc::syscall(libc::SYS_unshare, libc::CLONE_NEWNS)));
            assert!(refused(libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0)));
            let code = libc::PROT_READ | libc::PROT_EXEC;
            let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            assert_eq!(libc::mmap(std::ptr::null_mut(), 4096, code, private, -1, 0), libc::MAP_FAILED);
        }
        let thread = std::thread::Builder::new().name("named".into()).spawn(|| 7).unwrap();
        assert_eq!(thread.join().unwrap(), 7);
        let kept = capabilities(None).unwrap();
        assert!(KEPT.contains(kept.permitted), "{kept:?}");
    });
}

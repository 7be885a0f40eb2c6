//! System calls that have no safe wrapper elsewhere. Each is a thin one.
#![allow(unsafe_code)] // Raw system calls: clone3, mount_setattr, execve, seccomp, ioctl, port output.

use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A child process and a descriptor for it.
#[derive(Debug)]
pub struct Child {
    /// As this process' pid namespace sees it.
    pub pid: Pid,
    /// Refers to the process even when the number is used again.
    pub pidfd: OwnedFd,
}

/// Forks into `cgroup` with the namespaces `flags`, and runs `run` in the child, which must not return.
///
/// The agent has one thread, so the child may allocate and do all that its parent may.
///
/// # Errors
/// When the kernel refuses.
pub fn fork(flags: libc::c_int, cgroup: Option<BorrowedFd<'_>>, run: impl FnOnce() -> u8) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut flags = flags as u64 | libc::CLONE_PIDFD as u64;
    let mut args = libc::clone_args {
        flags: 0,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    args.flags = flags;
    // SAFETY: no stack is given, so this is fork; `args` and `pidfd` live until it returns. This process has one thread, so
    // no lock of the allocator or of libc can be held by another one.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        // The agent aborts on a panic; a test does not, and its child must not go on as a second test runner.
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(255);
        exit_now(status);
    }
    // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::Other)?;
    Ok(Child { pid, pidfd })
}

/// Ends the process without running anything of its parent's.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: `_exit` takes any number and does not return.
    unsafe { libc::_exit(i32::from(status)) }
}

/// `mount_setattr` on the mount that `fd` refers to.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_setattr(fd: impl AsFd, recursive: bool, set: u64, clear: u64, propagation: u64) -> io::Result<()> {
    change_mount(fd, recursive, libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 })
}

fn change_mount(fd: impl AsFd, recursive: bool, attr: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated empty string and `attr` has the size that is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Shows the owners of the files in the mount that `fd` refers to as the users of `users`; once for each mount.
///
/// # Errors
/// EINVAL when a file system cannot do that.
pub fn map_owners(fd: impl AsFd, recursive: bool, users: impl AsFd) -> io::Result<()> {
    let userns_fd = u64::from(users.as_fd().as_raw_fd().cast_unsigned());
    let attr = libc::mount_attr { attr_set: libc::MOUNT_ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    change_mount(fd, recursive, attr)
}

/// What this process makes belongs to user and group `id` from now on.
pub fn files_owner(id: u32) {
    // SAFETY: both take a number; what they return is the number before.
    unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
    }
}

/// Marks all descriptors from `first` to `last` close-on-exec, or closes them at once.
///
/// # Errors
/// When the kernel lacks the call.
pub fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: only called in a child that uses none of these descriptors again and never runs their owners' destructors.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// Closes all descriptors above 2 but these.
pub fn close_all_but(keep: &[&OwnedFd]) {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        let _ = close_range(first, fd.saturating_sub(1));
        first = fd + 1;
    }
    let _ = close_range(first, u32::MAX);
}

/// Makes `from` the descriptor `to`, without close-on-exec.
///
/// # Errors
/// When the kernel refuses.
pub fn dup_to(from: impl AsFd, to: RawFd) -> io::Result<()> {
    let from = from.as_fd().as_raw_fd();
    if from == to {
        // SAFETY: clears the flag of a descriptor that is open.
        check(i64::from(unsafe { libc::fcntl(from, libc::F_SETFD, 0) }))?;
    } else {
        // SAFETY: `to` is one of 0, 1, 2 in a child, which nothing in it owns.
        check(i64::from(unsafe { libc::dup2(from, to) }))?;
    }
    Ok(())
}

/// Runs `program` in this process' place; returns only on failure.
pub fn execve(program: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and their strings live until the call returns.
    unsafe { libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Runs the open program `fd` in this process' place; returns only on failure.
pub fn exec_fd(fd: impl AsFd, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: as in `execve`; the path is empty, so the descriptor is what runs.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// No signal is blocked, and each does what it does by default: what a new program expects. A daemon
/// that was started by nohup would otherwise have all containers ignore SIGHUP.
pub fn default_signals() {
    // SAFETY: all-zero structures are a set without signals and the kernel's default action, and the
    // calls only read them. The C library would not touch two signals that it keeps for itself.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let default = [0_u64; 4];
        for signal in 1..=libc::SIGRTMAX() {
            let (old, bytes) = (std::ptr::null_mut::<u64>(), size_of::<u64>());
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, bytes);
        }
    }
}

/// Waits for ever; the kernel reaps this process' children.
pub fn pause_for_ever() -> ! {
    // SAFETY: a fixed disposition and a call without arguments.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        loop {
            libc::pause();
        }
    }
}

/// A session keyring of its own, so that keys of the node are not the container's. A kernel without keys needs none.
pub fn new_session_keyring() {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING (1) with a null name makes an anonymous one.
    let _ = unsafe { libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<u8>()) };
}

/// Sends a signal of any number, real-time ones too.
///
/// # Errors
/// ESRCH when there is no such process, EINVAL when there is no such signal.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: takes two numbers.
    check(i64::from(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }))?;
    Ok(())
}

/// Same, to a process that is known by its descriptor.
///
/// # Errors
/// As `kill`.
pub fn pidfd_kill(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null pointer, which is allowed.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, std::ptr::null::<u8>(), 0)
    })?;
    Ok(())
}

/// Puts a seccomp program on this thread.
///
/// # Errors
/// EINVAL when the kernel does not accept the program.
pub fn set_seccomp(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel reads `len` instructions at `filter`, which are there, and writes nothing.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong, flags, &raw const filter)
    })?;
    Ok(())
}

/// How often a program's load is tried.
const LOADS: u32 = 20;

/// Loads a program of type BPF_PROG_TYPE_CGROUP_DEVICE. The kernel's verifier gives up with EAGAIN when
/// a signal comes meanwhile, such as that of a child's end, so the load is tried several times.
///
/// # Errors
/// With the kernel's reason.
pub fn bpf_load_device(program: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let license = c"GPL";
    let attr = Load {
        prog_type: 15,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: BPF_PROG_LOAD (5) reads `attr`, the instructions and the licence, which all live until it returns.
    let load = || check(unsafe { libc::syscall(libc::SYS_bpf, 5, &raw const attr, size_of::<Load>()) });
    let interrupted = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
    let again = (1..LOADS).map(|_| load()).find(|done| !done.as_ref().is_err_and(interrupted));
    let fd = again.unwrap_or_else(load)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device program to a cgroup.
///
/// # Errors
/// With the kernel's reason.
pub fn bpf_attach_device(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    // target_fd, attach_bpf_fd, attach_type BPF_CGROUP_DEVICE, flags BPF_F_ALLOW_MULTI
    let attr: [u32; 4] = [cgroup.as_fd().as_raw_fd() as u32, program.as_fd().as_raw_fd() as u32, 6, 2];
    // SAFETY: BPF_PROG_ATTACH (8) reads 16 bytes of `attr`.
    check(unsafe { libc::syscall(libc::SYS_bpf, 8, attr.as_ptr(), size_of_val(&attr)) })?;
    Ok(())
}

/// Mixes `bytes` into the kernel's random pool and credits them.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn add_entropy(random: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    let size = i32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut buffer = Vec::with_capacity(8 + bytes.len());
    buffer.extend_from_slice(&(size.saturating_mul(8)).to_ne_bytes());
    buffer.extend_from_slice(&size.to_ne_bytes());
    buffer.extend_from_slice(bytes);
    // SAFETY: the buffer is a `rand_pool_info` with as many bytes as it says.
    check(i64::from(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDADDENTROPY, buffer.as_ptr()) }))?;
    Ok(())
}

/// Has the kernel's generators begin anew from its pool at once, with what [`add_entropy`] gave it:
/// by itself it goes on with the keys that it has for up to a minute.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn reseed(random: impl AsFd) -> io::Result<()> {
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    // SAFETY: this request takes no argument.
    check(i64::from(unsafe { libc::ioctl(random.as_fd().as_raw_fd(), RNDRESEEDCRNG) }))?;
    Ok(())
}

/// Adds `nanos` to the wall clock, at once.
///
/// # Errors
/// Without CAP_SYS_TIME, or when that were no time.
pub fn step_clock(nanos: i64) -> io::Result<()> {
    let mut change = no_change();
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    // With ADJ_NANO the second field counts nanoseconds; it must not be negative.
    change.time.tv_sec = nanos.div_euclid(1_000_000_000);
    change.time.tv_usec = nanos.rem_euclid(1_000_000_000);
    adjust_clock(change)
}

/// Adds `micros` to the wall clock by and by, some 500 in each second, in place of what is still to be added.
///
/// # Errors
/// Without CAP_SYS_TIME.
pub fn slew_clock(micros: i64) -> io::Result<()> {
    let mut change = no_change();
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = micros;
    adjust_clock(change)
}

fn no_change() -> libc::timex {
    // SAFETY: it is made of numbers only, for which zeros are valid; zero modes change nothing.
    unsafe { std::mem::zeroed() }
}

fn adjust_clock(mut change: libc::timex) -> io::Result<()> {
    // SAFETY: reads and writes one `timex` behind the pointer.
    check(i64::from(unsafe { libc::adjtimex(&raw mut change) }))?;
    Ok(())
}

/// Gives a directory, and what will be made in it, a quota project.
///
/// # Errors
/// When the file system has none.
pub fn set_project(dir: impl AsFd, project: u32) -> io::Result<()> {
    const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
    const FS_XFLAG_PROJINHERIT: u32 = 0x200;
    // struct fsxattr: xflags, extsize, nextents, projid, cowextsize, 8 bytes of padding
    let attr: [u32; 7] = [FS_XFLAG_PROJINHERIT, 0, 0, project, 0, 0, 0];
    // SAFETY: reads 28 bytes, the size that is encoded in the request.
    check(i64::from(unsafe { libc::ioctl(dir.as_fd().as_raw_fd(), FS_IOC_FSSETXATTR, attr.as_ptr()) }))?;
    Ok(())
}

/// Bytes and inodes that a quota project uses on the file system of `fd`.
///
/// # Errors
/// When quotas are off.
pub fn project_usage(fd: impl AsFd, project: u32) -> io::Result<(u64, u64)> {
    const PRJQUOTA: u32 = 2;
    const Q_GETQUOTA: u32 = 0x80_0007;
    // struct if_dqblk: bhardlimit, bsoftlimit, curspace, ihardlimit, isoftlimit, curinodes, btime, itime, valid
    let mut block = [0u64; 9];
    // SAFETY: Q_GETQUOTA writes one `if_dqblk`, 72 bytes.
    check(unsafe {
        libc::syscall(
            443, // quotactl_fd
            fd.as_fd().as_raw_fd(),
            (Q_GETQUOTA << 8) | PRJQUOTA,
            project,
            block.as_mut_ptr(),
        )
    })?;
    Ok((block[2], block[5]))
}

/// Writes one byte to an I/O port, and gives the right to do so back: it would be inherited by containers.
///
/// # Errors
/// Without CAP_SYS_RAWIO.
pub fn out_byte(port: u16, value: u8) -> io::Result<()> {
    // SAFETY: opens and closes one port for this process.
    check(i64::from(unsafe { libc::ioperm(libc::c_ulong::from(port), 1, 1) }))?;
    // SAFETY: the port is open for this process; the instruction touches no memory.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    // SAFETY: as above.
    check(i64::from(unsafe { libc::ioperm(libc::c_ulong::from(port), 1, 0) }))?;
    Ok(())
}

/// A path or string for the kernel.
///
/// # Errors
/// When it holds a NUL.
pub fn c_string(bytes: impl AsRef<[u8]>) -> io::Result<CString> {
    CString::new(bytes.as_ref()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "it holds a NUL byte"))
}

/// Owns descriptor `number`, which was handed over by this process' parent.
///
/// # Errors
/// When it is not open.
pub fn take_fd(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only asks; -1 and closed numbers fail.
    check(i64::from(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }))?;
    // SAFETY: it is open, and the caller takes each number of its launch configuration once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// When it is longer, or cannot be read.
pub fn read_bounded(mut file: impl io::Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.by_ref().take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Writes a small file of a kernel file system in one call.
///
/// # Errors
/// With the kernel's reason.
pub fn write_knob(path: &Path, value: impl AsRef<[u8]>) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let fd = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(fd, value.as_ref())?;
    Ok(())
}

/// Registers a descriptor with the event loop, which closes it when the result is dropped.
///
/// # Errors
/// Without memory, or when it cannot be polled.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always returns the same number and keeps it open as long as it lives.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

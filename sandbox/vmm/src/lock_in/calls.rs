//! Which threads need which system calls, and with which arguments.
//!
//! A call that no row names ends the monitor. So a new call in a device needs a row here; the test
//! `device_suites_pass_under_the_filters` finds a missing one.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_list, kvm_msrs,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use libc::c_long;

use crate::devices::virtio::blk::{BLKGETSIZE64, BLKSSZGET};

/// What a thread does, and so which calls it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThreadKind {
    /// The event loop: control socket, network, vsock, random numbers, memory, disks that come and
    /// go; the exit report.
    Main,
    /// One vCPU. The guest's writes to device registers start and reset devices on this thread.
    Vcpu,
    /// A disk.
    Block,
    /// The file server.
    Files,
    /// The logs.
    Logs,
    /// Ends a process whose other threads hang, after it has written the exit report.
    End,
    /// Starts the threads of the other kinds, and so may do what any of them may.
    Starter,
}

impl ThreadKind {
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

const M: u8 = ThreadKind::Main.bit();
const V: u8 = ThreadKind::Vcpu.bit();
const B: u8 = ThreadKind::Block.bit();
const F: u8 = ThreadKind::Files.bit();
const L: u8 = ThreadKind::Logs.bit();
const E: u8 = ThreadKind::End.bit();
const S: u8 = ThreadKind::Starter.bit();
const ALL: u8 = M | V | B | F | L | E | S;

/// What the arguments of a call must be. Only their lower 32 bits count, as they do for the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Arguments {
    /// Anything.
    Any,
    /// The argument with this number is one of these values.
    OneOf(u8, &'static [u32]),
    /// The argument with this number has all of these bits.
    With(u8, u32),
    /// The argument with this number has none of these bits.
    Without(u8, u32),
    /// The first argument is this process.
    OwnProcess,
}

/// One call.
pub(super) struct Row {
    who: u8,
    /// Its number.
    pub(super) call: c_long,
    /// When it is allowed.
    pub(super) arguments: Arguments,
}

impl Row {
    /// Whether threads of `kind` need it.
    pub(super) fn is_for(&self, kind: ThreadKind) -> bool {
        // Whatever a thread may do that the starter starts, the starter may do: a filter cannot be taken off.
        self.who & kind.bit() != 0 || kind == ThreadKind::Starter
    }
}

const fn any(who: u8, call: c_long) -> Row {
    Row { who, call, arguments: Arguments::Any }
}

const fn row(who: u8, call: c_long, arguments: Arguments) -> Row {
    Row { who, call, arguments }
}

/// All rows. A call may have several.
pub(super) const ROWS: &[Row] = &[
    // Memory. None of it ever becomes code.
    any(ALL, libc::SYS_brk),
    row(ALL, libc::SYS_mmap, Arguments::Without(2, libc::PROT_EXEC as u32)),
    row(ALL, libc::SYS_mprotect, Arguments::Without(2, libc::PROT_EXEC as u32)),
    any(ALL, libc::SYS_munmap),
    any(ALL, libc::SYS_mremap),
    any(ALL, libc::SYS_madvise),
    // Threads, locks, time, signals, the end. A panic and abort(3) signal the own thread.
    any(ALL, libc::SYS_futex),
    any(ALL, libc::SYS_sched_yield),
    any(ALL, libc::SYS_sched_getaffinity),
    any(ALL, libc::SYS_set_robust_list),
    any(ALL, libc::SYS_rseq),
    any(ALL, libc::SYS_sigaltstack),
    any(ALL, libc::SYS_rt_sigaction),
    any(ALL, libc::SYS_rt_sigprocmask),
    any(ALL, libc::SYS_rt_sigreturn),
    any(ALL, libc::SYS_restart_syscall),
    any(ALL, libc::SYS_clock_gettime),
    any(ALL, libc::SYS_clock_nanosleep),
    any(ALL, libc::SYS_getrandom),
    any(ALL, libc::SYS_getpid),
    any(ALL, libc::SYS_gettid),
    row(ALL, libc::SYS_tgkill, Arguments::OwnProcess),
    row(ALL, libc::SYS_prctl, Arguments::OneOf(0, &[libc::PR_SET_NAME as u32])),
    any(ALL, libc::SYS_exit),
    any(ALL, libc::SYS_exit_group),
    // A thread, not a process; and the filter of its kind.
    row(S, libc::SYS_clone, Arguments::With(0, libc::CLONE_THREAD as u32)),
    row(S, libc::SYS_prctl, Arguments::OneOf(0, &[libc::PR_SET_NO_NEW_PRIVS as u32])),
    row(S, libc::SYS_seccomp, Arguments::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER])),
    // Descriptors that are there: eventfds, messages on standard error. F_SETFL and F_SETOWN are left out: with them
    // the kernel would send signals.
    any(ALL, libc::SYS_read),
    any(ALL, libc::SYS_write),
    any(ALL, libc::SYS_writev),
    any(ALL, libc::SYS_close),
    any(ALL, libc::SYS_poll),
    any(ALL, libc::SYS_ppoll),
    any(ALL, libc::SYS_eventfd2),
    row(
        ALL,
        libc::SYS_fcntl,
        Arguments::OneOf(
            1,
            &[libc::F_GETFD as u32, libc::F_SETFD as u32, libc::F_GETFL as u32, libc::F_DUPFD_CLOEXEC as u32],
        ),
    ),
    // KVM: the vCPU itself, and its state for the report of a crash.
    row(V, libc::SYS_ioctl, Arguments::OneOf(1, &[kvm::RUN])),
    row(
        V,
        libc::SYS_ioctl,
        Arguments::OneOf(1, &[kvm::GET_REGS, kvm::GET_SREGS, kvm::GET_XCRS, kvm::GET_EVENTS, kvm::GET_MP_STATE]),
    ),
    // The whole state of a vCPU, where a VM is saved; and its guest is told of the pause.
    row(
        V,
        libc::SYS_ioctl,
        Arguments::OneOf(
            1,
            &[
                kvm::GET_XSAVE,
                kvm::GET_XSAVE2,
                kvm::GET_DEBUGREGS,
                kvm::GET_LAPIC,
                kvm::GET_MSRS,
                kvm::GET_TSC_KHZ,
                kvm::KVMCLOCK_CTRL,
            ],
        ),
    ),
    // The rest of the VM's state, and that its files do not change any more.
    row(
        M,
        libc::SYS_ioctl,
        Arguments::OneOf(1, &[kvm::GET_MSR_INDEX_LIST, kvm::CHECK_EXTENSION, kvm::GET_IRQCHIP, kvm::GET_CLOCK]),
    ),
    row(M, libc::SYS_fcntl, Arguments::OneOf(1, &[libc::F_ADD_SEALS as u32])),
    // A vCPU that is made later.
    row(
        M,
        libc::SYS_ioctl,
        Arguments::OneOf(
            1,
            &[kvm::CREATE_VCPU, kvm::SET_CPUID2, kvm::SET_XCRS, kvm::SET_MSRS, kvm::GET_LAPIC, kvm::SET_LAPIC],
        ),
    ),
    // The size of a block device that comes later.
    row(M, libc::SYS_ioctl, Arguments::OneOf(1, &[BLKGETSIZE64, BLKSSZGET])),
    // The network starts, or goes on: the tap's header and offloads.
    row(M | V, libc::SYS_ioctl, Arguments::OneOf(1, &[libc::TUNSETVNETHDRSZ as u32, libc::TUNSETOFFLOAD as u32])),
    // Waiting for kicks and sockets.
    any(M | V | F, libc::SYS_epoll_ctl),
    any(M | F, libc::SYS_epoll_wait),
    any(M | F, libc::SYS_epoll_pwait),
    any(M | F, libc::SYS_epoll_pwait2),
    // The sockets. A vCPU's thread resets a device whose guest ended, which delivers what is left.
    any(M, libc::SYS_accept4),
    any(M, libc::SYS_recvmsg),
    any(M, libc::SYS_sendmsg),
    any(M | V, libc::SYS_readv),
    any(M | V, libc::SYS_recvfrom),
    any(M | V, libc::SYS_sendto),
    any(M | V, libc::SYS_shutdown),
    // Is a log a regular file? And the exit report.
    any(M | F, libc::SYS_fstat),
    any(M | F, libc::SYS_statx),
    any(M | B | F | E, libc::SYS_pwrite64),
    any(M | F | E, libc::SYS_ftruncate),
    // The content of the disk and of the files of volumes.
    any(B | F, libc::SYS_pread64),
    any(B | F, libc::SYS_preadv),
    any(B | F, libc::SYS_preadv2),
    any(B | F, libc::SYS_pwritev),
    any(B | F, libc::SYS_pwritev2),
    any(B | F, libc::SYS_lseek),
    any(B | F, libc::SYS_fsync),
    any(B | F, libc::SYS_fdatasync),
    any(B | F, libc::SYS_fallocate),
    // The file server.
    any(F, libc::SYS_readv),
    any(F, libc::SYS_openat),
    any(F, libc::SYS_newfstatat),
    any(F, libc::SYS_fstatfs),
    any(F, libc::SYS_getdents64),
    any(F, libc::SYS_readlinkat),
    any(F, libc::SYS_mkdirat),
    any(F, libc::SYS_mknodat),
    any(F, libc::SYS_symlinkat),
    any(F, libc::SYS_linkat),
    any(F, libc::SYS_unlinkat),
    any(F, libc::SYS_renameat2),
    any(F, libc::SYS_fchmodat),
    any(F, libc::SYS_fchownat),
    any(F, libc::SYS_utimensat),
    any(F, libc::SYS_getxattr),
    any(F, libc::SYS_setxattr),
    any(F, libc::SYS_listxattr),
    any(F, libc::SYS_removexattr),
    // For whom the file server acts, and where.
    any(F, libc::SYS_setresuid),
    any(F, libc::SYS_setresgid),
    any(F, libc::SYS_capget),
    any(F, libc::SYS_capset),
    any(F, libc::SYS_fchdir),
    any(F, libc::SYS_umask),
    row(F, libc::SYS_unshare, Arguments::OneOf(0, &[libc::CLONE_FS as u32])),
];

/// A call that fails with an error, because the C library tries it and goes on without.
pub(super) struct Refused {
    who: u8,
    /// Its number.
    pub(super) call: c_long,
    /// The error.
    pub(super) errno: i32,
}

impl Refused {
    /// Whether threads of `kind` get the error; others end when they make the call, or may make it.
    pub(super) fn is_for(&self, kind: ThreadKind) -> bool {
        self.who & kind.bit() != 0
    }
}

/// All of them.
pub(super) const REFUSED: &[Refused] = &[
    // A filter cannot see the flags of clone3. The library takes clone then.
    Refused { who: S, call: libc::SYS_clone3, errno: libc::ENOSYS },
    // malloc looks at /proc/sys/vm/overcommit_memory when it gives memory back.
    Refused { who: M | V | B | L | E, call: libc::SYS_openat, errno: libc::EACCES },
];

/// Numbers of KVM's requests (`_IO`, `_IOR` and `_IOW` of `linux/kvm.h`).
mod kvm {
    use super::*;

    const KVMIO: u32 = 0xae;
    const WRITE: u32 = 1;
    const READ: u32 = 2;

    const fn number<T>(direction: u32, request: u32) -> u32 {
        direction << 30 | (size_of::<T>() as u32) << 16 | KVMIO << 8 | request
    }

    pub(super) const GET_MSR_INDEX_LIST: u32 = number::<kvm_msr_list>(READ | WRITE, 0x02);
    pub(super) const CHECK_EXTENSION: u32 = number::<()>(0, 0x03);
    pub(super) const CREATE_VCPU: u32 = number::<()>(0, 0x41);
    pub(super) const GET_IRQCHIP: u32 = number::<kvm_irqchip>(READ | WRITE, 0x62);
    pub(super) const GET_CLOCK: u32 = number::<kvm_clock_data>(READ, 0x7c);
    pub(super) const RUN: u32 = number::<()>(0, 0x80);
    pub(super) const GET_REGS: u32 = number::<kvm_regs>(READ, 0x81);
    pub(super) const GET_SREGS: u32 = number::<kvm_sregs>(READ, 0x83);
    pub(super) const GET_MSRS: u32 = number::<kvm_msrs>(READ | WRITE, 0x88);
    pub(super) const SET_MSRS: u32 = number::<kvm_msrs>(WRITE, 0x89);
    pub(super) const GET_LAPIC: u32 = number::<kvm_lapic_state>(READ, 0x8e);
    pub(super) const SET_LAPIC: u32 = number::<kvm_lapic_state>(WRITE, 0x8f);
    pub(super) const SET_CPUID2: u32 = number::<kvm_cpuid2>(WRITE, 0x90);
    pub(super) const GET_MP_STATE: u32 = number::<kvm_mp_state>(READ, 0x98);
    pub(super) const GET_EVENTS: u32 = number::<kvm_vcpu_events>(READ, 0x9f);
    pub(super) const GET_DEBUGREGS: u32 = number::<kvm_debugregs>(READ, 0xa1);
    pub(super) const GET_TSC_KHZ: u32 = number::<()>(0, 0xa3);
    pub(super) const GET_XSAVE: u32 = number::<kvm_xsave>(READ, 0xa4);
    pub(super) const GET_XCRS: u32 = number::<kvm_xcrs>(READ, 0xa6);
    pub(super) const SET_XCRS: u32 = number::<kvm_xcrs>(WRITE, 0xa7);
    pub(super) const KVMCLOCK_CTRL: u32 = number::<()>(0, 0xad);
    pub(super) const GET_XSAVE2: u32 = number::<kvm_xsave>(READ, 0xcf);

    /// As `linux/kvm.h` has them on x86-64.
    const _: () = {
        assert!(RUN == 0xae80 && CREATE_VCPU == 0xae41);
        assert!(SET_MSRS == 0x4008_ae89 && SET_CPUID2 == 0x4008_ae90);
        assert!(GET_MSRS == 0xc008_ae88 && GET_XSAVE2 == 0x9000_aecf && GET_CLOCK == 0x8030_ae7c);
        assert!(GET_REGS == 0x8090_ae81 && GET_LAPIC == 0x8400_ae8e);
    };
}

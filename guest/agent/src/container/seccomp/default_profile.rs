//! The default profile: what an ordinary program needs. What is not named fails with EPERM.
//!
//! Left out: loading code into the kernel, changing mounts, clocks, keys and namespaces, tracing of the whole machine, io_uring (a
//! second way to most calls, which no filter sees), and calls of other kernels' past. Some come back with the capability that makes
//! them harmless, since the kernel checks that one itself.

/// Always allowed.
pub const ALLOWED: &str = "\
    accept accept4 access alarm bind brk cachestat capget capset chdir chmod chown clock_getres clock_gettime \
    clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync \
    fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync \
    ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area \
    getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp \
    getpid getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt \
    gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill \
    landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen \
    listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier \
    memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv \
    msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 \
    prlimit64 process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv \
    recvfrom recvmmsg recvmsg removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq \
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam \
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto \
    set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid \
    setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr setxattrat \
    shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink \
    symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname \
    unlink unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev \
    arch_prctl modify_ldt remap_file_pages name_to_handle_at process_vm_readv process_vm_writev ptrace adjtimex \
    clock_adjtime uretprobe uprobe";

/// Always allowed besides, to programs of 32 bits: their names for the same things, with 64 bits where those came later.
/// `ipc` and `socketcall` are older ways to several calls each, whose arguments are out of a filter's sight; most C libraries of
/// 32 bits open their sockets by the latter.
pub const ALLOWED_32: &str = "\
    _llseek _newselect chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64 \
    fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 \
    getgid32 getgroups32 getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2 \
    mq_timedreceive_time64 mq_timedsend_time64 ppoll_time64 pselect6_time64 recvmmsg_time64 \
    rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 sendfile64 setfsgid32 setfsuid32 \
    setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sigprocmask sigreturn \
    socketcall stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 \
    truncate64 ugetrlimit utimensat_time64 waitpid";

/// Allowed with a capability.
pub const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node move_pages migrate_pages"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Flags of clone(2) that make namespaces: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
pub const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// Values of personality(2) that change nothing dangerous; the last one asks.
pub const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets to the machine below: a container must not speak to the node past the agent.
pub const AF_VSOCK: u64 = 40;

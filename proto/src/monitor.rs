//! The monitor's API, version 4.
//!
//! **Launch.** `cofferdam-vmm --config-fd N` reads one JSON [`LaunchConfig`] from descriptor `N`. All
//! files, sockets and devices are descriptors that were handed over; the monitor opens nothing by path.
//!
//! **Control.** A listening `SOCK_SEQPACKET` unix socket; each packet is one JSON [`Request`], answered by one
//! JSON [`Reply`]. The first request of a connection is [`Request::Hello`].
//!
//! **Versions.** A pod outlives the daemon that launched it. A monitor is launched by a daemon of its own version, and answers every version
//! of [`API_VERSIONS`]; a daemon greets with the newest that it knows, then with older ones. A refused greeting leaves the connection open.
//!
//! | version | what is new |
//! | --- | --- |
//! | 1 | |
//! | 2 | [`LaunchConfig::more_tap_fds`], which a monitor of version 1 would leave out |
//! | 3 | [`Request::Plug`] and [`Request::Unplug`], for which the guest was told of places at its boot |
//! | 4 | [`LaunchConfig::restore`]; [`Request::Save`], [`Request::Pause`] and [`Request::Resume`] |
//!
//! **End.** When the VM ends, the monitor writes one JSON [`ExitReport`] to `exit_fd` and exits with
//! status 0 for [`ExitReason::PowerOff`], else 1.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// Version of this API. Fields may be added within a version; unknown ones are ignored by readers. It goes up when one side has to know
/// whether the other one understands what is new.
pub const API_VERSION: u32 = 4;

/// Versions that a greeting may name, on both sides. One is left out when no pod that speaks nothing newer can be running any more:
/// docs/upgrade.md says for how long that is promised.
pub const API_VERSIONS: RangeInclusive<u32> = 1..=API_VERSION;

/// The first version with [`Request::Plug`].
pub const DISKS_SINCE: u32 = 3;

/// I/O port by which a guest says what happens to it: see [`GUEST_EVENT_POWER_OFF`] and its neighbours.
pub const GUEST_EVENT_PORT: u16 = 0x605;
/// One byte to [`GUEST_EVENT_PORT`]: everything is unmounted, end the VM cleanly.
pub const GUEST_EVENT_POWER_OFF: u8 = 1;
/// One byte to [`GUEST_EVENT_PORT`]: the agent's `main` runs (for [`Milestones::agent_started_us`]).
pub const GUEST_EVENT_AGENT_STARTED: u8 = 2;
/// One byte to [`GUEST_EVENT_PORT`]: the agent listens (for [`Milestones::agent_listening_us`]).
pub const GUEST_EVENT_AGENT_LISTENING: u8 = 3;

/// A folder of the share that is only told of by this name. In it is [`SHARE_NOTHING_LINK`], which may be renamed over any name of a
/// volume, as often as one likes: nothing changes on the node, but the guest's kernel tells of the rename who watches the volume.
pub const SHARE_NOTHING: &str = ".nothing";

/// The name in [`SHARE_NOTHING`].
pub const SHARE_NOTHING_LINK: &str = "link";

/// Most network cards of a VM.
pub const MAX_CARDS: usize = 8;

/// Most disks that a running VM can have beside its pod's own: each needs a place that the guest is
/// told of at its boot.
pub const MAX_DISKS: usize = 8;

/// Longest serial of a disk, bytes (virtio 1.3 section 5.2.6: VIRTIO_BLK_T_GET_ID).
pub const MAX_SERIAL: usize = 20;

/// Most vCPUs of a VM.
pub const MAX_VCPUS: u8 = 32;

/// What the monitor needs to build and run one VM. Descriptor numbers are those of the new process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// [`API_VERSION`] of the writer; another one is refused.
    pub api_version: u32,
    /// Name of the pod for log lines only.
    pub name: String,
    /// vCPUs that the guest starts with, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// vCPUs that the guest is told of, which it can have later; less than `vcpus`: it keeps those.
    #[serde(default)]
    pub vcpus_max: u8,
    /// Guest memory in MiB, at least 32.
    pub memory_mib: u32,
    /// MiB that can be plugged later, even; 0: the guest keeps the size that it started with.
    #[serde(default)]
    pub hotplug_mib: u32,
    /// Uncompressed kernel (`vmlinux`, ELF with a PVH note).
    pub kernel_fd: i32,
    /// Initramfs (cpio archive).
    pub initrd_fd: i32,
    /// Appended to the monitor's own kernel command line.
    pub cmdline: String,
    /// Listening `SOCK_SEQPACKET` unix socket for [`Request`]s.
    pub control_fd: i32,
    /// Listening `SOCK_STREAM` unix socket: a peer writes `CONNECT <port>\n`, is answered `OK <port>\n`, and
    /// is then joined to that vsock port of the guest; refused connections are closed.
    pub vsock_fd: i32,
    /// Regular file for the [`ExitReport`].
    pub exit_fd: i32,
    /// /dev/kvm.
    pub kvm_fd: i32,
    /// virtio-fs: the pod's share directory, opened `O_PATH | O_DIRECTORY`.
    pub share_fd: i32,
    /// A mount namespace whose root is the share, which the monitor enters before the guest's first instruction; launchers that know of
    /// none leave the monitor in theirs.
    #[serde(default)]
    pub mounts_fd: Option<i32>,
    /// virtio-blk: the pod's disk for writable layers, opened read-write.
    pub disk_fd: i32,
    /// virtio-net: a tap (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), absent without network.
    pub tap_fd: Option<i32>,
    /// Taps of further virtio-net devices, which the guest finds after the first, in order.
    #[serde(default)]
    pub more_tap_fds: Vec<i32>,
    /// Goes on where another VM was saved, in place of a boot. Everything else stays as it is said
    /// here: the kernel and the initramfs must be the files that the saved VM booted, `vcpus`,
    /// `vcpus_max`, `memory_mib`, `hotplug_mib`, `cmdline` and the number of taps those that it
    /// had, and the disk as large as its disk. The disk's content must be what that VM had when it
    /// was saved, unless its guest had not looked at the disk.
    #[serde(default)]
    pub restore: Option<Restore>,
}

/// A saved VM, as [`Request::Save`] wrote it. It is never changed, and any number of VMs can be
/// restored from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The guest's RAM; a sealed memfd.
    pub memory_fd: i32,
    /// Everything else.
    pub state_fd: i32,
    /// Pages that the guest will write to soon: each the first one's number in the memory file, in
    /// pages of 4 KiB, and how many there are. The guest gets its own copies of them before it runs.
    /// A hint: nothing depends on it but the time that the guest takes.
    #[serde(default)]
    pub written: Vec<(u32, u32)>,
}

/// One control packet to the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Version handshake; answered by [`Reply::Hello`], or by [`Reply::Error`] when the monitor does not speak that version.
    Hello {
        /// One of the caller's [`API_VERSIONS`].
        api_version: u32,
    },
    /// Answered by [`Reply::Status`].
    Status,
    /// The last bytes of the guest's serial console; answered by [`Reply::Console`].
    Console,
    /// One log sink request, with its descriptor attached to the same packet; answered by [`Reply::Done`].
    Sink(crate::sink::SinkRequest),
    /// Asks the guest to have so much plugged beside the memory that it started with; answered by [`Reply::Done`] at once:
    /// [`Status::memory`] tells how far the guest is.
    Memory {
        /// MiB, even, at most [`LaunchConfig::hotplug_mib`].
        plugged_mib: u32,
    },
    /// Makes vCPUs, so that the guest can bring up the first `count` of all; those that are there stay. Answered by [`Reply::Done`]
    /// when they wait for the guest to wake them.
    Vcpus {
        /// At most [`LaunchConfig::vcpus_max`].
        count: u8,
    },
    /// Puts a disk into a free place. The block device that it shows is attached to the same
    /// packet, open for reading, and for writing unless the disk is read-only. Answered by
    /// [`Reply::Plugged`]; a serial that is plugged already is left as it is and answered alike.
    Plug {
        /// By which the guest finds the disk: 1 to [`MAX_SERIAL`] bytes of printable ASCII without
        /// blanks, chosen by the caller, one for each device and access.
        serial: String,
        /// The guest cannot write to it, whatever it asks for.
        read_only: bool,
    },
    /// Takes a disk out, whether its guest still uses it or not. Answered by [`Reply::Done`], also
    /// when there is no such disk, or by [`Reply::Busy`].
    Unplug {
        /// That of [`Request::Plug`].
        serial: String,
    },
    /// Pauses the VM and saves it into two memfds that are attached to the same packet: first its
    /// memory, then its state. Both must allow sealing, and are sealed then. Answered by
    /// [`Reply::Done`]; the VM stays paused until [`Request::Resume`] or [`Request::Kill`].
    /// Refused, and the VM goes on, while something of it would be lost: disks that are plugged,
    /// memory that is plugged, files of the share that its guest knows. Connections to the guest
    /// are not saved.
    ///
    /// The monitor does nothing else meanwhile, which takes as long as what its devices have begun
    /// with files of the node, and as reading all of the guest's memory.
    Save,
    /// Pauses the VM: its vCPUs and devices do nothing until [`Request::Resume`]. Its clocks go on.
    /// Answered by [`Reply::Done`], also when it is paused already.
    Pause,
    /// Lets a VM go on that [`Request::Save`] or [`Request::Pause`] has paused; answered by
    /// [`Reply::Done`].
    Resume,
    /// Ends the VM at once; the exit report says [`ExitReason::Killed`]. Answered by [`Reply::Done`] first.
    Kill,
}

/// The monitor's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// That of the request.
        api_version: u32,
        /// Version of the program.
        monitor_version: String,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Console`]; invalid UTF-8 is replaced.
    Console {
        /// Up to 32 KiB of the newest output.
        text: String,
    },
    /// To [`Request::Plug`].
    Plugged {
        /// The place: number of the guest's virtio-mmio device, from 0.
        slot: u32,
    },
    /// To [`Request::Unplug`]: the disk serves nothing more, but still waits for the node to finish
    /// what it was asked. Ask again.
    Busy,
    /// The request was carried out.
    Done,
    /// The request was refused, and nothing changed.
    Error {
        /// What failed, on what, and why.
        message: String,
    },
}

/// State of a running VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// When things happened.
    pub milestones: Milestones,
    /// vCPU exits to the monitor since start, all vCPUs.
    pub vcpu_exits: u64,
    /// Guest notifications (queue kicks) handled since start.
    pub queue_kicks: u64,
    /// Interrupts injected by devices since start.
    pub interrupts: u64,
    /// Requests of the guest to the file server (virtio-fs) carried out since start.
    #[serde(default)]
    pub file_requests: u64,
    /// The same by what was asked: the opcode of FUSE (`enum fuse_opcode` of Linux's `fuse.h`), and how many requests had it.
    #[serde(default)]
    pub file_requests_by_kind: Vec<(u32, u64)>,
    /// Memory beside what the guest started with; absent when it can have none.
    #[serde(default)]
    pub memory: Option<Memory>,
    /// vCPUs; absent when the guest can have no more than one.
    #[serde(default)]
    pub vcpus: Option<Vcpus>,
    /// Disks that were plugged, by their places.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The VM waits for [`Request::Resume`].
    #[serde(default)]
    pub paused: bool,
}

/// A disk that was plugged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// As [`Reply::Plugged`] says it.
    pub slot: u32,
    /// That of [`Request::Plug`].
    pub serial: String,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// vCPUs that come later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpus {
    /// At most.
    pub most: u8,
    /// What is there for the guest to use, used or not.
    pub made: u8,
}

/// Memory that comes and goes, MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// At most.
    pub most_mib: u32,
    /// What the guest should have.
    pub requested_mib: u32,
    /// What it has.
    pub plugged_mib: u32,
}

/// Microseconds since the monitor's exec, 0 while it has not happened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestones {
    /// Guest memory is mapped, the kernel is loaded.
    pub kernel_loaded_us: u64,
    /// The first vCPU ran.
    pub vcpu_started_us: u64,
    /// The guest wrote [`GUEST_EVENT_AGENT_STARTED`].
    pub agent_started_us: u64,
    /// The guest wrote [`GUEST_EVENT_AGENT_LISTENING`].
    pub agent_listening_us: u64,
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest asked for it by [`GUEST_EVENT_POWER_OFF`].
    PowerOff,
    /// The guest's kernel reset the machine (a panic does, with `panic=-1`).
    GuestReset,
    /// Triple fault (KVM_EXIT_SHUTDOWN).
    TripleFault,
    /// [`Request::Kill`].
    Killed,
    /// The monitor itself failed, or KVM reported an internal error.
    MonitorError,
}

/// The last word of a monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Why.
    pub reason: ExitReason,
    /// Detail for people; the console's last lines for a crash.
    pub detail: String,
    /// Nanoseconds since the epoch, by the node's clock.
    pub at_unix_nanos: i64,
}

//! PID 1 of a microVM: mounts what the guest needs, serves the agent's API on vsock, and powers
//! off. The pod's own disk and share are mounted when the daemon asks ([`crate::before_pod`]).
//!
//! The initramfs holds this program and the console. When it fails, it ends, and the kernel panics:
//! the monitor tells that as a crash, with the console's last lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use cofferdam_proto::agent::{GUEST_SHARE, SHARE_TAG, VSOCK_PORT};
use cofferdam_proto::monitor::{
    GUEST_EVENT_AGENT_LISTENING, GUEST_EVENT_AGENT_STARTED, GUEST_EVENT_PORT, GUEST_EVENT_POWER_OFF,
};
use futures::StreamExt;
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tonic::transport::server::Connected;

use crate::agent::{Agent, Dirs, Mode, Shared, open_namespace};
use crate::container::cgroup;
use crate::container::create::GUEST_PARENT;
use crate::container::rootfs::new_mount;
use crate::error::{Doing, Result};
use crate::logs::Logs;
use crate::{network, reclaim, service, sys};

/// The pod's disk for writable layers.
const DISK: &str = "/run/cofferdam/disk";
/// As many numbers as a process can have.
const MAX_PROCESSES: u64 = 4 << 20;
/// Signals that wait for a user's processes: those of a node with 8 GiB.
const MAX_SIGNALS: u64 = 32 << 10;
/// The agent's own files.
const RUN: &str = "/run/cofferdam/run";

const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Runs the guest to its end.
pub fn run() -> ! {
    let _ = sys::out_byte(GUEST_EVENT_PORT, GUEST_EVENT_AGENT_STARTED);
    crate::start_log();
    match serve() {
        Ok(()) => power_off(),
        Err(error) => {
            eprintln!("cofferdam-agent: {}", error.chain());
            sys::exit_now(1)
        }
    }
}

/// Processes and threads of a container are bounded by its cgroup alone, as on a node. By itself
/// the kernel would allow as many as suit the memory that the guest started with: 900 for each user
/// of a guest of 256 MiB.
fn lift_limits() -> Result<()> {
    for (name, most) in [("threads-max", MAX_PROCESSES), ("pid_max", MAX_PROCESSES)] {
        let path = Path::new("/proc/sys/kernel").join(name);
        sys::write_knob(&path, most.to_string()).doing(format!("set {}", path.display()))?;
    }
    setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None }).doing("lift the limit on processes")?;
    let signals = Rlimit { current: Some(MAX_SIGNALS), maximum: Some(MAX_SIGNALS) };
    setrlimit(Resource::Sigpending, signals).doing("raise the limit on pending signals")
}

fn serve() -> Result<()> {
    mount_kernel()?;
    lift_limits()?;
    sys::write_knob(Path::new("/proc/self/oom_score_adj"), "-1000").doing("be the last one to be killed")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .doing("keep containers from looking into the agent")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().doing("start the runtime")?;
    runtime.block_on(async {
        // The kernel takes the daemon's connection from here on.
        let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, VSOCK_PORT)).doing("listen on vsock")?;
        sys::out_byte(GUEST_EVENT_PORT, GUEST_EVENT_AGENT_LISTENING).doing("tell the monitor")?;
        let dirs = Dirs { state: PathBuf::from(DISK), run: PathBuf::from(RUN) };
        let agent = Agent::new(Mode::Vm, dirs, open_namespace("mnt")?, Shared::default(), None, Logs::Vm)?;
        network::loopback().await?;
        // The kernel takes its time to switch controllers on, and the first container comes only
        // when the network is there: another process waits for it meanwhile.
        let cgroups = agent.cgroup_root.clone();
        let child = sys::fork(0, None, || u8::from(cgroup::prepare(&cgroups, Path::new(GUEST_PARENT)).is_err()))
            .doing("start a process")?;
        agent.before_pod.settles_after(agent.reaper.watch(child.pid)).await;
        tokio::spawn(reclaim::run(agent.clone(), agent.cgroup_root.join(GUEST_PARENT)));
        // Only the node may call, not what runs in the guest.
        let incoming = listener.incoming().filter_map(|stream| async {
            match stream.map(|s| (s.peer_addr(), s)) {
                Ok((Ok(peer), stream)) if peer.cid() == VMADDR_CID_HOST => Some(Ok(Connection(stream))),
                Ok(_) => None,
                Err(error) => Some(Err(error)),
            }
        });
        let incoming = std::pin::pin!(incoming);
        service::serve(agent, incoming).await.doing("serve the agent's API")
    })
}

/// Mounts a new instance of a file system on a directory that is made first.
fn mount_new(kind: &str, place: &str, data: &[(&str, &str)], attributes: u64) -> Result<()> {
    fs::create_dir_all(place).doing(format!("make {place}"))?;
    let data: Vec<_> =
        data.iter().map(|(key, value)| ((*key).to_owned(), (!value.is_empty()).then(|| (*value).to_owned()))).collect();
    let tree = new_mount(kind, &data, attributes)?;
    move_mount(&tree, "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing(format!("mount on {place}"))
}

/// What every kernel has to show.
fn mount_kernel() -> Result<()> {
    // The initramfs cannot be left by pivot_root, which each container does: a file system on top
    // of it can.
    let root = new_mount("tmpfs", &[("mode".to_owned(), Some("755".to_owned()))], 0)?;
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).doing("mount the root")?;
    rustix::process::fchdir(&root).doing("enter the root")?;
    rustix::process::chroot(".").doing("enter the root")?;

    mount_new("proc", "/proc", &[], NOSUID | NODEV | NOEXEC)?;
    mount_sys()?;
    mount_new("devtmpfs", "/dev", &[], NOSUID)?;
    fs::create_dir_all(RUN).doing(format!("make {RUN}"))
}

/// Mounts /sys; again, to see another network namespace: it shows the one in which it was mounted.
///
/// # Errors
/// When the kernel refuses.
pub fn mount_sys() -> Result<()> {
    mount_new("sysfs", "/sys", &[], NOSUID | NODEV | NOEXEC)?;
    mount_new("cgroup2", "/sys/fs/cgroup", &[], NOSUID | NODEV | NOEXEC)
}

/// Mounts what the node gives to the pod: its share and its disk.
///
/// # Errors
/// When the kernel refuses; what was mounted stays.
pub fn mount_pod() -> Result<()> {
    mount_new("virtiofs", GUEST_SHARE, &[("source", SHARE_TAG)], NOSUID | NODEV)?;
    // A mount that one container makes below a shared volume can reach another one.
    mount_change(GUEST_SHARE, MountPropagationFlags::SHARED).doing("share the share")?;
    if let Err(error) = read_ahead(GUEST_SHARE) {
        tracing::warn!(error = error.chain(), "files of the node are read in small pieces");
    }
    // Blocks come back to the node when they are deleted. Nothing reads the inode tables before
    // they are used.
    let options = [("source", "/dev/vda"), ("discard", ""), ("noinit_itable", "")];
    let with_quota: Vec<_> = options.into_iter().chain([("prjquota", "")]).collect();
    if let Err(error) = mount_new("ext4", DISK, &with_quota, NOSUID_DISK) {
        tracing::warn!(error = error.chain(), "the disk has no project quotas");
        mount_new("ext4", DISK, &options, NOSUID_DISK)?;
    }
    Ok(())
}

/// Has the kernel read ahead as much of a file as one request to the node can ask for: a request
/// costs the same whatever its size.
fn read_ahead(mount: &str) -> Result<()> {
    let device = rustix::fs::stat(mount).doing(format!("look at {mount}"))?.st_dev;
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(device), rustix::fs::minor(device));
    fs::write(&path, READ_AHEAD_KIB).doing(format!("write {path}"))
}

/// What the file server answers to one request at most.
const READ_AHEAD_KIB: &str = "1024";

/// The writable layers hold programs and devices of containers; only access times are not worth a
/// write.
const NOSUID_DISK: u64 = libc::MOUNT_ATTR_NOATIME;

/// Lets go of everything and ends the machine. The disk's content dies with the VM and is not
/// written out; volumes are.
fn power_off() -> ! {
    if let Ok(share) = fs::File::open(GUEST_SHARE) {
        let _ = rustix::fs::syncfs(&share);
    }
    for place in [GUEST_SHARE, DISK] {
        let _ = unmount(place, UnmountFlags::DETACH);
    }
    if let Err(error) = sys::out_byte(GUEST_EVENT_PORT, GUEST_EVENT_POWER_OFF) {
        eprintln!("cofferdam-agent: cannot power off: {error}");
    }
    // The monitor ends the VM at once; a byte that nobody took ends it as a crash.
    std::thread::sleep(std::time::Duration::from_secs(10));
    sys::exit_now(1)
}

/// A vsock connection, as the server wants it.
#[derive(Debug)]
struct Connection(VsockStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

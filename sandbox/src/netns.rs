#![allow(unsafe_code)] // ioctls on sockets and the tap
//! A pod's network namespace. Whatever happens in it happens on a thread of its own, never on one that others use again.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::mount_bind;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use crate::error::{Doing, SandboxError};
use crate::{devices, share};

/// What the names of the taps in a pod's namespace begin with; a number follows.
const TAP: &str = "tap";

/// Name of the tap of network card `number`.
pub(crate) fn tap_name(number: usize) -> String {
    format!("{TAP}{number}")
}

/// Whether an interface of a pod's namespace is one of our taps.
pub(crate) fn is_tap(name: &str) -> bool {
    name.strip_prefix(TAP).is_some_and(|number| number.parse::<u8>().is_ok())
}

/// What is done with a namespace's file, for errors.
fn making(path: &Path) -> String {
    format!("make network namespace {}", path.display())
}

/// The file to mount a namespace at; a symbolic link or a file that is there already is never followed.
fn mount_point(path: &Path) -> Result<(), SandboxError> {
    if let Some(folder) = path.parent() {
        // 0755, as `ip netns` makes it: agents of the node read it, and to enter a namespace takes more than its name.
        fs::create_dir_all(folder).doing(|| format!("make directory {}", folder.display()))?;
    }
    File::create_new(path).map(drop).doing(|| making(path))
}

/// Takes the namespace's name away; the namespace goes with the last process or interface in it. Idempotent. Blocks.
pub(crate) fn remove(path: &Path) -> Result<(), SandboxError> {
    share::unmount_all(path)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).doing(|| format!("delete network namespace {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A new namespace.
pub(crate) struct NetNs {
    /// Keeps it, with the mount at its path.
    pub(crate) fd: OwnedFd,
    /// Taps in it, as many as were asked for; each is gone when the last one closes it.
    pub(crate) taps: Vec<OwnedFd>,
}

/// Mounts the namespace `fd` at `path`. Blocks for a moment.
pub(crate) fn name(path: &Path, fd: &OwnedFd) -> Result<(), SandboxError> {
    mount_point(path)?;
    mount_bind(format!("/proc/self/fd/{}", fd.as_raw_fd()), path).doing(|| making(path))
}

/// Mounts the namespace `fd` at `path` and brings `lo` up in it. Blocks for a moment.
pub(crate) fn adopt(path: &Path, fd: OwnedFd) -> Result<NetNs, SandboxError> {
    name(path, &fd)?;
    inside(fd.as_fd(), || up("lo").doing(|| "bring up lo in the pod's network namespace".into()))?;
    Ok(NetNs { fd, taps: Vec::new() })
}

/// Makes a namespace with `lo` up, bind-mounted at `path`, with `taps` taps. Blocks for a moment.
pub(crate) fn create(path: &Path, taps: usize) -> Result<NetNs, SandboxError> {
    let step = || making(path);
    mount_point(path)?;
    on_a_thread("netns", || {
        // SAFETY: only the network namespace of this thread changes, which ends soon; no descriptor table is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.doing(step)?;
        let own = "/proc/thread-self/ns/net";
        mount_bind(own, path).doing(step)?;
        let fd = rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(step)?;
        up("lo").doing(|| "bring up lo in the pod's network namespace".into())?;
        let taps: Result<_, SandboxError> = (0..taps).map(|number| tap(&tap_name(number))).collect();
        let taps =
            taps.doing(|| "make a tap in the pod's network namespace; is the tun module there (/dev/net/tun)?".into())?;
        Ok(NetNs { fd, taps })
    })
}

/// Runs `work` in the namespace `netns`.
pub(crate) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, SandboxError> + Send,
) -> Result<T, SandboxError> {
    on_a_thread("netns", || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .doing(|| "enter the pod's network namespace".into())?;
        work()
    })
}

/// Runs `work` on a thread that ends with it, for what must not be left behind on others.
pub(crate) fn on_a_thread<T: Send>(
    name: &str,
    work: impl FnOnce() -> Result<T, SandboxError> + Send,
) -> Result<T, SandboxError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.into()).spawn_scoped(scope, work);
        match thread.doing(|| "start a thread".into())?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether a namespace is mounted at `path`, not just its empty file.
pub(crate) fn is_mounted(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == libc::NSFS_MAGIC)
}

/// Turns IPv6 off on `interface` of this thread's namespace: what it would say there is for the guest to say.
pub(crate) fn no_ipv6(interface: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()), // a node without IPv6
        other => other,
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed();
    }
    request
}

/// Brings an interface of this thread's namespace up.
pub(crate) fn up(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = request(name);
    ioctl(socket.as_fd(), libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel has just filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::c_short::try_from(libc::IFF_UP).unwrap_or_default();
    ioctl(socket.as_fd(), libc::SIOCSIFFLAGS, &mut request)
}

fn tap(name: &str) -> Result<OwnedFd, SandboxError> {
    let file = devices::open("net/tun")?;
    attach(&file, name).doing(|| format!("make {name} of /dev/net/tun"))?;
    Ok(file)
}

/// Makes `file` the tap `name`.
fn attach(file: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    ioctl(file.as_fd(), libc::TUNSETIFF, &mut request)?;
    no_ipv6(name)?;
    up(name)
}

fn ioctl(fd: BorrowedFd<'_>, code: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: every request made here reads and writes one ifreq.
    if unsafe { libc::ioctl(fd.as_raw_fd(), code, request) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

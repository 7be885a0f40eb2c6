//! Starts a vm pod's monitor, and waits for its guest.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::monitor::{API_VERSION, LaunchConfig, Milestones, Restore};
use rustix::net::SocketType;

use super::Launch;
use crate::connect::{Control, listener};
use crate::error::{Doing, SandboxError, blocking};
use crate::pod::Watched;
use crate::process::{self, Program};
use crate::spec::Kind;
use crate::versions::ProgramVersion;
use crate::{devices, dirs, disk, share};

/// Starts it.
pub(super) async fn start(launch: &Arc<Launch>) -> Result<Watched, SandboxError> {
    let started = {
        let launch = Arc::clone(launch);
        blocking(move || spawn(&launch)).await?
    };
    Ok(Watched::new(started, &launch.dirs, Kind::Vm, &launch.cgroup, &launch.shared.watches))
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn open(path: &Path) -> Result<OwnedFd, SandboxError> {
    File::open(path).map(OwnedFd::from).doing(|| format!("open {}", path.display()))
}

#[expect(clippy::disallowed_methods, reason = "on blocking threads only")]
fn spawn(launch: &Launch) -> Result<process::Started, SandboxError> {
    let (dirs, spec, config) = (&launch.dirs, &launch.spec, &launch.shared.config.vm);
    let (shape, template) = (launch.shape, launch.template.as_deref());
    let cgroup = launch.cgroup.create("monitor", false)?;
    let share = share::create(dirs)?;
    let control = listener(&dirs.control(), SocketType::SEQPACKET)?;
    let vsock = listener(&dirs.vsock(), SocketType::STREAM)?;
    let (kvm, kernel, initrd) = (devices::open("kvm")?, open(&config.kernel)?, open(&config.initramfs)?);
    let disk = disk::create(&config.disk_template, &dirs.disk())?;
    let exit = File::create_new(dirs.exit_report()).map(OwnedFd::from).doing(|| "make the exit report".into())?;
    let taps = launch.netns.as_ref().map(|netns| &netns.taps[..]).unwrap_or_default();
    let settings = process::config_fd(&LaunchConfig {
        api_version: API_VERSION,
        name: spec.id.clone(),
        vcpus: shape.size.vcpus,
        vcpus_max: shape.vcpus_max,
        memory_mib: shape.size.memory_mib,
        hotplug_mib: shape.hotplug_mib,
        kernel_fd: kernel.as_raw_fd(),
        initrd_fd: initrd.as_raw_fd(),
        cmdline: config.kernel_args.clone(),
        control_fd: control.as_raw_fd(),
        vsock_fd: vsock.as_raw_fd(),
        exit_fd: exit.as_raw_fd(),
        kvm_fd: kvm.as_raw_fd(),
        share_fd: share.root.as_raw_fd(),
        mounts_fd: Some(share.mounts.as_raw_fd()),
        disk_fd: disk.as_raw_fd(),
        tap_fd: taps.first().map(AsRawFd::as_raw_fd),
        more_tap_fds: taps.iter().skip(1).map(AsRawFd::as_raw_fd).collect(),
        restore: template.map(|template| Restore {
            memory_fd: template.memory.as_raw_fd(),
            state_fd: template.state.as_raw_fd(),
            written: template.written().to_vec(),
        }),
    })?;
    let mut inherit: Vec<_> =
        [&settings, &kernel, &initrd, &control, &vsock, &exit, &kvm, &share.root, &share.mounts, &disk]
            .map(AsFd::as_fd)
            .into();
    inherit.extend(taps.iter().map(AsFd::as_fd));
    inherit.extend(template.iter().flat_map(|template| [&template.memory, &template.state]).map(AsFd::as_fd));
    let number = settings.as_raw_fd().to_string();
    let program = Program {
        path: &config.monitor,
        copy: None,
        args: &["--config-fd", &number],
        inherit,
        cgroup: &cgroup.procs,
        netns: launch.netns.as_ref().map(|netns| netns.fd.as_fd()),
        stderr: &dirs.stderr(),
        oom_score_adj: spec.oom_score_adj,
        apart: true,
    };
    let started = program.start()?;
    launch.clock.mark("monitor_spawned");
    dirs::write(&dirs.process(), &started.record)?;
    Ok(started)
}

/// Waits until the guest's agent listens. The monitor is asked, so that a guest that boots is not disturbed.
pub(super) async fn booted(launch: &Arc<Launch>) -> Result<ProgramVersion, SandboxError> {
    let spawned = launch.clock.timeline().get("monitor_spawned").copied().unwrap_or_default();
    let limit = launch.shared.config.vm.boot_timeout;
    let path = launch.dirs.control();
    let mut control = blocking(move || Control::open(&path, limit)).await?;
    loop {
        let (back, milestones) = blocking(move || {
            let milestones = control.milestones()?;
            Ok((control, milestones))
        })
        .await?;
        mark(launch, spawned, &milestones);
        if milestones.agent_listening_us > 0 {
            return Ok(back.into_program());
        }
        // A fiftieth of what the boot took so far: quick where boots are quick, and no load where they are slow.
        let waited = Duration::from_micros(launch.clock.now().saturating_sub(spawned));
        tokio::time::sleep((waited / 50).clamp(Duration::from_millis(1), Duration::from_millis(25))).await;
        control = back;
    }
}

fn mark(launch: &Launch, spawned: u64, milestones: &Milestones) {
    let steps = [
        ("kernel_loaded", milestones.kernel_loaded_us),
        ("vcpu_started", milestones.vcpu_started_us),
        ("agent_started", milestones.agent_started_us),
        ("agent_listening", milestones.agent_listening_us),
    ];
    for (step, at) in steps.into_iter().filter(|(_, at)| *at > 0) {
        launch.clock.mark_at(step, spawned + at);
    }
}

//! A VM's life: [`Prepared`], then [`Running`], then its [`End`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_proto::monitor::{ExitReason, MAX_DISKS};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::control::{self, Control};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::blk::{Blk, Spare};
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::mem::{Mem, Region};
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::devices::virtio::net::Net;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::{ActivateError, VirtioDevice};
use crate::disks::Disks;
use crate::ending::{End, EndWatcher, Ending};
use crate::event_loop::{EventHandler, EventLoop, lock};
use crate::fill::{Fill, FillError};
use crate::kvm::{KvmError, Machine, RunningVcpus, Vcpu};
use crate::launch::{Handed, Settings};
use crate::process;
use crate::report::Reporter;
use crate::saved::Origin;
use crate::saver::Saver;
use crate::timeline::Timeline;

/// Tag by which the guest mounts the share.
const SHARE_TAG: &str = "cofferdam";
/// The guest's vsock address; each VM is alone on its vsock.
const GUEST_CID: u32 = 3;
/// How long the process goes on after its guest, for what the devices have begun; then it ends whatever hangs.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Why a VM did not come to run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// Building a part of the monitor failed.
    #[error("cannot {step}")]
    Io {
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest has nothing to begin with.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// A restored device does not go on.
    #[error("cannot let a restored device go on")]
    Resume(#[from] ActivateError),
}

/// Names the step that failed.
fn step(step: &'static str) -> impl Fn(io::Error) -> VmError {
    move |source| VmError::Io { step, source }
}

/// Everything is there, and nothing ran yet.
pub(crate) struct Prepared {
    first: Vec<Vcpu>,
    parts: Parts,
}

/// The vCPUs run.
pub(crate) struct Running {
    parts: Parts,
    reporter: Arc<Reporter>,
}

/// What both phases have.
struct Parts {
    vcpus: Arc<Mutex<RunningVcpus>>,
    vsock: Arc<Mutex<Vsock>>,
    events: EventLoop,
    serial: Arc<Mutex<SerialPort>>,
    ending: Arc<Ending>,
    timeline: Arc<Timeline>,
    bus: Arc<Bus>,
}

/// The devices on their way to their places.
struct Devices {
    memory: GuestMemoryMmap,
    events: EventLoop,
    transports: Vec<Transport>,
}

impl Devices {
    /// Gives `device` the next slot.
    fn add(&mut self, device: Arc<Mutex<dyn VirtioDevice>>) -> Result<(), VmError> {
        let slot = Slot::new(self.transports.len() as u32).ok_or_else(no_line)?;
        let transport = Transport::new(slot, self.memory.clone(), device).map_err(step("make a device's registers"))?;
        self.transports.push(transport);
        Ok(())
    }

    /// Gives `device` the next slot, and a place in the main loop.
    fn add_polled<T: VirtioDevice + EventHandler + 'static>(&mut self, device: T) -> Result<(), VmError> {
        self.share_polled(Arc::new(Mutex::new(device)))
    }

    /// As [`Self::add_polled`], for a device that others reach too.
    fn share_polled<T: VirtioDevice + EventHandler + 'static>(&mut self, device: Arc<Mutex<T>>) -> Result<(), VmError> {
        self.events.add(device.clone()).map_err(step("add a device to the event loop"))?;
        self.add(device)
    }

    /// Places for disks that come later, behind all devices: their interrupt lines may be shared.
    /// What shares a line raises it by one eventfd, since KVM can lose an interrupt of two that
    /// pulse the same line at once.
    fn add_spares(&mut self) -> Result<Vec<Arc<Mutex<Spare>>>, VmError> {
        let devices = self.transports.len() as u32;
        let (mut lines, mut spares) = (BTreeMap::<u32, EventFd>::new(), Vec::new());
        for number in 0..MAX_DISKS as u32 {
            let slot = Slot::spare(devices, number).ok_or_else(no_line)?;
            let line = match lines.get(&slot.irq) {
                Some(line) => line.try_clone(),
                None => EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC),
            };
            let line = line.map_err(step("make an eventfd"))?;
            lines.insert(slot.irq, line.try_clone().map_err(step("copy an eventfd"))?);
            let spare = Arc::new(Mutex::new(Spare::default()));
            let transport = Transport::with_line(slot, self.memory.clone(), spare.clone(), line);
            self.transports.push(transport.map_err(step("make the registers of a place for a disk"))?);
            spares.push(spare);
        }
        Ok(spares)
    }

    /// All devices, in the order in which the guest finds them.
    fn add_all(&mut self, fds: DeviceFds, agent_listens: Arc<EventFd>) -> Result<Arc<Mutex<Vsock>>, VmError> {
        self.add(Arc::new(Mutex::new(Blk::new(fds.disk).map_err(step("open the pod's disk"))?)))?;
        for tap in fds.taps {
            self.add_polled(Net::new(tap).map_err(step("take the tap over"))?)?;
        }
        self.add(Arc::new(Mutex::new(Fs::new(SHARE_TAG, fds.share).map_err(step("serve the share directory"))?)))?;
        let vsock = Vsock::new(GUEST_CID, fds.vsock, agent_listens).map_err(step("serve the vsock socket"))?;
        let vsock = Arc::new(Mutex::new(vsock));
        self.share_polled(vsock.clone())?;
        self.add_polled(Rng::new())?;
        self.add_polled(Balloon::new())?;
        Ok(vsock)
    }
}

fn no_line() -> VmError {
    step("find an interrupt line for a device")(io::ErrorKind::StorageFull.into())
}

struct DeviceFds {
    disk: OwnedFd,
    taps: Vec<OwnedFd>,
    share: OwnedFd,
    vsock: OwnedFd,
}

impl Prepared {
    /// Builds the VM, up to but not including its first instruction.
    pub(crate) fn new(settings: &Settings, handed: Handed, timeline: Arc<Timeline>) -> Result<Self, VmError> {
        let Handed { kvm, kernel, initrd, control, vsock, share, disk, taps, restore, mounts: _ } = handed;
        let origin = Origin::new(settings, &kernel, &initrd).map_err(step("look at the kernel and the initramfs"))?;
        let fill = Fill::new(&origin, kernel, initrd, restore)?;
        let ram = fill.ram(settings.memory_mib)?;
        let (memory, hotplug) = (ram.clone(), settings.hotplug_mib);
        let reserve = |mib| Region::reserve(&ram, mib).map_err(step("reserve memory for later"));
        let (region, memory) = match (hotplug > 0).then(|| reserve(hotplug)).transpose()? {
            Some((region, memory)) => (Some(region), memory),
            None => (None, memory),
        };
        let machine = Machine::new(kvm, &memory)?;
        let ending = Ending::new().map_err(step("make an eventfd"))?;
        let serial = fill.serial()?;
        machine.attach_serial(&serial)?;
        let serial = Arc::new(Mutex::new(serial));

        let events = EventLoop::new().map_err(step("make the event loop"))?;
        let mut devices = Devices { memory: memory.clone(), events, transports: Vec::new() };
        let agent_listens = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(step("make an eventfd"))?;
        let agent_listens = Arc::new(agent_listens);
        let vsock = devices.add_all(DeviceFds { disk, taps, share, vsock }, agent_listens.clone())?;
        let mem = region.map(|region| Arc::new(Mutex::new(Mem::new(region))));
        if let Some(mem) = &mem {
            devices.share_polled(mem.clone())?;
        }
        let first_spare = devices.transports.len();
        let spares = devices.add_spares()?;
        let Devices { mut events, mut transports, .. } = devices;
        let mut lines = BTreeSet::new();
        for transport in &transports {
            machine.attach(transport, !lines.insert(transport.slot().irq))?;
        }

        fill.devices(&mut transports)?;
        let slots: Vec<Slot> = transports.iter().map(Transport::slot).collect();
        let maker = machine.maker(settings.vcpus_max, memory)?;
        let first = fill.vcpus(settings, &slots, &ram, &maker)?;
        timeline.mark(&timeline.kernel_loaded);
        let bus = Arc::new(Bus::new(transports, serial.clone(), ending.clone(), timeline.clone(), agent_listens));
        let disks = Disks::new(bus.clone(), first_spare, spares);
        let vcpus = RunningVcpus::new(maker, bus.clone(), ending.clone());
        let vcpus = Arc::new(Mutex::new(vcpus.map_err(step("install the vCPUs' signal"))?));

        let later = (settings.vcpus_max > 1).then(|| vcpus.clone());
        let saver = Saver::new(bus.clone(), vcpus.clone(), serial.clone(), ram, origin, ending.clone());
        let (serial_too, vsock_too, saver) = (serial.clone(), vsock.clone(), Some(saver));
        let parts = control::Parts { serial: serial_too, vsock: vsock_too, mem, vcpus: later, disks, saver };
        let control =
            Control::new(control, parts, timeline.clone(), ending.clone()).map_err(step("serve the control socket"))?;
        for handler in [
            Arc::new(Mutex::new(control)) as Arc<Mutex<dyn EventHandler>>,
            Arc::new(Mutex::new(EndWatcher(ending.clone()))),
        ] {
            events.add(handler).map_err(step("fill the event loop"))?;
        }
        Ok(Self { first, parts: Parts { vcpus, vsock, events, serial, ending, timeline, bus } })
    }

    /// Lets the vCPUs run. How the VM ends is written to `exit`.
    pub(crate) fn start(self, exit: &File) -> Result<Running, VmError> {
        let Self { first, parts } = self;
        let exit = exit.try_clone().map_err(step("copy the exit report's descriptor"))?;
        let reporter = Arc::new(Reporter::new(exit, parts.serial.clone(), parts.timeline.clone()));
        let overdue = reporter.clone();
        parts.ending.guard(END_LIMIT, move |end| {
            overdue.tell(end);
            complain!("the monitor ends though something hangs: it was to finish {END_LIMIT:?} after its VM");
            process::exit_at_once(end.reason == ExitReason::PowerOff);
        });
        // The threads of restored devices start here, since the monitor is locked in by now.
        parts.bus.resume()?;
        if lock(&parts.vsock).agent_listens() {
            parts.timeline.restored();
        }
        parts.timeline.mark(&parts.timeline.vcpu_started);
        let running = Running { parts, reporter };
        for vcpu in first {
            let started = lock(&running.parts.vcpus).run(vcpu);
            if let Err(error) = started {
                running.parts.ending.finish(ExitReason::MonitorError, "a vCPU's thread did not start");
                running.stop();
                return Err(step("start a vCPU's thread")(error));
            }
        }
        Ok(running)
    }
}

impl Running {
    /// Serves the VM until it ends. The exit report is written before anything is waited for that may hang; answers whether that
    /// worked.
    pub(crate) fn wait(self) -> (End, bool) {
        if let Err(error) = self.parts.events.run() {
            self.parts.ending.finish(ExitReason::MonitorError, format!("the event loop failed: {error}"));
        }
        let end = self.parts.ending.end().unwrap_or_else(|| End {
            reason: ExitReason::MonitorError,
            detail: "the main loop stopped for no reason".into(),
        });
        let told = self.reporter.tell(&end);
        self.stop();
        (end, told)
    }

    /// Brings all vCPUs out of the guest, then lets the devices and the logs finish what they
    /// began.
    fn stop(self) {
        lock(&self.parts.vcpus).stop();
        lock(&self.parts.vsock).finish_logs();
    }
}

//! With what a new VM begins: a kernel that boots, or the state of a VM that was saved.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use cofferdam_proto::monitor::Vcpus;
use vm_memory::GuestMemoryMmap;

use crate::boot::{self, BootError};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::mmio::{Slot, Transport};
use crate::devices::virtio::saved::RestoreError as DeviceError;
use crate::kvm::{KvmError, Maker, Vcpu};
use crate::launch::{Restore, Settings};
use crate::memory;
use crate::saved::{self, FileError, MemoryError, Mismatch, Origin, State};

/// Why a VM cannot begin so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// The kernel or what it needs does not fit.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused, or runs on another processor than that of the state.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Memory of its own cannot be mapped.
    #[error("cannot map the guest's memory")]
    Memory(#[source] io::Error),
    /// The state file is no good.
    #[error("cannot restore the VM")]
    File(#[from] FileError),
    /// It is of another VM.
    #[error("cannot restore the VM")]
    Mismatch(#[from] Mismatch),
    /// The memory file is no good.
    #[error("cannot restore the VM")]
    SavedMemory(#[from] MemoryError),
    /// A device is another one.
    #[error("cannot restore the VM")]
    Device(#[from] DeviceError),
    /// The state has more or fewer devices.
    #[error("cannot restore the VM: its state has {saved} devices, and it has {now}")]
    Devices {
        /// Of the state.
        saved: usize,
        /// Of this VM.
        now: usize,
    },
    /// The console is not there.
    #[error("cannot make the serial port")]
    Serial(#[source] io::Error),
}

/// Which of both.
pub(crate) enum Fill {
    /// A kernel and its initramfs.
    Boot { kernel: OwnedFd, initramfs: OwnedFd },
    /// A state, and the memory that goes with it.
    Restore { state: Box<State>, memory: File, written: Vec<(u32, u32)> },
}

impl Fill {
    /// For a VM of `origin`. A state of another one is refused before anything else is done.
    pub(crate) fn new(
        origin: &Origin,
        kernel: OwnedFd,
        initramfs: OwnedFd,
        restore: Option<Restore>,
    ) -> Result<Self, FillError> {
        let Some(Restore { memory, state, written }) = restore else { return Ok(Self::Boot { kernel, initramfs }) };
        let state: State = saved::read(&File::from(state))?;
        state.origin.check(origin)?;
        Ok(Self::Restore { state: Box::new(state), memory: File::from(memory), written })
    }

    /// The guest's RAM, without what can be plugged.
    pub(crate) fn ram(&self, memory_mib: u32) -> Result<GuestMemoryMmap, FillError> {
        match self {
            Self::Boot { .. } => memory::map(memory_mib).map_err(FillError::Memory),
            Self::Restore { state, memory, .. } => {
                let memory = memory.try_clone().map_err(FillError::Memory)?;
                Ok(saved::map(memory, memory_mib, state.pair)?)
            }
        }
    }

    /// The console's port.
    pub(crate) fn serial(&self) -> Result<SerialPort, FillError> {
        match self {
            Self::Boot { .. } => SerialPort::new(),
            Self::Restore { state, .. } => SerialPort::restore(&state.serial),
        }
        .map_err(FillError::Serial)
    }

    /// Makes the devices what they were. They do not serve yet.
    pub(crate) fn devices(&self, transports: &mut [Transport]) -> Result<(), FillError> {
        let Self::Restore { state, .. } = self else { return Ok(()) };
        let (saved, now) = (state.devices.len(), transports.len());
        if saved != now {
            return Err(FillError::Devices { saved, now });
        }
        for (transport, device) in transports.iter_mut().zip(&state.devices) {
            transport.restore(device)?;
        }
        Ok(())
    }

    /// The first vCPUs, and what their guest finds in `ram`.
    pub(crate) fn vcpus(
        self,
        settings: &Settings,
        slots: &[Slot],
        ram: &GuestMemoryMmap,
        maker: &Maker,
    ) -> Result<Vec<Vcpu>, FillError> {
        match self {
            Self::Boot { kernel, initramfs } => {
                let count = Vcpus { made: settings.vcpus, most: settings.vcpus_max };
                let cmdline = boot::cmdline(slots, count, &settings.cmdline);
                let entry = boot::load(ram, kernel, initramfs, &cmdline, count.most)?;
                Ok(maker.boot(count.made, entry)?)
            }
            Self::Restore { state, written, .. } => {
                let vcpus = maker.restore(&state.vcpus, &state.machine)?;
                if let Some(first) = vcpus.first() {
                    first.map_beforehand(&saved::copy_beforehand(ram, &written));
                }
                Ok(vcpus)
            }
        }
    }
}

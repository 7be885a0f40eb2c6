//! Pauses a running VM, saves it, and lets it go on.
//!
//! ```text
//! vCPUs out of the guest -> devices finish what they began -> vCPUs are read -> chips, clock
//! -> devices -> memory is written -> state is written
//! ```
//!
//! The main thread does all of it, so nothing of the main loop happens meanwhile.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cofferdam_proto::monitor::ExitReason;
use vm_memory::GuestMemoryMmap;

use crate::bus::Bus;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::ActivateError;
use crate::devices::virtio::saved::SaveError as DeviceError;
use crate::ending::Ending;
use crate::event_loop::lock;
use crate::kvm::{Ended, KvmError, RunningVcpus};
use crate::report;
use crate::saved::{self, FileError, MemoryError, Origin, Pair, State};

/// Why a VM is not saved. It goes on then, if it ran before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaverError {
    /// It has ended.
    #[error("cannot pause the VM")]
    Ended(#[from] Ended),
    /// KVM does not tell its state.
    #[error("cannot save the VM")]
    Kvm(#[from] KvmError),
    /// Something would be lost.
    #[error("cannot save the VM")]
    Device(#[from] DeviceError),
    /// The memory cannot be written.
    #[error("cannot save the VM's memory")]
    Memory(#[from] MemoryError),
    /// The state cannot be written.
    #[error("cannot save the VM's state")]
    File(#[from] FileError),
    /// No random number for the pair.
    #[error("cannot get a random number")]
    Random(#[source] io::Error),
    /// A device does not go on, so the VM ends.
    #[error("cannot let the VM go on")]
    Resume(#[from] ActivateError),
}

/// The parts of a VM that are saved.
pub(crate) struct Saver {
    bus: Arc<Bus>,
    vcpus: Arc<Mutex<RunningVcpus>>,
    serial: Arc<Mutex<SerialPort>>,
    /// Without what can be plugged.
    ram: GuestMemoryMmap,
    origin: Origin,
    ending: Arc<Ending>,
    paused: bool,
}

impl Saver {
    /// For a VM that runs.
    pub(crate) fn new(
        bus: Arc<Bus>,
        vcpus: Arc<Mutex<RunningVcpus>>,
        serial: Arc<Mutex<SerialPort>>,
        ram: GuestMemoryMmap,
        origin: Origin,
        ending: Arc<Ending>,
    ) -> Self {
        Self { bus, vcpus, serial, ram, origin, ending, paused: false }
    }

    /// Whether it waits for [`Self::resume`].
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Pauses the VM, and writes it to `memory` and `state`. It stays paused.
    pub(crate) fn save(&mut self, memory: OwnedFd, state: OwnedFd) -> Result<(), SaverError> {
        let was_paused = self.paused;
        let saved = self.stop().and_then(|()| self.write(&File::from(memory), &File::from(state)));
        if saved.is_err() && !was_paused {
            self.resume()?;
        }
        saved
    }

    /// Pauses the VM. One that cannot be paused goes on.
    pub(crate) fn pause(&mut self) -> Result<(), SaverError> {
        let was_paused = self.paused;
        let stopped = self.stop();
        if stopped.is_err() && !was_paused {
            self.resume()?;
        }
        stopped
    }

    fn stop(&mut self) -> Result<(), SaverError> {
        if !self.paused {
            // Also when it fails, some vCPUs have stopped.
            self.paused = true;
            lock(&self.vcpus).pause()?;
            self.bus.pause();
        }
        Ok(())
    }

    fn write(&self, memory: &File, file: &File) -> Result<(), SaverError> {
        let (vcpus, machine) = lock(&self.vcpus).save()?;
        let pair = Pair::new().map_err(SaverError::Random)?;
        let state = State {
            pair,
            origin: self.origin.with_vcpus(u8::try_from(vcpus.len()).unwrap_or(u8::MAX)),
            vcpus,
            machine,
            serial: lock(&self.serial).registers(),
            devices: self.bus.save()?,
        };
        saved::write_memory(memory, &self.ram, pair)?;
        Ok(saved::write(file, &state)?)
    }

    /// Lets the VM go on. One that runs is left as it is.
    pub(crate) fn resume(&mut self) -> Result<(), SaverError> {
        if !std::mem::take(&mut self.paused) {
            return Ok(());
        }
        let resumed = self.bus.resume();
        if let Err(error) = &resumed {
            let detail = format!("a device does not go on after a pause: {}", report::chain(error));
            self.ending.finish(ExitReason::MonitorError, detail);
        }
        lock(&self.vcpus).resume();
        Ok(resumed?)
    }
}

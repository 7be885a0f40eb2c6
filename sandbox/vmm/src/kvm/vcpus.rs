//! All vCPUs of a VM: those that its guest starts with, and those that are made when it is to get more.
//!
//! A vCPU that nobody asked for does not exist: it has no thread, costs no memory, and a guest cannot wake it. One that was made and
//! that the guest did not wake, or took offline, sleeps in KVM.

use std::io;
use std::sync::Arc;

use cofferdam_proto::monitor;
use kvm_bindings::CpuId;
use vm_memory::GuestMemoryMmap;

use super::gate::{Ended, Gate};
use super::state::{Reading, VcpuState};
use super::thread::{self, NotStarted, VcpuThread};
use super::{KvmError, Machine, MachineState, Vcpu, cpuid, msrs, xsave};
use crate::boot::Entry;
use crate::bus::Bus;
use crate::ending::Ending;

/// Makes the vCPUs of one VM. Keeps the VM.
pub(crate) struct Maker {
    machine: Machine,
    cpuid: CpuId,
    most: u8,
    memory: GuestMemoryMmap,
}

impl Maker {
    pub(super) fn new(machine: Machine, most: u8, memory: GuestMemoryMmap) -> Result<Self, KvmError> {
        let cpuid = cpuid::supported(&machine.kvm)?;
        Ok(Self { machine, cpuid, most, memory })
    }

    /// Has KVM make vCPU `id`, which is not set up yet.
    fn create(&self, id: u8) -> Result<Vcpu, KvmError> {
        let cpuid = cpuid::for_vcpu(&self.cpuid, id, self.most)?;
        Vcpu::create(&self.machine.vm, id, cpuid, &self.memory)
    }

    /// The first `count` vCPUs of a VM that boots: one starts at `entry`, the others wait for it.
    pub(crate) fn boot(&self, count: u8, entry: Entry) -> Result<Vec<Vcpu>, KvmError> {
        let make = |id| {
            let vcpu = self.create(id)?;
            vcpu.set_up().map(|()| vcpu)
        };
        let vcpus = (0..count).map(make).collect::<Result<Vec<_>, KvmError>>()?;
        vcpus.first().map_or(Ok(()), |first| first.enter_at(entry))?;
        Ok(vcpus)
    }

    /// The vCPUs and the machine of a VM that goes on where another one was saved.
    pub(crate) fn restore(&self, vcpus: &[VcpuState], machine: &MachineState) -> Result<Vec<Vcpu>, KvmError> {
        let xsave = xsave::size(&self.machine.vm);
        let restore = |state: &VcpuState| {
            let cpuid = cpuid::for_vcpu(&self.cpuid, state.id, self.most)?;
            Vcpu::restore(&self.machine.vm, cpuid, &self.memory, state, xsave)
        };
        let vcpus = vcpus.iter().map(restore).collect::<Result<_, _>>()?;
        // The I/O APIC looks at the LAPICs, so those are there before it.
        machine.restore(&self.machine.vm)?;
        Ok(vcpus)
    }
}

/// Why there is no further vCPU.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VcpusError {
    /// More than the guest was told of.
    #[error("the guest can have {most} vCPUs at most, not {count}")]
    TooMany {
        /// Asked for.
        count: u8,
        /// The bound.
        most: u8,
    },
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The node refused.
    #[error("cannot start a vCPU's thread")]
    Thread(#[source] io::Error),
}

/// The vCPUs that were let run.
pub(crate) struct RunningVcpus {
    maker: Maker,
    bus: Arc<Bus>,
    ending: Arc<Ending>,
    gate: Arc<Gate>,
    threads: Vec<VcpuThread>,
    /// The next one by number, which KVM has made and which could not be set up or started: KVM makes none twice.
    unused: Option<Vcpu>,
    /// Of each thread, in bytes.
    stack: usize,
}

impl RunningVcpus {
    /// None yet; [`VcpuThread::prepare`] is done here.
    pub(crate) fn new(maker: Maker, bus: Arc<Bus>, ending: Arc<Ending>) -> io::Result<Self> {
        VcpuThread::prepare()?;
        let (gate, threads, stack) = (Arc::default(), Vec::new(), thread::STACK);
        Ok(Self { maker, bus, ending, gate, threads, unused: None, stack })
    }

    /// Lets `vcpu` run, the next one by number; [`Self::make`] tries again with one that could not be started.
    pub(crate) fn run(&mut self, vcpu: Vcpu) -> io::Result<()> {
        let (bus, ending, gate) = (self.bus.clone(), self.ending.clone(), self.gate.clone());
        match VcpuThread::start(vcpu, self.stack, bus, ending, gate) {
            Ok(thread) => self.threads.push(thread),
            Err(NotStarted { vcpu, source }) => {
                self.unused = Some(*vcpu);
                return Err(source);
            }
        }
        Ok(())
    }

    /// How many there are, and can be.
    pub(crate) fn count(&self) -> monitor::Vcpus {
        monitor::Vcpus { most: self.maker.most, made: u8::try_from(self.threads.len()).unwrap_or(u8::MAX) }
    }

    /// Makes those that are missing to `count`, and lets them wait for the guest. What was made before a failure stays, asleep, and the
    /// next call goes on from there.
    pub(crate) fn make(&mut self, count: u8) -> Result<(), VcpusError> {
        let monitor::Vcpus { most, made } = self.count();
        if count > most {
            return Err(VcpusError::TooMany { count, most });
        }
        for id in made..count {
            let vcpu = self.unused.take().map_or_else(|| self.maker.create(id), Ok)?;
            if let Err(error) = vcpu.set_up() {
                self.unused = Some(vcpu);
                return Err(error.into());
            }
            self.run(vcpu).map_err(VcpusError::Thread)?;
        }
        Ok(())
    }

    /// Brings all of them out of the guest, and answers when no one runs any more. They wait for
    /// [`Self::resume`].
    pub(crate) fn pause(&self) -> Result<(), Ended> {
        self.gate.close();
        self.threads.iter().for_each(VcpuThread::kick);
        self.gate.wait_for(self.threads.len())
    }

    /// Reads the state of all of them and of the machine; they are paused.
    pub(crate) fn save(&self) -> Result<(Vec<VcpuState>, MachineState), KvmError> {
        let Machine { kvm, vm } = &self.maker.machine;
        let reading = Reading { msrs: msrs::list(kvm)?, xsave: xsave::size(vm) };
        let vcpus = self.gate.save(self.threads.len(), reading)?;
        Ok((vcpus, MachineState::save(vm)?))
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        self.gate.open();
    }

    /// Brings all of them out of the guest, for good, then lets the devices finish what they began. The VM's end must be told before.
    pub(crate) fn stop(&mut self) {
        self.gate.end();
        self.threads.iter().for_each(VcpuThread::kick);
        self.threads.drain(..).for_each(VcpuThread::join);
        self.bus.shut_down();
    }
}

#[cfg(test)]
mod tests;

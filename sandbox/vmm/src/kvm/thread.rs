#![allow(unsafe_code)] // a vCPU is kicked through its shared page and a signal
//! A vCPU's thread, and how it is brought out of the guest.

use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::Vcpu;
use super::gate::Gate;
use crate::bus::Bus;
use crate::ending::Ending;
use crate::lock_in::{ThreadKind, start_thread};

/// Stack of the thread; the deepest it goes is the activation of a device.
pub(super) const STACK: usize = 256 << 10;

/// A running vCPU.
pub(crate) struct VcpuThread {
    /// `immediate_exit` in the page that the vCPU shares with KVM.
    immediate_exit: AtomicPtr<u8>,
    /// Gives the vCPU back, so that the page above is mapped until the thread is joined.
    thread: JoinHandle<Option<Vcpu>>,
}

/// There is no thread for a vCPU.
pub(super) struct NotStarted {
    /// It, as it was.
    pub(super) vcpu: Box<Vcpu>,
    /// Why.
    pub(super) source: io::Error,
}

/// The signal only interrupts KVM_RUN; there is nothing to do in it.
extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl VcpuThread {
    /// Installs the signal's handler; once, before any thread starts.
    pub(crate) fn prepare() -> io::Result<()> {
        register_signal_handler(SIGRTMIN(), on_signal).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    /// Lets `vcpu` run.
    pub(super) fn start(
        mut vcpu: Vcpu,
        stack: usize,
        bus: Arc<Bus>,
        ending: Arc<Ending>,
        gate: Arc<Gate>,
    ) -> Result<Self, NotStarted> {
        let immediate_exit = AtomicPtr::new(&raw mut vcpu.fd.get_kvm_run().immediate_exit);
        let name = format!("vcpu{}", vcpu.id());
        // The vCPU follows its thread, since one that cannot be started drops all that it was to have.
        let (give, given) = mpsc::sync_channel::<Vcpu>(1);
        let body = move || {
            let mut vcpu = given.recv().ok()?;
            vcpu.run(&bus, &ending, &gate);
            Some(vcpu)
        };
        let not_started = |vcpu, source| NotStarted { vcpu: Box::new(vcpu), source };
        let thread = match start_thread(ThreadKind::Vcpu, name, stack, body) {
            Ok(thread) => thread,
            Err(error) => return Err(not_started(vcpu, error)),
        };
        match give.send(vcpu) {
            Ok(()) => Ok(Self { immediate_exit, thread }),
            Err(mpsc::SendError(vcpu)) => Err(not_started(vcpu, io::Error::other("the thread has ended"))),
        }
    }

    /// Brings the vCPU out of the guest. The VM's end must be told before, or the gate be closed.
    pub(crate) fn kick(&self) {
        // SAFETY: the byte is in a mapping that the vCPU owns, and the vCPU lives in the thread's result until
        // `join`, which takes `self`. Only this store and KVM touch it, so an atomic access is enough.
        let flag = unsafe { AtomicU8::from_ptr(self.immediate_exit.load(Ordering::Relaxed)) };
        flag.store(1, Ordering::SeqCst);
        if let Err(error) = self.thread.kill(SIGRTMIN()) {
            complain!("cannot signal a vCPU: {error}");
        }
    }

    /// Waits for the thread after [`Self::kick`].
    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            complain!("a vCPU's thread panicked");
        }
    }
}

//! Where all vCPUs of a VM stop together, are read, and go on.
//!
//! ```text
//!            pause            save                resume
//! running ----------> halted ------> each vCPU ----------> running
//!                       |            reads itself
//!                       +--- end ---> the threads end
//! ```
//!
//! A vCPU comes here when KVM_RUN was interrupted: what it had begun with a device is finished
//! then. Its state is read only when all have stopped, since one that runs may still wake another
//! one.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::KvmError;
use super::state::{Reading, VcpuState};
use crate::event_loop::lock;

/// What a vCPU that waits is asked for.
pub(super) trait Halted {
    /// Reads the vCPU's state.
    fn save(&self, reading: &Reading) -> Result<VcpuState, KvmError>;
    /// The vCPU runs again from now on.
    fn go_on(&mut self);
}

/// The gate of one VM.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    order: Order,
    /// vCPUs that wait.
    halted: usize,
    /// vCPUs whose threads have ended.
    gone: usize,
    saved: BTreeMap<u8, Result<VcpuState, KvmError>>,
}

#[derive(Default, Clone)]
enum Order {
    #[default]
    Run,
    Halt,
    Save(Arc<Reading>),
    End,
}

/// The VM ended before all of its vCPUs had stopped.
#[derive(Debug, thiserror::Error)]
#[error("the VM ended meanwhile")]
pub(crate) struct Ended;

impl Gate {
    /// Whether vCPUs run.
    pub(super) fn is_open(&self) -> bool {
        matches!(lock(&self.state).order, Order::Run)
    }

    /// Closes the gate: each vCPU that comes by stops. The caller brings them out of the guest,
    /// then calls [`Self::wait_for`].
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        if matches!(state.order, Order::Run) {
            state.order = Order::Halt;
        }
    }

    /// Waits until all `count` vCPUs have stopped.
    pub(super) fn wait_for(&self, count: usize) -> Result<(), Ended> {
        let state = self.wait(lock(&self.state), |state| state.halted < count && state.gone == 0);
        if state.halted < count { Err(Ended) } else { Ok(()) }
    }

    /// Has all `count` vCPUs, which have stopped, read their state; in the order of their numbers.
    pub(super) fn save(&self, count: usize, reading: Reading) -> Result<Vec<VcpuState>, KvmError> {
        let mut state = lock(&self.state);
        if !matches!(state.order, Order::Halt) {
            return Err(KvmError::Ended);
        }
        state.order = Order::Save(Arc::new(reading));
        self.changed.notify_all();
        let mut state = self.wait(state, |state| state.saved.len() < count && state.gone == 0);
        let saved = std::mem::take(&mut state.saved);
        if saved.len() < count {
            return Err(KvmError::Ended);
        }
        if matches!(state.order, Order::Save(_)) {
            state.order = Order::Halt;
        }
        saved.into_values().collect()
    }

    /// Lets all vCPUs go on.
    pub(super) fn open(&self) {
        let mut state = lock(&self.state);
        if !matches!(state.order, Order::End) {
            state.order = Order::Run;
        }
        self.changed.notify_all();
    }

    /// Sends all vCPUs that wait to their end, and those that come later.
    pub(super) fn end(&self) {
        lock(&self.state).order = Order::End;
        self.changed.notify_all();
    }

    /// The calling vCPU's thread ends.
    pub(super) fn leave(&self) {
        lock(&self.state).gone += 1;
        self.changed.notify_all();
    }

    /// The vCPU `id` waits here until the gate opens, and does meanwhile what it is asked for.
    /// False when it is to end.
    pub(super) fn pass(&self, id: u8, vcpu: &mut impl Halted) -> bool {
        let mut state = lock(&self.state);
        state.halted += 1;
        self.changed.notify_all();
        loop {
            match state.order.clone() {
                Order::Run => {
                    // Before the lock is given back: a vCPU that is to stop again must not miss it.
                    vcpu.go_on();
                    state.halted -= 1;
                    return true;
                }
                Order::End => {
                    state.halted -= 1;
                    return false;
                }
                Order::Save(reading) if !state.saved.contains_key(&id) => {
                    drop(state);
                    let saved = vcpu.save(&reading);
                    state = lock(&self.state);
                    state.saved.insert(id, saved);
                    self.changed.notify_all();
                }
                Order::Halt | Order::Save(_) => state = self.wait_once(state),
            }
        }
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, more: impl Fn(&State) -> bool) -> MutexGuard<'s, State> {
        self.changed.wait_while(state, |state| more(state)).unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_once<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

#![allow(unsafe_code)] // KVM fills and reads a buffer whose size it told before
//! A vCPU's extended state, whose size depends on the processor (`KVM_CAP_XSAVE2`).

use std::mem::offset_of;

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::{KvmError, step};

/// Bytes of the state without what came later, and in a kernel that knows of nothing else.
const LEGACY: usize = size_of::<[u32; 1024]>();

/// Bytes that the state of the vCPUs of `vm` takes.
pub(super) fn size(vm: &VmFd) -> usize {
    // Kernels before 5.17 answer 0.
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(LEGACY)
}

/// Reads the state of `size` bytes, as [`size`] told it.
pub(super) fn read(fd: &VcpuFd, size: usize) -> Result<Vec<u8>, KvmError> {
    if size <= LEGACY {
        let state = fd.get_xsave().map_err(step("read a vCPU's extended state"))?;
        return Ok(state.region.iter().flat_map(|word| word.to_ne_bytes()).collect());
    }
    let mut state = with_room(size)?;
    // SAFETY: `state` has room for `size` bytes, which is what this VM's KVM writes.
    unsafe { fd.get_xsave2(&mut state) }.map_err(step("read a vCPU's extended state"))?;
    let head = state.as_fam_struct_ref().xsave.region.iter();
    let mut bytes: Vec<u8> = head.chain(state.as_slice()).flat_map(|word| word.to_ne_bytes()).collect();
    bytes.truncate(size);
    Ok(bytes)
}

/// Sets the state to `bytes`, of which there must be as many as [`size`] tells.
pub(super) fn set(fd: &VcpuFd, bytes: &[u8], size: usize) -> Result<(), KvmError> {
    if bytes.len() != size {
        return Err(KvmError::ExtendedState { saved: bytes.len(), now: size });
    }
    let mut state = with_room(size)?;
    let (head, tail) = bytes.split_at(LEGACY);
    let words = |bytes: &[u8]| -> Vec<u32> {
        let words = bytes.chunks_exact(size_of::<u32>());
        words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect()
    };
    // SAFETY: neither the length of the flexible part nor its content before the length changes.
    unsafe { state.as_mut_fam_struct() }.xsave.region.copy_from_slice(&words(head));
    let tail = words(tail);
    state.as_mut_slice()[..tail.len()].copy_from_slice(&tail);
    // SAFETY: `state` has room for `size` bytes, which is what this VM's KVM reads.
    unsafe { fd.set_xsave2(&state) }.map_err(step("set a vCPU's extended state"))
}

fn with_room(size: usize) -> Result<Xsave, KvmError> {
    const { assert!(offset_of!(kvm_xsave, extra) == LEGACY) };
    let extra = size.saturating_sub(LEGACY).div_ceil(size_of::<u32>());
    Xsave::new(extra).map_err(|_| KvmError::Lacks("room for a vCPU's extended state"))
}

#![allow(unsafe_code)] // KVM_PRE_FAULT_MEMORY has no wrapper in kvm-ioctls
//! Maps guest memory before the guest asks for it (Linux, Documentation/virt/kvm/api.rst,
//! `KVM_PRE_FAULT_MEMORY`).

use kvm_bindings::{KVMIO, kvm_pre_fault_memory};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

ioctl_iowr_nr!(PRE_FAULT_MEMORY, KVMIO, 0xd5, kvm_pre_fault_memory);

/// Has KVM map `pages`, so that the guest does not stop at them. Whatever is not mapped is mapped
/// when the guest needs it: kernels before 6.11 do not know how, and then nothing is.
pub(super) fn map(vcpu: &VcpuFd, pages: &[(GuestAddress, u64)]) {
    for (address, length) in pages {
        let mut wanted = kvm_pre_fault_memory { gpa: address.0, size: *length, ..Default::default() };
        while wanted.size > 0 {
            let before = wanted.size;
            // SAFETY: KVM reads and writes one structure of this type, and maps only what the VM has.
            let done = unsafe { ioctl_with_mut_ref(vcpu, PRE_FAULT_MEMORY(), &mut wanted) };
            // A signal stops it after a part, which it takes off what is wanted.
            if done < 0 && wanted.size == before {
                return;
            }
        }
    }
}

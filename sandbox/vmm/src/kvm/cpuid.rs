//! What a guest's processors say of themselves: what KVM supports, less what a pod has no use for, with a topology of
//! one package of single-threaded cores.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, step};

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const EXT_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT_ECX_SVM: u32 = 1 << 2;
/// "Extended topology" and its second version, with one subleaf per level.
const TOPOLOGY_LEAVES: [u32; 2] = [0xb, 0x1f];
/// Subleaf that ends the levels.
const LAST_LEVEL: u32 = 2;
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// KVM's list, prepared for all vCPUs.
pub(super) fn supported(kvm: &Kvm) -> Result<CpuId, KvmError> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("tell the supported CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        restrict(entry, deadline);
    }
    Ok(cpuid)
}

/// Nested virtualization and performance counters are not for pods.
fn restrict(entry: &mut kvm_cpuid_entry2, deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ecx = entry.ecx & !ECX_VMX | ECX_HYPERVISOR;
            if deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
        }
        0x8000_0001 => entry.ecx &= !EXT_ECX_SVM,
        0xa | 0x8000_000a | 0x8000_0022 => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        _ => {}
    }
}

/// `supported` for the vCPU with APIC id `id` of `count`.
pub(super) fn for_vcpu(supported: &CpuId, id: u8, count: u8) -> Result<CpuId, KvmError> {
    let mut cpuid = with_topology_levels(supported)?;
    for entry in cpuid.as_mut_slice() {
        place(entry, u32::from(id), u32::from(count));
    }
    Ok(cpuid)
}

/// Adds the levels of the topology that are missing: from Linux 6.2 on KVM lists the first one only, the threads of a core. Without
/// the second each core would be a package of its own to the guest. The last one ends the list.
fn with_topology_levels(supported: &CpuId) -> Result<CpuId, KvmError> {
    let mut entries = supported.as_slice().to_vec();
    for leaf in TOPOLOGY_LEAVES {
        let Some(first) = supported.as_slice().iter().find(|entry| entry.function == leaf) else { continue };
        for index in 0..=LAST_LEVEL {
            if !supported.as_slice().iter().any(|entry| entry.function == leaf && entry.index == index) {
                entries.push(kvm_cpuid_entry2 { index, ..*first });
            }
        }
    }
    CpuId::from_entries(&entries).map_err(|_| KvmError::TooManyCpuidEntries { count: entries.len() })
}

/// Bits that an APIC id of `count` cores needs.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn place(entry: &mut kvm_cpuid_entry2, id: u32, count: u32) {
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
            entry.edx = if count > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
        }
        // Caches: the last level is shared by all, the others by one core's single thread.
        0x4 if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14 | (count - 1) << 26;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | shared << 14;
        }
        leaf if TOPOLOGY_LEAVES.contains(&leaf) => {
            let (bits, units, kind) = match entry.index {
                0 => (0, 1, LEVEL_THREAD),
                1 => (id_bits(count), count, LEVEL_CORE),
                _ => (0, 0, 0),
            };
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (bits, units, entry.index | kind, id);
        }
        0x8000_0001 => {
            entry.ecx = if count > 1 { entry.ecx | EXT_ECX_CMP_LEGACY } else { entry.ecx & !EXT_ECX_CMP_LEGACY };
        }
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (count - 1) | id_bits(count) << 12,
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

/// XCR0 with everything that the guest may enable, if it has XSAVE at all.
pub(super) fn xcr0(cpuid: &CpuId) -> Option<u64> {
    let entry = cpuid.as_slice().iter().find(|entry| entry.function == 0xd && entry.index == 0)?;
    let mask = u64::from(entry.edx) << 32 | u64::from(entry.eax);
    (mask & 1 != 0).then_some(mask)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            ..Default::default()
        }
    }

    fn list() -> CpuId {
        let level_1_data = 1 | 1 << 5 | 0xffff_c000;
        let level_3 = 3 | 3 << 5 | 0xffff_c000;
        let mut entries = vec![
            entry(1, 0, 0),
            entry(4, 0, level_1_data),
            entry(4, 3, level_3),
            entry(0xa, 0, 5),
            entry(0xb, 0, 9),
            entry(0xb, 1, 9),
            entry(0xb, 2, 9),
            entry(0xd, 0, 7),
            entry(0x8000_0001, 0, 0),
            entry(0x8000_0008, 0, 0),
            entry(0x8000_001e, 0, 0),
        ];
        entries[7].edx = 0;
        CpuId::from_entries(&entries).unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn every_vcpu_knows_its_place() {
        let base = list();
        for (count, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (32, 5)] {
            for id in 0..count {
                let cpuid = for_vcpu(&base, id, count).unwrap();
                let (id, count) = (u32::from(id), u32::from(count));
                let first = find(&cpuid, 1, 0);
                assert_eq!(
                    (first.ebx >> 24, first.ebx >> 16 & 0xff, first.edx >> 28 & 1),
                    (id, count, u32::from(count > 1))
                );
                assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
                assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, count - 1);
                let cores = find(&cpuid, 0xb, 1);
                assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (bits, count, 0x201, id));
                assert_eq!(find(&cpuid, 0xb, 2).ecx, 2, "the list ends");
                assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx & 0xff, count - 1);
                assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, id);
            }
        }
    }

    /// The list as Linux 6.2 and later give it.
    #[test]
    fn there_is_one_package_whatever_levels_kvm_lists() {
        let base = CpuId::from_entries(&[entry(1, 0, 0), entry(0xb, 0, 9), entry(0x1f, 0, 9)]).unwrap();
        for (count, bits) in [(1, 0), (2, 1), (8, 3)] {
            let cpuid = for_vcpu(&base, count - 1, count).unwrap();
            let (id, count) = (u32::from(count) - 1, u32::from(count));
            for leaf in [0xb, 0x1f] {
                let level = |index| {
                    let level = find(&cpuid, leaf, index);
                    (level.eax, level.ebx, level.ecx, level.edx, level.flags)
                };
                assert_eq!(level(0), (0, 1, 0x100, id, KVM_CPUID_FLAG_SIGNIFCANT_INDEX), "threads of a core");
                assert_eq!(level(1), (bits, count, 0x201, id, KVM_CPUID_FLAG_SIGNIFCANT_INDEX), "cores of the package");
                assert_eq!(level(2), (0, 0, 2, id, KVM_CPUID_FLAG_SIGNIFCANT_INDEX), "the end");
            }
            assert_eq!(cpuid.as_slice().len(), 7);
        }
        let without = CpuId::from_entries(&[entry(1, 0, 0)]).unwrap();
        assert_eq!(for_vcpu(&without, 0, 2).unwrap().as_slice().len(), 1, "what KVM has not is not made up");
    }

    #[test]
    fn pods_see_no_nested_virtualization_and_no_counters() {
        let mut cpuid = list();
        cpuid.as_mut_slice().iter_mut().for_each(|entry| restrict(entry, true));
        let first = find(&cpuid, 1, 0).ecx;
        assert_eq!(first & ECX_VMX, 0);
        assert_eq!(first & ECX_HYPERVISOR, ECX_HYPERVISOR);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & EXT_ECX_SVM, 0);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    }

    #[test]
    fn xcr0_is_all_that_is_offered() {
        assert_eq!(xcr0(&list()), Some(7));
        assert_eq!(xcr0(&CpuId::from_entries(&[entry(1, 0, 0)]).unwrap()), None);
    }
}

//! The model-specific registers of a vCPU: which there are, and how all of them are read and set.
//!
//! KVM lists registers that some processors refuse, and stops at the first refusal. What cannot be
//! read is left out. What cannot be set must have the value already, or the vCPU is not restored.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{KvmError, step};

/// Registers in one call; KVM takes no more.
const AT_ONCE: usize = 256;
/// The timer's deadline, which KVM takes only once the time itself and the LAPIC are set.
const TSC_DEADLINE: u32 = 0x6e0;
/// The time stamp counter.
const TSC: u32 = 0x10;
/// Cycles that no processor does in the second in which KVM takes a value for one of another vCPU.
const FAR: u64 = 1 << 42;
/// Memory types, of which KVM's list does not tell: default, fixed ranges, variable ranges.
const MEMORY_TYPES: [u32; 12] = [0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const VARIABLE_RANGES: std::ops::Range<u32> = 0x200..0x210;

/// The numbers of all registers that a guest may have changed, in the order in which they are set.
pub(super) fn list(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let known = kvm.get_msr_index_list().map_err(step("list its MSRs"))?;
    Ok(in_order(known.as_slice()))
}

fn in_order(known: &[u32]) -> Vec<u32> {
    let more = MEMORY_TYPES.into_iter().chain(VARIABLE_RANGES).filter(|index| !known.contains(index));
    let mut list: Vec<u32> = known.iter().copied().chain(more).filter(|index| *index != TSC_DEADLINE).collect();
    list.push(TSC_DEADLINE);
    list
}

/// Reads those of `list` that this vCPU has: number and value each.
pub(super) fn read(fd: &VcpuFd, list: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut found = Vec::with_capacity(list.len());
    read_with(list, &mut found, |entries| fd.get_msrs(entries).map_err(step("read a vCPU's MSRs")))?;
    Ok(found)
}

fn read_with(
    list: &[u32],
    found: &mut Vec<(u32, u64)>,
    mut get: impl FnMut(&mut Msrs) -> Result<usize, KvmError>,
) -> Result<(), KvmError> {
    let mut rest = list;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(AT_ONCE)];
        let mut entries = entries(some.iter().map(|index| (*index, 0)))?;
        let done = get(&mut entries)?.min(some.len());
        found.extend(entries.as_slice()[..done].iter().map(|entry| (entry.index, entry.data)));
        // The one after the last that was read is refused.
        rest = &rest[done + usize::from(done < some.len())..];
    }
    Ok(())
}

/// Sets all of `values`.
pub(super) fn set(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    let mut rest = values;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(AT_ONCE)];
        let done = fd.set_msrs(&entries(some.iter().copied())?).map_err(step("set a vCPU's MSRs"))?.min(some.len());
        rest = &rest[done..];
        if done == some.len() {
            continue;
        }
        let (index, saved) = rest[0];
        let now = read(fd, &[index])?.first().map(|(_, value)| *value);
        if now != Some(saved) && !(now.is_none() && saved == 0) {
            return Err(KvmError::Msr { index, saved, now });
        }
        rest = &rest[1..];
    }
    Ok(())
}

/// Sets the time stamp counter of a VM's first vCPU to that of `values`; the others follow it, as
/// KVM takes their values, which are less than a second later, for its own.
///
/// Before Linux 6.7 KVM does the same to the first vCPU of a VM that was saved within its first
/// second, and so sets its clock back to that of the new VM. A value that is far off in between
/// helps.
pub(super) fn set_time(fd: &VcpuFd, values: &[(u32, u64)]) -> Result<(), KvmError> {
    let Some(saved) = values.iter().find(|(index, _)| *index == TSC) else { return Ok(()) };
    let far = (TSC, saved.1.wrapping_add(FAR));
    set(fd, &[*saved])?;
    if read(fd, &[TSC])?.first().is_some_and(|(_, now)| *now < saved.1) {
        set(fd, &[far])?;
        set(fd, &[*saved])?;
    }
    Ok(())
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, KvmError> {
    let entries: Vec<_> = values.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    // At most AT_ONCE of them, which always fit.
    Msrs::from_entries(&entries).map_err(|_| KvmError::Lacks("room for a list of MSRs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_set_last_and_nothing_twice() {
        let list = in_order(&[TSC_DEADLINE, 0x10, 0x277, 0x2ff]);
        assert_eq!((list[0], *list.last().unwrap()), (0x10, TSC_DEADLINE));
        let mut sorted = list.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), list.len());
        assert!(list.contains(&0x250) && list.contains(&0x20f));
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let list: Vec<u32> = (0..700).collect();
        let refused = |index: u32| index == 0 || index == 255 || index == 256 || index == 699 || index % 50 == 7;
        let mut found = Vec::new();
        let mut calls = 0;
        read_with(&list, &mut found, |entries| {
            calls += 1;
            let mut done = 0;
            for entry in entries.as_mut_slice() {
                if refused(entry.index) {
                    break;
                }
                entry.data = u64::from(entry.index) + 1;
                done += 1;
            }
            Ok(done)
        })
        .unwrap();
        let expected: Vec<(u32, u64)> =
            list.iter().filter(|index| !refused(**index)).map(|index| (*index, u64::from(*index) + 1)).collect();
        assert_eq!(found, expected);
        assert!(calls < 30, "{calls} calls");
    }
}

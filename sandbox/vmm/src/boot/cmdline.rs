//! The kernel command line.

use cofferdam_proto::monitor::Vcpus;

use crate::devices::virtio::mmio::Slot;

/// Linux's COMMAND_LINE_SIZE, without the terminating zero.
pub(crate) const MAX_CMDLINE: usize = 2047;

/// The monitor's own part:
/// - the serial port is the console, for a crash; `quiet`, since each byte is an exit;
/// - a panic or reboot resets by the keyboard controller, which ends the VM;
/// - no ACPI, hence the MP table and the devices by command line;
/// - the TSC of a VM needs no watchdog (a timer that wakes an idle guest);
/// - an idle guest is left alone: no look for memory to compact twice a second, no counting of pages every second;
/// - memory that comes later is used at once, three quarters of it for what can be moved, so that most of it can go again;
/// - nothing probes hardware that is not there, nothing tests itself, and no driver makes interfaces beside the pod's.
const BASE: &str = "console=ttyS0 quiet panic=-1 reboot=k acpi=off tsc=reliable no_timer_check 8250.nr_uarts=1 \
    i8042.noaux i8042.nomux i8042.dumbkbd cryptomgr.notests random.trust_cpu=on rcupdate.rcu_expedited=1 \
    rcupdate.rcu_normal_after_boot=1 sysctl.vm.compaction_proactiveness=0 sysctl.vm.stat_interval=600 \
    memhp_default_state=online memory_hotplug.online_policy=auto-movable ifb.numifbs=0 \
    dummy.numdummies=0";

/// The whole command line; `more` is the launcher's part and comes last, so that it may override.
///
/// The MP table tells of all `vcpus` that can come, of which the kernel brings up those that are there.
pub(crate) fn cmdline(slots: &[Slot], vcpus: Vcpus, more: &str) -> String {
    let mut line = BASE.to_owned();
    if vcpus.made < vcpus.most {
        line.push_str(&format!(" maxcpus={}", vcpus.made));
    }
    for slot in slots {
        line.push_str(&format!(" virtio_mmio.device=4K@{:#x}:{}", slot.address, slot.irq));
    }
    if !more.is_empty() {
        line.push(' ');
        line.push_str(more);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_come_in_order_and_the_launcher_last() {
        let line = cmdline(&[Slot::new(0).unwrap(), Slot::new(1).unwrap()], Vcpus { most: 2, made: 2 }, "a=b c");
        assert!(line.starts_with("console=ttyS0 "));
        assert!(line.ends_with(" virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 a=b c"));
        assert!(!line.contains("  "), "a continued line leaves no double blanks");
        assert!(!line.contains("maxcpus"));
    }

    #[test]
    fn the_kernel_brings_up_those_that_are_there() {
        let line = cmdline(&[], Vcpus { most: 8, made: 3 }, "maxcpus=1");
        assert!(line.ends_with(" maxcpus=3 maxcpus=1"), "{line}");
    }
}

//! What an agent says of its containers, within what can be true: a guest may say anything.

use cofferdam_proto::agent::{CgroupUsage, ContainerStatsReply, Pressure, Stall};
use cofferdam_proto::usage::MAX_DEVICES;

/// No counter passes this: sums of a node's never overflow.
const MOST: u64 = 1 << 53;
/// Most processes, open files and sockets of a container: what a kernel can have.
const MOST_TASKS: u64 = 1 << 22;

/// What a container of a pod can have used at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// CPU time, nanoseconds.
    pub(super) cpu_nanos: u64,
    /// Memory, bytes.
    pub(super) memory: u64,
    /// Writable layer, bytes.
    pub(super) disk: u64,
}

impl Bounds {
    /// Of a container on the node itself: the agent is ours, and the kernel's numbers are true.
    pub(super) const NODE: Self = Self { cpu_nanos: MOST, memory: MOST, disk: MOST };

    /// Makes `reply` one that can be true.
    pub(super) fn apply(&self, reply: &mut ContainerStatsReply) {
        let usage = reply.usage.get_or_insert_default();
        self.usage(usage);
        reply.disk_bytes = reply.disk_bytes.min(self.disk);
        reply.writable_bytes = reply.writable_bytes.min(self.disk);
        reply.disk_inodes = reply.disk_inodes.min(MOST);
        reply.writable_inodes = reply.writable_inodes.min(MOST);
        reply.disk_free_inodes = reply.disk_free_inodes.min(reply.disk_inodes);
        if let Some(p) = &mut reply.processes {
            for value in [&mut p.processes, &mut p.open_files, &mut p.sockets] {
                *value = (*value).min(MOST_TASKS);
            }
            p.open_files_limit = p.open_files_limit.min(MOST);
        }
    }

    fn usage(&self, u: &mut CgroupUsage) {
        for value in [&mut u.cpu_nanos, &mut u.cpu_user_nanos, &mut u.cpu_system_nanos] {
            *value = (*value).min(self.cpu_nanos);
        }
        for value in [
            &mut u.memory_bytes,
            &mut u.memory_peak_bytes,
            &mut u.memory_anon_bytes,
            &mut u.memory_file_bytes,
            &mut u.memory_inactive_file_bytes,
            &mut u.memory_mapped_bytes,
            &mut u.memory_kernel_bytes,
        ] {
            *value = (*value).min(self.memory);
        }
        for value in [
            &mut u.cpu_periods,
            &mut u.cpu_throttled_periods,
            &mut u.cpu_throttled_nanos,
            &mut u.memory_limit_bytes,
            &mut u.memory_limit_hits,
            &mut u.oom_kills,
            &mut u.page_faults,
            &mut u.major_page_faults,
            &mut u.swap_bytes,
            &mut u.swap_limit_bytes,
        ] {
            *value = (*value).min(MOST);
        }
        u.tasks = u.tasks.min(MOST_TASKS);
        u.tasks_limit = u.tasks_limit.min(MOST_TASKS);
        u.io.truncate(MAX_DEVICES);
        // One series for each device: a second one of the same name would make the kubelet's whole page invalid.
        u.io.sort_by_key(|d| (d.major, d.minor));
        u.io.dedup_by_key(|d| (d.major, d.minor));
        for d in &mut u.io {
            for value in [&mut d.read_bytes, &mut d.written_bytes, &mut d.reads, &mut d.writes] {
                *value = (*value).min(MOST);
            }
        }
        for pressure in [&mut u.cpu_pressure, &mut u.memory_pressure, &mut u.io_pressure].into_iter().flatten() {
            percents(pressure);
        }
    }
}

fn percents(pressure: &mut Pressure) {
    for Stall { avg10, avg60, avg300, total_micros } in [&mut pressure.some, &mut pressure.full].into_iter().flatten() {
        for value in [avg10, avg60, avg300] {
            *value = if value.is_finite() { value.clamp(0.0, 100.0) } else { 0.0 };
        }
        *total_micros = (*total_micros).min(MOST / 1000);
    }
}

#[cfg(test)]
mod tests {
    use cofferdam_proto::agent::{DeviceIo, ProcessStats};

    use super::*;

    #[test]
    fn a_guest_that_says_too_much_is_not_believed() {
        let stall = Some(Stall { avg10: f64::NAN, avg60: -1.0, avg300: 1e300, total_micros: u64::MAX });
        let device = DeviceIo { major: 8, minor: 0, read_bytes: u64::MAX, ..Default::default() };
        let mut reply = ContainerStatsReply {
            usage: Some(CgroupUsage {
                cpu_nanos: u64::MAX,
                memory_bytes: u64::MAX,
                page_faults: u64::MAX,
                tasks: u64::MAX,
                io: vec![device; 100_000],
                io_pressure: Some(Pressure { some: stall, full: stall }),
                ..Default::default()
            }),
            writable_bytes: u64::MAX,
            disk_free_inodes: u64::MAX,
            disk_inodes: 10,
            processes: Some(ProcessStats { sockets: u64::MAX, ..Default::default() }),
            ..Default::default()
        };
        Bounds { cpu_nanos: 5, memory: 6, disk: 7 }.apply(&mut reply);
        let usage = reply.usage.unwrap();
        assert_eq!((usage.cpu_nanos, usage.memory_bytes, reply.writable_bytes), (5, 6, 7));
        assert_eq!((usage.page_faults, usage.tasks, reply.disk_free_inodes), (MOST, MOST_TASKS, 10));
        assert_eq!(usage.io, [DeviceIo { read_bytes: MOST, ..device }]);
        assert_eq!(reply.processes.unwrap().sockets, MOST_TASKS);
        let full = usage.io_pressure.unwrap().full.unwrap();
        assert_eq!((full.avg10, full.avg60, full.avg300), (0.0, 0.0, 100.0));
    }

    #[test]
    fn what_can_be_true_stays() {
        let usage = CgroupUsage { cpu_nanos: 4, memory_bytes: 5, tasks: 3, ..Default::default() };
        let before = ContainerStatsReply { usage: Some(usage), writable_bytes: 7, ..Default::default() };
        let mut after = before.clone();
        Bounds { cpu_nanos: 5, memory: 6, disk: 7 }.apply(&mut after);
        assert_eq!(after, before);
        Bounds::NODE.apply(&mut after);
        assert_eq!(after, before);
    }
}

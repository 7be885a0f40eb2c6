//! What a cgroup (version 2) uses, from its files: read by the agent for containers and by the daemon for pods.
//!
//! A file that is not there (its controller is off, the kernel is older) or says something else counts as 0.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::agent::{CgroupUsage, DeviceIo, Pressure, Stall};

/// Longest file that is read. `memory.stat` is 2 KiB, `io.stat` has a line for each device.
const MAX_FILE: u64 = 64 << 10;
/// Most devices that are told.
pub const MAX_DEVICES: usize = 16;

/// Reads the cgroup at `dir`. Blocks for moments: the files are the kernel's.
#[must_use]
pub fn read(dir: &Path) -> CgroupUsage {
    parse(|name| {
        let mut text = String::new();
        let read = File::open(dir.join(name)).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        read.map(|_| text).unwrap_or_default()
    })
}

/// As [`read`], from wherever `file` gets a file's content.
#[must_use]
pub fn parse(file: impl Fn(&str) -> String) -> CgroupUsage {
    let (cpu, stat, events) = (file("cpu.stat"), file("memory.stat"), file("memory.events"));
    let nanos = |name: &str| field(&cpu, name).saturating_mul(1000);
    CgroupUsage {
        cpu_nanos: nanos("usage_usec"),
        cpu_user_nanos: nanos("user_usec"),
        cpu_system_nanos: nanos("system_usec"),
        cpu_periods: field(&cpu, "nr_periods"),
        cpu_throttled_periods: field(&cpu, "nr_throttled"),
        cpu_throttled_nanos: nanos("throttled_usec"),
        memory_bytes: number(&file("memory.current")),
        memory_peak_bytes: number(&file("memory.peak")),
        memory_limit_bytes: number(&file("memory.max")),
        memory_anon_bytes: field(&stat, "anon"),
        memory_file_bytes: field(&stat, "file"),
        memory_inactive_file_bytes: field(&stat, "inactive_file"),
        memory_mapped_bytes: field(&stat, "file_mapped"),
        memory_kernel_bytes: field(&stat, "kernel"),
        page_faults: field(&stat, "pgfault"),
        major_page_faults: field(&stat, "pgmajfault"),
        memory_limit_hits: field(&events, "max"),
        oom_kills: field(&events, "oom_kill"),
        swap_bytes: number(&file("memory.swap.current")),
        swap_limit_bytes: number(&file("memory.swap.max")),
        tasks: number(&file("pids.current")),
        tasks_limit: number(&file("pids.max")),
        io: file("io.stat").lines().filter_map(device).take(MAX_DEVICES).collect(),
        cpu_pressure: pressure(&file("cpu.pressure")),
        memory_pressure: pressure(&file("memory.pressure")),
        io_pressure: pressure(&file("io.pressure")),
    }
}

/// A file that holds one number; `max` is none.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

/// The value of a line `name value`.
fn field(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(n, _)| *n == name).map_or(0, |(_, value)| number(value))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`; a device that did nothing has no pairs.
fn device(line: &str) -> Option<DeviceIo> {
    let (name, pairs) = line.split_once(' ')?;
    let (major, minor) = name.split_once(':')?;
    let mut io = DeviceIo { major: major.parse().ok()?, minor: minor.parse().ok()?, ..DeviceIo::default() };
    for (key, value) in pairs.split_whitespace().filter_map(|pair| pair.split_once('=')) {
        match key {
            "rbytes" => io.read_bytes = number(value),
            "wbytes" => io.written_bytes = number(value),
            "rios" => io.reads = number(value),
            "wios" => io.writes = number(value),
            _ => {}
        }
    }
    Some(io)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`.
fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(stall));
    // "full" of the whole machine's CPU does not exist in older kernels.
    Some(Pressure { some: Some(line("some")?), full: line("full") })
}

fn stall(pairs: &str) -> Stall {
    let mut stall = Stall::default();
    for (key, value) in pairs.split_whitespace().filter_map(|pair| pair.split_once('=')) {
        let percent = || value.parse().ok().filter(|v: &f64| v.is_finite()).unwrap_or(0.0);
        match key {
            "avg10" => stall.avg10 = percent(),
            "avg60" => stall.avg60 = percent(),
            "avg300" => stall.avg300 = percent(),
            "total" => stall.total_micros = number(value),
            _ => {}
        }
    }
    stall
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files(name: &str) -> String {
        match name {
            "cpu.stat" => "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n",
            "memory.current" => "4096\n",
            "memory.max" | "pids.max" => "max\n",
            "memory.stat" => "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 5\npgfault 6\npgmajfault 7\n",
            "memory.events" => "low 0\nhigh 0\nmax 8\noom 2\noom_kill 1\noom_group_kill 0\n",
            "pids.current" => "3\n",
            "io.stat" => "7:0 \n8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nrubbish\n",
            "io.pressure" => {
                "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=nan avg60=0.00 avg300=0.00 total=5\n"
            }
            _ => "",
        }
        .into()
    }

    #[test]
    fn the_kernel_s_files_are_understood() {
        let got = parse(files);
        assert_eq!((got.cpu_nanos, got.cpu_user_nanos, got.cpu_throttled_nanos), (5000, 3000, 9000));
        assert_eq!((got.memory_bytes, got.memory_limit_bytes, got.tasks_limit), (4096, 0, 0));
        assert_eq!((got.memory_limit_hits, got.oom_kills, got.memory_kernel_bytes), (8, 1, 3));
        let last = DeviceIo { major: 8, minor: 16, read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(got.io, [DeviceIo { major: 7, ..DeviceIo::default() }, last]);
        assert_eq!(got.cpu_pressure, None, "there is no such file");
        let io = got.io_pressure.unwrap();
        assert_eq!(io.some, Some(Stall { avg10: 1.5, avg60: 0.25, avg300: 0.0, total_micros: 77 }));
        assert_eq!(io.full.unwrap().avg10, 0.0);
    }

    #[test]
    fn a_cgroup_that_is_not_there_uses_nothing() {
        assert_eq!(read(Path::new("/no/such/cgroup")), CgroupUsage::default());
    }

    proptest! {
        #[test]
        fn nothing_that_a_file_says_is_too_much(text in "[a-z_:=0-9. \n]{0,400}") {
            let usage = parse(|_| text.clone());
            prop_assert!(usage.io.len() <= MAX_DEVICES);
        }
    }
}

//! A container's limits: what is asked for, as cgroup files; set at its creation, changed whole or not at all later.

use std::io;

use cofferdam_proto::agent::Resources;

use super::cgroup::Cgroup;
use crate::error::{Doing, Error, Kind, Result};
use crate::reaper::Reaper;
use crate::sys::{self, write_knob};

const MEMORY: &str = "memory.max";
const QUOTA: &str = "cpu.max";

impl Cgroup {
    /// Sets limits.
    ///
    /// # Errors
    /// When the kernel refuses a value, or lacks a controller that is needed.
    pub fn limit(&self, resources: &Resources) -> Result<()> {
        for (knob, value) in self.all(resources)? {
            self.set(&knob, &value)?;
        }
        Ok(())
    }

    /// Changes limits of a container that lives.
    ///
    /// # Errors
    /// As [`Cgroup::limit`], and when the new memory limit is less than what is used; the limits are then as before.
    pub async fn change_limits(&self, resources: &Resources, reaper: &Reaper) -> Result<()> {
        let mut wanted = self.all(resources)?;
        // The one that can kill comes last: whatever else is refused is refused before it.
        wanted.sort_by_key(|(knob, _)| knob == MEMORY);
        let mut before: Vec<(String, String)> = Vec::new();
        for (knob, value) in wanted {
            let old = self.read(&knob);
            let changed = if knob == MEMORY { self.make_room(&value, reaper).await } else { Ok(()) };
            if let Err(error) = changed.and_then(|()| self.set(&knob, &value)) {
                self.put_back(&before);
                return Err(error);
            }
            before.push((knob, old));
        }
        Ok(())
    }

    /// Lifts the CPU quota, and answers what it was; nothing if there is none.
    pub(super) fn lift_quota(&self) -> Option<String> {
        let quota = self.read(QUOTA);
        let (_, period) = quota.split_once(' ').filter(|(most, _)| *most != "max")?;
        self.set(QUOTA, &format!("max {period}")).ok()?;
        Some(quota)
    }

    /// Puts a quota back that was lifted.
    pub(super) fn put_quota_back(&self, quota: &str) {
        self.put_back(&[(QUOTA.to_owned(), quota.to_owned())]);
    }

    fn put_back(&self, before: &[(String, String)]) {
        for (knob, value) in before.iter().rev().filter(|(_, value)| !value.is_empty()) {
            if let Err(error) = self.set(knob, value) {
                tracing::error!(knob, value, error = error.chain(), "limit not put back");
            }
        }
    }

    /// Sees to it that what is used fits below `limit`: the kernel would kill for the rest.
    async fn make_room(&self, limit: &str, reaper: &Reaper) -> Result<()> {
        if limit == "max" {
            return Ok(());
        }
        let limit: u64 =
            limit.parse().map_err(|_| Error::invalid(format!("{MEMORY} {limit:?} is no number of bytes")))?;
        let used = || self.read("memory.current").parse().unwrap_or(0u64);
        let over = used().saturating_sub(limit);
        if over > 0 {
            // Takes its time, so it is for a process of its own: this one has one thread, which serves all.
            let reclaim = self.knob("memory.reclaim");
            let child = sys::fork(0, None, || u8::from(write_knob(&reclaim, over.to_string()).is_err()));
            // Fails when it got less than all; what is used then decides. Kernels before 5.19 lack it.
            let _ = reaper.watch(child.doing("start a process")?.pid).await;
        }
        let used = used();
        if used > limit {
            return Err(Error::precondition(format!(
                "the memory limit cannot be {limit} bytes: the container uses {used} that cannot be reclaimed"
            )));
        }
        Ok(())
    }

    /// Files and values, each file once, without `unified` ones that this kernel lacks.
    fn all(&self, resources: &Resources) -> Result<Vec<(String, String)>> {
        let mut all: Vec<(String, String)> = knobs(resources)?.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        let mut unified: Vec<_> = resources.unified.iter().collect();
        unified.sort();
        for (knob, value) in unified {
            if !is_knob(knob) {
                return Err(Error::invalid(format!("{knob:?} is not a cgroup's file")));
            }
            if self.knob(knob).exists() {
                all.retain(|(other, _)| other != knob);
                all.push((knob.clone(), value.clone()));
            }
        }
        Ok(all)
    }

    fn set(&self, knob: &str, value: &str) -> Result<()> {
        match write_knob(&self.knob(knob), value) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && knob == "memory.swap.max" => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::new(
                Kind::Precondition,
                format!("cannot set {knob}: its controller is not on in {}", self.knob("").display()),
            )),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ERANGE)) => {
                Err(e).asked(format!("set {knob} to {value:?}"))
            }
            Err(e) => Err(e).doing(format!("set {knob} to {value:?}")),
        }
    }
}

fn is_knob(name: &str) -> bool {
    name.contains('.')
        && !name.starts_with("cgroup.")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// `cpu.weight` for CPU shares. 1024 shares are weight 100, 2 are 1 and 262144 are 10000, on a parabola of logarithms:
/// the conversion that runtimes agreed on, so that a request weighs the same on every node.
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn knobs(r: &Resources) -> Result<Vec<(&'static str, String)>> {
    let mut knobs = Vec::new();
    if r.cpu_shares > 0 {
        knobs.push(("cpu.weight", weight(r.cpu_shares).to_string()));
    }
    if r.cpu_quota_us != 0 || r.cpu_period_us != 0 {
        let quota = if r.cpu_quota_us > 0 { r.cpu_quota_us.to_string() } else { "max".into() };
        let period = if r.cpu_period_us == 0 { 100_000 } else { r.cpu_period_us };
        knobs.push((QUOTA, format!("{quota} {period}")));
    }
    for (knob, value) in [("cpuset.cpus", &r.cpuset_cpus), ("cpuset.mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            knobs.push((knob, value.clone()));
        }
    }
    let amount = |n: i64| if n < 0 { "max".to_owned() } else { n.to_string() };
    if r.memory_swap_bytes > 0 && r.memory_limit_bytes > 0 {
        let swap = r.memory_swap_bytes.checked_sub(r.memory_limit_bytes).filter(|s| *s >= 0);
        let swap = swap.ok_or_else(|| Error::invalid("memory and swap together are less than the memory alone"))?;
        knobs.push(("memory.swap.max", swap.to_string()));
    } else if r.memory_swap_bytes < 0 {
        knobs.push(("memory.swap.max", "max".into()));
    } else if r.memory_limit_bytes > 0 {
        // A limit is one of memory and swap together unless the request says otherwise, as in other runtimes.
        knobs.push(("memory.swap.max", "0".into()));
    }
    if r.memory_limit_bytes != 0 {
        knobs.push(("memory.max", amount(r.memory_limit_bytes)));
    }
    if r.pids_limit != 0 {
        knobs.push(("pids.max", amount(r.pids_limit)));
    }
    Ok(knobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_agreed_corners() {
        for (shares, expected) in [(1, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..262_144).step_by(997).all(|s| weight(s) <= weight(s + 997)));
    }

    #[test]
    fn limits_become_knobs() {
        let r = Resources {
            cpu_shares: 1024,
            cpu_quota_us: 50_000,
            memory_limit_bytes: 100,
            memory_swap_bytes: 150,
            pids_limit: -1,
            ..Resources::default()
        };
        let got = knobs(&r).unwrap();
        let expected = [
            ("cpu.weight", "100"),
            ("cpu.max", "50000 100000"),
            ("memory.swap.max", "50"),
            ("memory.max", "100"),
            ("pids.max", "max"),
        ];
        assert_eq!(got, expected.map(|(k, v)| (k, v.to_owned())));
        assert!(knobs(&Resources { memory_limit_bytes: 2, memory_swap_bytes: 1, ..r }).is_err());
    }

    #[test]
    fn a_memory_limit_alone_leaves_no_swap() {
        let swap = |limit, swap| {
            let r = Resources { memory_limit_bytes: limit, memory_swap_bytes: swap, ..Resources::default() };
            knobs(&r).unwrap().into_iter().find(|(knob, _)| *knob == "memory.swap.max").map(|(_, value)| value)
        };
        assert_eq!(swap(100, 0).as_deref(), Some("0"));
        assert_eq!(swap(100, 100).as_deref(), Some("0"));
        assert_eq!(swap(100, -1).as_deref(), Some("max"));
        assert_eq!(swap(-1, 0), None);
        assert_eq!(swap(0, 0), None, "an update of something else");
    }

    #[test]
    fn a_knob_is_a_name() {
        for (name, good) in
            [("memory.high", true), ("../x.y", false), ("cgroup.kill", false), ("hugetlb.2MB.max", true), ("x", false)]
        {
            assert_eq!(is_knob(name), good, "{name}");
        }
    }
}

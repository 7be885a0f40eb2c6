//! What a guest is told of the machine that it runs in: its clock, its processors, its network cards.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::json;

use super::Test;
use crate::crictl::{Container, Crictl, Pod, wait_within};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("clock_and_processors_of_a_guest", clock_and_processors)];

const HOUR: i64 = 3600;
/// How far the clocks may be apart when one exec has told the guest's, which takes long in an emulated node.
const APART: i64 = 3;
/// How long a guest may take to follow, in an emulated node; the same takes 2 s on metal.
const FOLLOWS: Duration = Duration::from_secs(20);

/// The node's clock is an hour late or early; it is put right when this is dropped.
struct Stepped {
    by: i64,
}

impl Stepped {
    fn new(by: i64) -> Outcome<Self> {
        step(by)?;
        Ok(Self { by })
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        if let Err(error) = step(-self.by) {
            eprintln!("the node's clock stays wrong: {error}");
        }
    }
}

fn step(by: i64) -> Outcome {
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + by, ..now }).doing("set the node's clock")
}

fn prints(container: &str, script: &str) -> Outcome<String> {
    Ok(Crictl::default().run(&["exec", "--sync", container, "sh", "-c", script])?.trim().to_owned())
}

/// Seconds by which the guest's clock is ahead of the node's.
fn ahead(container: &str) -> Outcome<i64> {
    let guest: i64 = prints(container, "date +%s")?.parse().doing("read the guest's clock")?;
    let node = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(guest - i64::try_from(node).unwrap_or(i64::MAX))
}

fn follows(container: &str, what: &str) -> Outcome {
    let started = Instant::now();
    wait_within(FOLLOWS, Duration::ZERO, &format!("the guest's clock to follow {what}"), || {
        Ok(ahead(container)?.abs() <= APART)
    })?;
    println!("        the guest's clock followed {what} within {:.1} s", started.elapsed().as_secs_f32());
    Ok(())
}

fn clock_and_processors() -> Outcome {
    let crictl = Crictl::default();
    let resources = json!({"cpu_period": 100_000, "cpu_quota": 200_000});
    let pod = Pod::new("guest").with("linux", json!({"resources": resources}));
    let id = crictl.run_pod("vm", &pod)?;
    let container = crictl.run_container(&id, &pod, &Container::shell("guest", "exec sleep 100000"))?;

    // All processors are of one package.
    let packages = prints(&container, "cat /sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id")?;
    let packages: Vec<&str> = packages.lines().collect();
    ensure!(packages.len() >= 2, "the guest has {} processors, not 2", packages.len());
    ensure!(packages.iter().all(|package| *package == packages[0]), "the processors' packages are {packages:?}");

    // Drivers of its kernel make no interfaces of their own.
    let interfaces = prints(&container, "ls /sys/class/net | xargs")?;
    ensure!(interfaces == "eth0 lo", "the guest has the interfaces {interfaces}");

    follows(&container, "the node's before it was set")?;
    let stepped = Stepped::new(HOUR)?;
    follows(&container, "an hour forward")?;
    drop(stepped);
    follows(&container, "an hour back")?;
    crictl.remove_pod(&id)
}

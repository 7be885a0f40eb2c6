//! Pods whose microVMs are restored from templates: each is one of its own, none can change a
//! template, and what cannot be restored boots.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Test, tour};
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::openmetrics::scrape;
use crate::{daemon, processes, templates};

pub(super) const TESTS: &[Test] = &[
    ("clones_are_strangers", strangers),
    ("a_guest_cannot_change_its_template", unchanged),
    ("templates_outlive_the_daemon", outlive),
    ("a_microvm_that_cannot_be_restored_boots", boots),
    ("tour_without_templates", without),
    ("pods_take_waiting_microvms", pool),
];

/// How many microVMs came up from a template, from a boot, and how many of these after a failure.
fn starts() -> Outcome<(f64, f64, f64)> {
    let metrics = scrape()?;
    let value = |name: &str, labels: &[(&str, &str)]| {
        metrics.value(name, labels).ok_or_else(|| Failure(format!("there is no {name} of {labels:?}")))
    };
    Ok((
        value("cofferdam_vm_starts_total", &[("from", "template")])?,
        value("cofferdam_vm_starts_total", &[("from", "boot")])?,
        value("cofferdam_vm_template_failures_total", &[])?,
    ))
}

/// Has `test` start microVMs and checks where they came from.
fn starting(restored: f64, booted: f64, failed: f64, test: impl FnOnce() -> Outcome) -> Outcome {
    templates::settle();
    let before = starts()?;
    test()?;
    let after = starts()?;
    let more = (after.0 - before.0, after.1 - before.1, after.2 - before.2);
    ensure!(
        more == (restored, booted, failed),
        "restored, booted, failed: {more:?}, not {restored}, {booted}, {failed}"
    );
    Ok(())
}

/// The memory of all templates, as the daemon holds it.
fn memories() -> Outcome<Vec<PathBuf>> {
    let folder = format!("/proc/{}/fd", daemon::pid()?);
    let entries = fs::read_dir(&folder).doing("list the daemon's descriptors")?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_memory = |path: &PathBuf| {
        fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:cofferdam-memory"))
    };
    Ok(paths.filter(is_memory).collect())
}

fn digests() -> Outcome<BTreeSet<Vec<u8>>> {
    let mut digests = BTreeSet::new();
    for path in memories()? {
        digests.insert(Sha256::digest(fs::read(&path).doing("read a template's memory")?).to_vec());
    }
    Ok(digests)
}

/// What a clone could have in common with another one: its first random numbers, the identity of
/// its kernel's boot, its UUIDs, its host name and its card's address.
const IDENTITY: &str = "od -An -v -tx8 -w8 -N8000 /dev/urandom; od -An -v -tx8 -w8 -N8000 /dev/random; \
    cat /proc/sys/kernel/random/boot_id; for i in 1 2 3 4 5 6 7 8; do cat /proc/sys/kernel/random/uuid; done; \
    hostname; cat /sys/class/net/eth0/address; echo done";

/// Has a pod say its [`IDENTITY`].
fn identity(crictl: &Crictl, id: &str, pod: &Pod) -> Outcome<Vec<String>> {
    let container = crictl.run_container(id, pod, &Container::shell("identity", IDENTITY))?;
    let log = crictl.wait_log(&container, "done\n")?;
    let lines = log.lines().map(str::trim).filter(|line| *line != "done" && !line.is_empty());
    let said: Vec<_> = lines.map(str::to_owned).collect();
    ensure!(said.len() == 2 * 1000 + 1 + 8 + 2, "a clone says {} things of itself: {log}", said.len());
    Ok(said)
}

fn strangers() -> Outcome {
    let crictl = Crictl::default();
    let mut seen = BTreeSet::new();
    let mut lines = 0;
    starting(2.0, 0.0, 0.0, || {
        for name in ["stranger-one", "stranger-two"] {
            let pod = Pod::new(name);
            let id = crictl.run_pod("vm", &pod)?;
            let said = identity(&crictl, &id, &pod)?;
            lines += said.len();
            seen.extend(said);
            crictl.remove_pod(&id)?;
        }
        Ok(())
    })?;
    ensure!(seen.len() == lines, "two clones have {} of {lines} things in common", lines - seen.len());
    Ok(())
}

/// Root in a guest overwrites all the memory that it can get, and its devices' registers are its
/// kernel's; the template and a pod that is restored afterwards are as before.
fn unchanged() -> Outcome {
    let crictl = Crictl::default();
    templates::settle();
    let before = digests()?;
    ensure!(!before.is_empty(), "the daemon has no template");
    starting(2.0, 0.0, 0.0, || {
        let privileged = json!({"security_context": {"privileged": true}});
        let pod = Pod::new("vandal").with("linux", privileged.clone());
        let id = crictl.run_pod("vm", &pod)?;
        let script = "mount -t tmpfs -o size=90% none /mnt && dd if=/dev/urandom of=/mnt/all bs=1M 2>/dev/null; \
            rm -f /mnt/all; echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/zero of=/dev/vda bs=1M count=8 2>/dev/null; echo done";
        let container = Container::shell("vandal", script).with("linux", privileged);
        let vandal = crictl.run_container(&id, &pod, &container)?;
        crictl.wait_state(&vandal, "CONTAINER_EXITED")?;
        crictl.remove_pod(&id)?;
        let pod = Pod::new("after-the-vandal");
        let id = crictl.run_pod("vm", &pod)?;
        let fine = crictl.run_container(&id, &pod, &Container::shell("fine", "echo fine"))?;
        crictl.wait_log(&fine, "fine\n")?;
        crictl.remove_pod(&id)
    })?;
    ensure!(digests()? == before, "a guest has changed a template");
    Ok(())
}

/// A daemon that is killed finds its templates again.
fn outlive() -> Outcome {
    let crictl = Crictl::default();
    templates::settle();
    let inodes = || -> Outcome<BTreeSet<u64>> {
        memories()?.iter().map(|path| Ok(fs::metadata(path).doing("look at a template's memory")?.ino())).collect()
    };
    let before = inodes()?;
    ensure!(!before.is_empty(), "the daemon has no template");
    daemon::kill_and_restart()?;
    ensure!(inodes()? == before, "a daemon that was killed has other templates afterwards");
    starting(1.0, 0.0, 0.0, || {
        let id = crictl.run_pod("vm", &Pod::new("found-again"))?;
        crictl.remove_pod(&id)
    })
}

/// The monitor that restores is killed: the pod comes up all the same.
fn boots() -> Outcome {
    let crictl = Crictl::default();
    starting(0.0, 1.0, 1.0, || {
        let known = processes::all("cofferdam-vmm");
        let (killed, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let id = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !killed.load(Ordering::Relaxed) && !over.load(Ordering::Relaxed) {
                    let new = processes::now("cofferdam-vmm").into_iter().find(|pid| !known.contains(pid));
                    let pid = new.and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
                    let killing = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
                    killed.store(killing.is_some_and(|result| result.is_ok()), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let id = crictl.run_pod("vm", &Pod::new("booted"));
            over.store(true, Ordering::Relaxed);
            id
        })?;
        ensure!(killed.load(Ordering::Relaxed), "the monitor was not killed");
        crictl.remove_pod(&id)
    })?;
    // The template was thrown away: another daemon makes it anew at once.
    daemon::restart()
}

/// Pods get microVMs that were restored before; each is one of its own, the pool is filled again,
/// and no waiting microVM outlives its daemon.
fn pool() -> Outcome {
    let value = |name: &str, labels: &[(&str, &str)]| Ok::<_, Failure>(scrape()?.value(name, labels).unwrap_or(0.0));
    let full = |what: &str| wait_for(what, || Ok(value("cofferdam_vm_pool", &[])? == 2.0));
    let taken = || value("cofferdam_vm_starts_total", &[("from", "pool")]);
    let crictl = Crictl::default();
    daemon::with_settings("[vm]\npool = 2\n", || {
        full("two microVMs to wait")?;
        ensure!(value("cofferdam_vm_pool_bytes", &[])? != 0.0, "waiting microVMs take no memory");
        let mut seen = BTreeSet::new();
        let mut lines = 0;
        for name in ["from-the-pool", "from-the-pool-too"] {
            let (pod, before) = (Pod::new(name), taken()?);
            let id = crictl.run_pod("vm", &pod)?;
            ensure!(taken()? == before + 1.0, "{name} did not get a microVM that waited");
            let said = identity(&crictl, &id, &pod)?;
            lines += said.len();
            seen.extend(said);
            crictl.remove_pod(&id)?;
            full("the pool to be filled again")?;
        }
        ensure!(seen.len() == lines, "two pods have {} of {lines} things in common", lines - seen.len());

        // A pod that took one is found again by the next daemon, and the pool is made anew.
        let pod = Pod::new("outlives-the-pool");
        let id = crictl.run_pod("vm", &pod)?;
        let container = crictl.run_container(&id, &pod, &Container::shell("sleeper", "sleep 1000"))?;
        daemon::kill_and_restart()?;
        full("two other microVMs to wait")?;
        ensure!(processes::all("cofferdam-vmm").len() == 3, "waiting microVMs of a killed daemon still run");
        let echo = crictl.run(&["exec", "--sync", &container, "echo", "still here"])?;
        ensure!(echo.contains("still here"), "exec in a pod from the pool, after the daemon was killed: {echo}");

        // One that ends while it waits is replaced.
        let monitor = processes::all("cofferdam-vmm").into_iter().max().ok_or("no monitor runs")?;
        let monitor = rustix::process::Pid::from_raw(monitor.cast_signed()).ok_or("a monitor without an id")?;
        rustix::process::kill_process(monitor, rustix::process::Signal::KILL).doing("kill a waiting monitor")?;
        let before = taken()?;
        let other = Pod::new("after-a-loss");
        let id_other = crictl.run_pod("vm", &other)?;
        ensure!(taken()? == before + 1.0, "after a waiting microVM had ended, a pod did not get the other one");
        full("the ended one to be replaced")?;
        crictl.remove_pod(&id_other)?;
        crictl.remove_pod(&id)
    })?;
    ensure!(processes::all("cofferdam-vmm").is_empty(), "waiting microVMs outlived the daemon");
    Ok(())
}

fn without() -> Outcome {
    daemon::with_settings("[vm]\ntemplate = false\n", || {
        ensure!(memories()?.is_empty(), "a daemon without templates holds one");
        tour::walk(false)?;
        let (restored, booted, _) = starts()?;
        ensure!(restored == 0.0 && booted > 0.0, "{restored} microVMs were restored and {booted} booted");
        Ok(())
    })
}

#![allow(unsafe_code)] // a process that only holds a place
//! A pod's cgroup where systemd owns the tree: a transient scope in the slice that the kubelet names.
//!
//! systemd makes a scope around a process that is there already, so one is forked to hold the place until the pod's own process has
//! joined. The scope is delegated: what is below it is ours.

#![expect(clippy::disallowed_methods, reason = "on blocking threads only")]

use std::fs;
use std::time::{Duration, Instant};

use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedObjectPath, Value};

use crate::error::{Doing, SandboxError};

/// How long systemd may take to move a process.
const LIMIT: Duration = Duration::from_secs(30);

/// A transient scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scope {
    /// `cofferdam-<id>.scope`.
    pub(super) unit: String,
    /// `kubepods-pod1.slice`.
    pub(super) slice: String,
}

/// Path of a slice below the root, without a slash before it: a slice's name tells its parents.
pub(super) fn expand(slice: &str) -> Result<String, SandboxError> {
    let refuse = |why: &str| Err(SandboxError::Invalid(format!("cgroup parent {slice:?} is no systemd slice: {why}")));
    let Some(stem) = slice.strip_suffix(".slice") else { return refuse("it does not end in .slice") };
    if stem == "-" {
        return Ok(String::new());
    }
    if slice.len() > 255 {
        return refuse("it is longer than 255 characters");
    }
    if !stem.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.\\".contains(&b)) {
        return refuse("it has a character that no unit's name has");
    }
    if stem.split('-').any(str::is_empty) {
        return refuse("a part between its dashes is empty");
    }
    let mut path = String::new();
    for (at, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(&stem[..at]);
        path.push_str(".slice");
    }
    Ok(path)
}

/// A process that keeps a cgroup from being empty; gone when dropped.
#[derive(Debug)]
pub(crate) struct Holder(libc::pid_t);

impl Holder {
    fn start() -> Result<Self, SandboxError> {
        // SAFETY: the child makes system calls that are safe after a fork of a process with threads, and nothing else.
        match unsafe { libc::fork() } {
            -1 => Err(std::io::Error::last_os_error()).doing(|| "fork".into()),
            0 => {
                // SAFETY: as above; the child shares no memory with its parent.
                unsafe {
                    // A daemon that is killed leaves none behind; the thread that forks outlives the holder otherwise.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::close_range(0, u32::MAX, 0);
                    libc::prctl(libc::PR_SET_NAME, c"cofferdam-place".as_ptr());
                    loop {
                        libc::pause();
                    }
                }
            }
            pid => Ok(Self(pid)),
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // SAFETY: neither call touches memory; the number is that of a child that nobody else waits for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

impl Scope {
    /// Makes the scope; `name` is the cgroup that it must have. Blocks.
    pub(super) fn start(&self, name: &str) -> Result<Holder, SandboxError> {
        let step = || format!("have systemd make {} in {}", self.unit, self.slice);
        let holder = Holder::start()?;
        let connection = Connection::system().doing(step)?;
        let properties = vec![
            ("Description", Value::from("a pod of Cofferdam's")),
            ("Slice", Value::from(self.slice.as_str())),
            ("PIDs", Value::from(vec![holder.pid()])),
            ("Delegate", Value::from(true)),
            ("DefaultDependencies", Value::from(false)),
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        let more: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
        let arguments = (self.unit.as_str(), "fail", properties, more);
        let _: OwnedObjectPath =
            manager(&connection).and_then(|m| m.call("StartTransientUnit", &arguments)).doing(step)?;
        wait_for(holder.pid(), name)?;
        Ok(holder)
    }

    /// Stops the scope and has systemd forget how it ended. Idempotent. Blocks.
    pub(super) fn stop(&self) -> Result<(), SandboxError> {
        let step = || format!("have systemd forget {}", self.unit);
        let connection = Connection::system().doing(step)?;
        let manager = manager(&connection).doing(step)?;
        let stopped: zbus::Result<OwnedObjectPath> = manager.call("StopUnit", &(self.unit.as_str(), "replace"));
        let forgotten: zbus::Result<()> = manager.call("ResetFailedUnit", &(self.unit.as_str(),));
        for result in [stopped.map(drop), forgotten] {
            match result {
                Err(zbus::Error::MethodError(error, ..)) if error.ends_with(".NoSuchUnit") => {}
                other => other.doing(step)?,
            }
        }
        Ok(())
    }
}

fn manager(connection: &Connection) -> zbus::Result<Proxy<'_>> {
    let (name, path) = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1");
    Proxy::new(connection, name, path, "org.freedesktop.systemd1.Manager")
}

/// Waits until process `pid` is in cgroup `name`.
fn wait_for(pid: u32, name: &str) -> Result<(), SandboxError> {
    let deadline = Instant::now() + LIMIT;
    let mut pause = Duration::from_millis(1);
    loop {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).doing(|| format!("see where process {pid} is"))?;
        let is = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        if is == name {
            return Ok(());
        }
        if Instant::now() > deadline {
            let step = format!("systemd to move a process from cgroup {is} to {name}");
            return Err(SandboxError::TimedOut { step, seconds: LIMIT.as_secs() });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_says_where_it_is() {
        for (slice, path) in [
            ("test.slice", "test.slice"),
            ("kubepods-pod1.slice", "kubepods.slice/kubepods-pod1.slice"),
            (
                "kubepods-burstable-pod0_1.slice",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0_1.slice",
            ),
            ("-.slice", ""),
        ] {
            assert_eq!(expand(slice).unwrap(), path, "{slice}");
        }
        let long = format!("{}.slice", "a".repeat(255));
        for slice in
            ["", ".slice", "a", "a.scope", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice", "a b.slice", &long]
        {
            let error = expand(slice).unwrap_err().to_string();
            assert!(error.contains("is no systemd slice"), "{slice}: {error}");
        }
    }
}

#![allow(unsafe_code)] // descriptors that systemd hands over
//! Templates outlive the daemon: systemd keeps their descriptors for its next start
//! (sd_pid_notify_with_fds(3), `FDSTORE`). Without systemd they are made anew.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::SealFlags;
use sd_notify::NotifyState;

use super::shape::{Inputs, Shape};
use super::{SEALS, Template, written};

/// Names begin with it; `<inputs>.<shape>.<part>` follows.
const PREFIX: &str = "template.";
const PARTS: [&str; 3] = ["memory", "state", "written"];

fn name(inputs: &Inputs, shape: Shape, part: &str) -> String {
    format!("{PREFIX}{}.{shape}.{part}", inputs.as_str())
}

/// Gives the descriptors of a template to systemd. Blocks for a moment.
pub(super) fn keep(template: &Template) {
    let written = match written::to_file(template.written()) {
        Ok(written) => written,
        Err(error) => {
            tracing::debug!(error = error.chain(), "a template is not kept for the next start");
            return;
        }
    };
    for (part, fd) in PARTS.into_iter().zip([&template.memory, &template.state, &written]) {
        let name = name(&template.inputs, template.shape, part);
        let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
        if let Err(error) = sd_notify::notify_with_fds(&state, &[fd.as_fd()]) {
            tracing::debug!(%error, name, "systemd does not keep a template for the next start");
        }
    }
}

/// Has systemd forget a template. Blocks for a moment.
pub(super) fn forget(template: &Template) {
    PARTS.into_iter().for_each(|part| forget_name(&name(&template.inputs, template.shape, part)));
}

fn forget_name(name: &str) {
    let forgotten = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    if let Err(error) = forgotten {
        tracing::debug!(%error, name, "systemd does not forget a template");
    }
}

/// Whether the descriptors were taken: each has one owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The templates that an earlier daemon left, made of `inputs`; systemd forgets the others. None
/// when it is called again.
pub(super) fn find(inputs: Option<&Inputs>) -> Vec<Template> {
    if TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    let listed = sd_notify::listen_fds_with_names().map(|fds| fds.collect::<Vec<_>>());
    let listed = listed.unwrap_or_else(|error| {
        tracing::debug!(%error, "systemd hands over no descriptors");
        Vec::new()
    });
    // SAFETY: systemd opened them for this process, and nothing else of it takes them.
    let owned = listed.into_iter().map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) }));
    pair(owned.collect(), inputs, forget_name)
}

/// Puts the parts together. What is not whole, not sealed, or of other inputs is forgotten.
fn pair(mut named: BTreeMap<String, OwnedFd>, inputs: Option<&Inputs>, forget: impl Fn(&str)) -> Vec<Template> {
    let names: Vec<String> = named.keys().filter(|name| name.starts_with(PREFIX)).cloned().collect();
    let mut templates = Vec::new();
    for memory_name in &names {
        let Some(stem) = memory_name.strip_suffix(PARTS[0]) else { continue };
        let [state_name, written_name] = [PARTS[1], PARTS[2]].map(|part| format!("{stem}{part}"));
        let shape = inputs.and_then(|inputs| {
            let shape = stem.strip_prefix(PREFIX)?.strip_prefix(inputs.as_str())?;
            shape.strip_prefix('.')?.strip_suffix('.')?.parse().ok()
        });
        let (Some(shape), Some(inputs)) = (shape, inputs) else { continue };
        let parts = (named.remove(memory_name), named.remove(&state_name), named.remove(&written_name));
        if let (Some(memory), Some(state), Some(written)) = parts
            && [&memory, &state, &written].into_iter().all(is_sealed)
            && let Ok(written) = written::of_file(written)
        {
            let template = Template::new(shape, inputs.clone(), memory, state);
            let _ = template.written.set(written);
            templates.push(template);
        } else {
            [memory_name, &state_name, &written_name].into_iter().for_each(|name| forget(name));
        }
    }
    named.keys().filter(|name| name.starts_with(PREFIX)).for_each(|name| forget(name));
    templates
}

/// Nobody can change it.
fn is_sealed(fd: &OwnedFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals: SealFlags| seals.contains(SEALS))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use rustix::fs::{MemfdFlags, fcntl_add_seals, memfd_create};

    use super::*;

    fn inputs(folder: &std::path::Path) -> Inputs {
        let mut vm = crate::testing::config_below(folder).vm;
        for path in [&mut vm.monitor, &mut vm.kernel, &mut vm.initramfs, &mut vm.disk_template] {
            *path = folder.to_owned();
        }
        Inputs::of(&vm).unwrap()
    }

    fn file(sealed: bool) -> OwnedFd {
        let file = memfd_create("test", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        if sealed {
            fcntl_add_seals(&file, SEALS).unwrap();
        }
        file
    }

    #[test]
    fn whole_templates_of_the_same_inputs_are_found_and_others_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let inputs = inputs(folder.path());
        let own = |shape: &str, part: &str| format!("template.{}.{shape}.{part}", inputs.as_str());
        let named = BTreeMap::from([
            (own("1-4-256-7936-1", "memory"), file(true)),
            (own("1-4-256-7936-1", "state"), file(true)),
            (own("1-4-256-7936-1", "written"), written::to_file(&[(7, 2)]).unwrap()),
            (own("1-4-64-7936-1", "memory"), file(true)),
            (own("1-4-128-7936-1", "memory"), file(true)),
            (own("1-4-128-7936-1", "state"), file(false)),
            (own("1-4-128-7936-1", "written"), written::to_file(&[]).unwrap()),
            (own("1-4-192-7936-1", "memory"), file(true)),
            (own("1-4-192-7936-1", "state"), file(true)),
            (own("1-4-192-7936-1", "written"), file(true)),
            (own("rubbish", "memory"), file(true)),
            (own("rubbish", "state"), file(true)),
            ("template.0123456789abcdef.1-4-256-7936-1.memory".into(), file(true)),
            ("template.0123456789abcdef.1-4-256-7936-1.state".into(), file(true)),
            ("another".into(), file(false)),
        ]);
        let forgotten = RefCell::new(Vec::new());
        let found = pair(named, Some(&inputs), |name| forgotten.borrow_mut().push(name.to_owned()));
        assert_eq!(found.iter().map(|t| t.shape.to_string()).collect::<Vec<_>>(), ["1-4-256-7936-1"]);
        assert_eq!(found[0].written(), [(7, 2)]);
        let forgotten = forgotten.into_inner();
        let names = [("64", "memory"), ("128", "state"), ("192", "written")]
            .map(|(size, part)| own(&format!("1-4-{size}-7936-1"), part));
        for name in names.into_iter().chain([own("rubbish", "state")]) {
            assert!(forgotten.contains(&name), "{name}: {forgotten:?}");
        }
        assert!(forgotten.iter().any(|name| name.starts_with("template.0123456789abcdef.")));
        assert!(!forgotten.contains(&"another".into()));
        let named = BTreeMap::from([(own("1-4-256-7936-1", "memory"), file(true))]);
        assert!(pair(named, None, |_| {}).is_empty(), "templates are off");
    }
}

//! A microVM's vCPUs, as its kernel shows them below /sys: which are online.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::agent::ResizeGuestReply;

use crate::agent::{Agent, Mode};
use crate::apart;
use crate::error::{Doing, Error, Kind, Result};
use crate::sys;

const FOLDER: &str = "/sys/devices/system/cpu";
/// Most vCPUs that are looked at.
const MAX: u32 = 1024;
/// How long the kernel may take for all of them; for one that does not come up it waits 10 s itself.
const LIMIT: Duration = Duration::from_secs(45);

/// Has exactly the first `wanted` vCPUs online.
///
/// # Errors
/// When there are not so many, or one cannot be changed: then they are as they were.
pub async fn resize(agent: &Agent, wanted: u32) -> Result<ResizeGuestReply> {
    if agent.mode != Mode::Vm {
        return Err(Error::precondition("the processors of a host pod are the node's"));
    }
    let _resizing = agent.resizing.lock().await;
    let vcpus = Vcpus { folder: PathBuf::from(FOLDER) };
    let before = vcpus.online()?.len();
    if let Some(changes) = vcpus.changes(wanted)? {
        // The kernel takes its time for each.
        let changing = vcpus.clone();
        apart::run(agent, "changes vCPUs", LIMIT, move || changing.change(&changes)).await?;
    }
    let now = vcpus.online()?.len();
    Ok(ResizeGuestReply { vcpus: number(now), vcpus_before: number(before) })
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The folder of a kernel that tells of its processors.
#[derive(Debug, Clone)]
struct Vcpus {
    folder: PathBuf,
}

impl Vcpus {
    /// What has to change for exactly the first `wanted` to be online; nothing when they are.
    fn changes(&self, wanted: u32) -> Result<Option<Vec<(u32, bool)>>> {
        let present = number(self.present()?.len());
        if wanted == 0 {
            return Err(Error::invalid("a guest cannot be without a vCPU"));
        }
        if wanted > present {
            return Err(Error::precondition(format!("the guest was told of {present} vCPUs, not of {wanted}")));
        }
        let online = self.online()?;
        // Those that come, in their order, then those that go, from the last one on.
        let comes = (0..wanted).filter(|id| !online.contains(id)).map(|id| (id, true));
        let goes = online.iter().rev().filter(|id| **id >= wanted).map(|id| (*id, false));
        let changes: Vec<_> = comes.chain(goes).collect();
        Ok((!changes.is_empty()).then_some(changes))
    }

    /// Makes the changes, or none.
    fn change(&self, changes: &[(u32, bool)]) -> Result<()> {
        for (done, (id, online)) in changes.iter().enumerate() {
            if let Err(error) = self.set(*id, *online) {
                for (id, online) in changes[..done].iter().rev() {
                    // Fails where the first one did, or not at all; the caller looks at what came of it.
                    let _ = self.set(*id, !online);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn set(&self, id: u32, online: bool) -> Result<()> {
        let what = if online { "bring up" } else { "take off" };
        sys::write_knob(&self.knob(id), if online { "1" } else { "0" }).doing(format!("{what} vCPU {id}"))
    }

    fn knob(&self, id: u32) -> PathBuf {
        self.folder.join(format!("cpu{id}/online"))
    }

    /// Those that the kernel was told of.
    fn present(&self) -> Result<Vec<u32>> {
        let text = read(&self.folder.join("present")).doing("read which vCPUs are present")?;
        list(&text).ok_or_else(|| Error::new(Kind::Internal, format!("{text:?} is no list of processors")))
    }

    /// Those that run, in their order. The first one has no switch.
    fn online(&self) -> Result<Vec<u32>> {
        let mut online = Vec::new();
        for id in self.present()? {
            match read(&self.knob(id)) {
                Ok(text) if text == "0" => {}
                Ok(_) => online.push(id),
                Err(error) if error.kind() == io::ErrorKind::NotFound => online.push(id),
                Err(error) => return Err(error).doing(format!("read whether vCPU {id} is online")),
            }
        }
        Ok(online)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = sys::read_bounded(File::open(path)?, 4096)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// "0-2,5" as numbers.
fn list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MAX {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder as the kernel's, of which the vCPUs in `online` run.
    fn folder(present: u32, online: &[u32]) -> (tempfile::TempDir, Vcpus) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("present"), format!("0-{}\n", present - 1)).unwrap();
        for id in 0..present {
            fs::create_dir(dir.path().join(format!("cpu{id}"))).unwrap();
            if id > 0 {
                let state = if online.contains(&id) { "1\n" } else { "0\n" };
                fs::write(dir.path().join(format!("cpu{id}/online")), state).unwrap();
            }
        }
        let vcpus = Vcpus { folder: dir.path().to_owned() };
        (dir, vcpus)
    }

    fn resized(vcpus: &Vcpus, wanted: u32) -> Result<Vec<u32>> {
        if let Some(changes) = vcpus.changes(wanted)? {
            vcpus.change(&changes)?;
        }
        vcpus.online()
    }

    #[test]
    fn exactly_the_first_ones_are_online() {
        let (_dir, vcpus) = folder(4, &[]);
        assert_eq!(vcpus.online().unwrap(), [0]);
        for (wanted, expected) in [(3, &[0, 1, 2][..]), (3, &[0, 1, 2]), (1, &[0]), (4, &[0, 1, 2, 3]), (2, &[0, 1])] {
            assert_eq!(resized(&vcpus, wanted).unwrap(), expected);
        }
        assert_eq!(vcpus.changes(2).unwrap(), None);
        // A privileged container has switched them as it likes.
        let (_dir, vcpus) = folder(4, &[3]);
        assert_eq!(vcpus.changes(2).unwrap().unwrap(), [(1, true), (3, false)]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (_dir, vcpus) = folder(2, &[1]);
        assert_eq!(vcpus.changes(0).unwrap_err().kind(), Kind::Invalid);
        let error = vcpus.changes(3).unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (Kind::Precondition, "the guest was told of 2 vCPUs, not of 3")
        );
        assert_eq!(vcpus.online().unwrap(), [0, 1]);
    }

    #[test]
    fn all_or_none() {
        let (dir, vcpus) = folder(5, &[4]);
        // The third one does not come up.
        fs::remove_file(dir.path().join("cpu3/online")).unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("cpu3/online")).unwrap();
        let changes = [(1, true), (2, true), (3, true), (4, false)];
        let error = vcpus.change(&changes).unwrap_err().chain();
        assert!(error.starts_with("cannot bring up vCPU 3: "), "{error}");
        let state = |id: u32| fs::read_to_string(vcpus.knob(id)).unwrap().trim().to_owned();
        assert_eq!([1, 2, 4].map(state), ["0", "0", "1"], "those before it are off again, those after it as they were");
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(list("0").unwrap(), [0]);
        assert_eq!(list("0-2,5").unwrap(), [0, 1, 2, 5]);
        for bad in ["", "a", "2-1", "0-4294967295", "0-1024", "1,", "-"] {
            assert_eq!(list(bad), None, "{bad:?}");
        }
    }
}

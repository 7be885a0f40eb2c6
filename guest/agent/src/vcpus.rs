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
const LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to put them back. Whoever asked waits longer than for both.
const BACK_LIMIT: Duration = Duration::from_secs(15);

/// Has exactly the first `wanted` vCPUs online.
///
/// # Errors
/// When there are not so many, or one cannot be changed: then they are as they were, or the error says which are online.
pub async fn resize(agent: &Agent, wanted: u32) -> Result<ResizeGuestReply> {
    if agent.mode != Mode::Vm {
        return Err(Error::precondition("the processors of a host pod are the node's"));
    }
    let _resizing = agent.resizing.lock().await;
    let vcpus = Vcpus { folder: PathBuf::from(FOLDER) };
    // The kernel takes its time for each.
    let apart = |what, limit, changes: Vec<Change>| {
        let vcpus = vcpus.clone();
        apart::run(agent, what, limit, move || vcpus.change(&changes))
    };
    vcpus.resize(wanted, apart).await
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A vCPU, and whether it is to be online.
type Change = (u32, bool);

/// The folder of a kernel that tells of its processors.
#[derive(Debug, Clone)]
struct Vcpus {
    folder: PathBuf,
}

impl Vcpus {
    /// Has exactly the first `wanted` online, or the same ones as before. `apart` makes changes for at most so long, in a process that
    /// completes the sentence "the process that ...".
    async fn resize<R: Future<Output = Result<()>>>(
        &self,
        wanted: u32,
        apart: impl Fn(&'static str, Duration, Vec<Change>) -> R,
    ) -> Result<ResizeGuestReply> {
        let before = self.online()?;
        let present = number(self.present()?.len());
        if wanted == 0 {
            return Err(Error::invalid("a guest cannot be without a vCPU"));
        }
        if wanted > present {
            return Err(Error::precondition(format!("the guest was told of {present} vCPUs, not of {wanted}")));
        }
        let wanted: Vec<u32> = (0..wanted).collect();
        let needed = changes(&before, &wanted);
        let done = if needed.is_empty() { Ok(()) } else { apart("changes vCPUs", LIMIT, needed).await };
        let now = self.online()?;
        let why = match done {
            Ok(()) if now == wanted => {
                return Ok(ResizeGuestReply { vcpus: number(now.len()), vcpus_before: number(before.len()) });
            }
            Ok(()) => Error::new(Kind::Internal, format!("the kernel has vCPUs {now:?} online and not {wanted:?}")),
            Err(error) => error,
        };
        let back = changes(&now, &before);
        if back.is_empty() {
            return Err(why);
        }
        let put_back = apart("puts vCPUs back", BACK_LIMIT, back).await;
        let now = self.online()?;
        if now == before {
            return Err(why);
        }
        let second = put_back.err().map(|error| format!(" ({})", error.chain())).unwrap_or_default();
        let stay = format!("{}; vCPUs {now:?} stay online, which were {before:?} before{second}", why.chain());
        Err(Error::new(why.kind(), stay))
    }

    /// Makes the changes in their order, up to the first one that the kernel refuses.
    fn change(&self, changes: &[Change]) -> Result<()> {
        changes.iter().try_for_each(|(id, online)| self.set(*id, *online))
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

/// From those that are online to those that are to be: first those that come, in their order, then those that go, from the last one on.
fn changes(online: &[u32], wanted: &[u32]) -> Vec<Change> {
    let comes = wanted.iter().filter(|id| !online.contains(id)).map(|id| (*id, true));
    let goes = online.iter().rev().filter(|id| !wanted.contains(id)).map(|id| (*id, false));
    comes.chain(goes).collect()
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

    use futures::FutureExt;

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

    /// As a process apart does it.
    fn resized(vcpus: &Vcpus, wanted: u32) -> Result<ResizeGuestReply> {
        resized_by(vcpus, wanted, |_, changes| vcpus.change(&changes))
    }

    fn resized_by(
        vcpus: &Vcpus,
        wanted: u32,
        apart: impl Fn(&str, Vec<Change>) -> Result<()>,
    ) -> Result<ResizeGuestReply> {
        let apart = |what, _, changes| std::future::ready(apart(what, changes));
        vcpus.resize(wanted, apart).now_or_never().expect("nothing to wait for")
    }

    /// The kernel refuses what is written to the vCPU's switch, which says that it is online.
    fn stick(vcpus: &Vcpus, id: u32) {
        fs::remove_file(vcpus.knob(id)).unwrap();
        std::os::unix::fs::symlink("/proc/sys/kernel/ostype", vcpus.knob(id)).unwrap();
    }

    #[test]
    fn exactly_the_first_ones_are_online() {
        let (_dir, vcpus) = folder(4, &[]);
        assert_eq!(vcpus.online().unwrap(), [0]);
        let mut before = 1;
        for wanted in [3, 3, 1, 4, 2] {
            let reply = ResizeGuestReply { vcpus: wanted, vcpus_before: before };
            assert_eq!(resized(&vcpus, wanted).unwrap(), reply);
            assert_eq!(vcpus.online().unwrap(), (0..wanted).collect::<Vec<_>>());
            before = wanted;
        }
        // A privileged container has switched them as it likes.
        assert_eq!(changes(&[0, 3], &[0, 1]), [(1, true), (3, false)]);
        assert!(changes(&[0, 2, 3], &[0, 2, 3]).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (_dir, vcpus) = folder(2, &[1]);
        assert_eq!(resized(&vcpus, 0).unwrap_err().kind(), Kind::Invalid);
        let error = resized(&vcpus, 3).unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (Kind::Precondition, "the guest was told of 2 vCPUs, not of 3")
        );
        assert_eq!(vcpus.online().unwrap(), [0, 1]);
    }

    #[test]
    fn all_or_none() {
        let (_dir, vcpus) = folder(5, &[4]);
        let refused = |changes: &[Change]| {
            let third = changes.iter().position(|change| *change == (3, true));
            vcpus.change(&changes[..third.unwrap_or(changes.len())])?;
            third.map_or(Ok(()), |_| Err(Error::new(Kind::Internal, "cannot bring up vCPU 3: Input/output error")))
        };
        let error = resized_by(&vcpus, 4, |_, changes| refused(&changes)).unwrap_err();
        assert_eq!(error.chain(), "cannot bring up vCPU 3: Input/output error");
        assert_eq!(vcpus.online().unwrap(), [0, 4], "those before it are off again, that after it as it was");
    }

    #[test]
    fn the_first_one_that_is_refused_is_the_last_one_that_is_tried() {
        let (_dir, vcpus) = folder(4, &[]);
        stick(&vcpus, 2);
        let error = vcpus.change(&[(1, true), (2, true), (3, true)]).unwrap_err().chain();
        assert!(error.starts_with("cannot bring up vCPU 2: "), "{error}");
        let state = |id: u32| fs::read_to_string(vcpus.knob(id)).unwrap().trim().to_owned();
        assert_eq!([1, 3].map(state), ["1", "0"]);
    }

    /// The process that changes them is killed at its limit, with one of two brought up.
    fn killed_half_way(vcpus: &Vcpus, what: &str, changes: &[Change]) -> Result<()> {
        if what == "changes vCPUs" {
            vcpus.change(&changes[..1])?;
            return Err(Error::new(Kind::Internal, "the process that changes vCPUs did not end in 30 s"));
        }
        vcpus.change(changes)
    }

    #[test]
    fn those_that_a_killed_process_has_changed_are_put_back() {
        let (_dir, vcpus) = folder(4, &[3]);
        let error = resized_by(&vcpus, 3, |what, changes| killed_half_way(&vcpus, what, &changes)).unwrap_err();
        assert_eq!(error.chain(), "the process that changes vCPUs did not end in 30 s");
        assert_eq!(vcpus.online().unwrap(), [0, 3], "as before");
    }

    #[test]
    fn those_that_cannot_be_put_back_are_named() {
        let (_dir, vcpus) = folder(4, &[]);
        let apart = |what: &str, changes: Vec<Change>| {
            let done = killed_half_way(&vcpus, what, &changes);
            if what == "changes vCPUs" {
                // Now the kernel does not take it off again.
                stick(&vcpus, 1);
            }
            done
        };
        let error = resized_by(&vcpus, 3, apart).unwrap_err().chain();
        let named = "did not end in 30 s; vCPUs [0, 1] stay online, which were [0] before (cannot take off vCPU 1: ";
        assert!(error.contains(named), "{error}");
    }

    #[test]
    fn a_kernel_that_agrees_and_does_nothing_is_found_out() {
        let (_dir, vcpus) = folder(3, &[]);
        let error = resized_by(&vcpus, 3, |_, changes| vcpus.change(&changes[..1])).unwrap_err().chain();
        assert_eq!(error, "the kernel has vCPUs [0, 1] online and not [0, 1, 2]");
        assert_eq!(vcpus.online().unwrap(), [0]);
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

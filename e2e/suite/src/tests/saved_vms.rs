//! A VM that is saved once its agent has answered, and clones that go on from there: the monitor by
//! itself, with the product's kernel and agent.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Instant;

use cofferdam_proto::monitor::{ExitReason, Reply, Request};
use sha2::{Digest, Sha256};

use super::Test;
use crate::failure::{Doing, Outcome, ensure};
use crate::monitor::{Monitor, Plan, Saved, installed_disk, memfd};

pub(super) const TESTS: &[Test] = &[("clones_of_a_saved_vm_answer", clones_answer)];

const FOLDER: &str = "/run/cofferdam-e2e/saved-vms";
const MEMORY_MIB: u32 = 256;

fn clones_answer() -> Outcome {
    let _ = fs::remove_dir_all(FOLDER);
    let outcome = boot_save_and_clone(Path::new(FOLDER));
    fs::remove_dir_all(FOLDER).doing("remove the VMs' folder")?;
    outcome
}

fn boot_save_and_clone(folder: &Path) -> Outcome {
    let (cold, disk) = (folder.join("cold"), installed_disk());
    let plan = Plan { dir: &cold, disk: &disk, vcpus: 1, memory_mib: MEMORY_MIB, saved: None };
    let vm = Monitor::start(&plan)?;
    let booted = vm.hello()?;
    println!("        {:.0?} from the monitor's exec to the agent's first answer, booted", vm.age());

    // A pause changes nothing for the guest.
    vm.save()?;
    ensure!(vm.status()?.paused, "a VM that is saved is not paused");
    let refused = vm.ask(&Request::Memory { plugged_mib: 128 }, &[])?;
    ensure!(matches!(refused, Reply::Error { .. }), "a paused VM is changed: {refused:?}");
    vm.order(&Request::Resume, &[])?;
    ensure!(vm.hello()? == booted, "the agent is another one after a pause");

    // Its end is all that the guests of clones hear of it.
    let held = vm.hold()?;
    let begun = Instant::now();
    let saved = vm.save()?;
    let kib = saved.memory.metadata().doing("look at the memory")?.blocks() / 2;
    let bytes = saved.state.metadata().doing("look at the state")?.len();
    println!("        saved within {:.0?}: {} MiB of memory, {bytes} bytes of state", begun.elapsed(), kib >> 10);
    drop((vm, held));
    let digest = digest(&saved.memory)?;

    // Side by side: each has its own memory, disk and sockets.
    let disk = cold.join("disk");
    let mut clones = Vec::new();
    for name in ["one", "two"] {
        let dir = folder.join(name);
        let plan = Plan { dir: &dir, disk: &disk, saved: Some(&saved), ..plan };
        let clone = Monitor::start(&plan)?;
        let reply = clone.hello()?;
        println!("        {:.0?} from the monitor's exec to the agent's first answer, restored", clone.age());
        ensure!(reply == booted, "the agent of clone {name} says {reply:?}, and before {booted:?}");
        clones.push(clone);
    }
    for clone in &clones {
        // What came after the boot still works: a vCPU and memory.
        clone.order(&Request::Vcpus { count: 2 }, &[])?;
        clone.order(&Request::Memory { plugged_mib: 128 }, &[])?;
        ensure!(clone.hello()? == booted, "a clone stops answering");
        ensure!(!clone.status()?.paused, "a clone is paused");
    }
    drop(clones);
    ensure!(self::digest(&saved.memory)? == digest, "clones have changed the memory that they came from");
    others_are_refused(folder, &plan, &saved)
}

/// A state that is not this VM's ends the monitor before its guest's first instruction, and the
/// exit report says why.
fn others_are_refused(folder: &Path, plan: &Plan<'_>, saved: &Saved) -> Outcome {
    let disk = folder.join("cold/disk");
    let bytes = read(&saved.state)?;
    let changed = |change: fn(&mut Vec<u8>)| {
        let (mut bytes, state) = (bytes.clone(), memfd("state")?);
        change(&mut bytes);
        state.write_all_at(&bytes, 0).doing("write a state")?;
        Ok::<_, crate::failure::Failure>(state)
    };
    let cut = changed(|bytes| bytes.truncate(bytes.len() - 1))?;
    let damaged = changed(|bytes| bytes[1000] ^= 1)?;
    let unsealed = memfd("memory")?;
    unsealed.set_len(u64::from(MEMORY_MIB) << 20).doing("size a memfd")?;
    let same = |file: &File| file.try_clone().doing("copy a descriptor");
    let cases = [
        ("cut", same(&saved.memory)?, cut, MEMORY_MIB, "should have"),
        ("damaged", same(&saved.memory)?, damaged, MEMORY_MIB, "checksum"),
        ("swapped", same(&saved.state)?, same(&saved.memory)?, MEMORY_MIB, "is not one"),
        ("unsealed", unsealed, same(&saved.state)?, MEMORY_MIB, "not sealed"),
        ("larger", same(&saved.memory)?, same(&saved.state)?, MEMORY_MIB * 2, "another size of memory (MiB): 256"),
    ];
    for (name, memory, state, memory_mib, expected) in cases {
        let dir = folder.join(name);
        let other = Saved { memory, state };
        let vm = Monitor::start(&Plan { dir: &dir, disk: &disk, memory_mib, saved: Some(&other), ..*plan })?;
        let report = vm.ended()?;
        let as_expected = report.reason == ExitReason::MonitorError && report.detail.contains(expected);
        ensure!(as_expected, "{name}: the exit report is {report:?}");
    }
    Ok(())
}

fn read(file: &File) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(file.metadata().doing("look at a file")?.len()).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0).doing("read a file")?;
    Ok(bytes)
}

fn digest(file: &File) -> Outcome<Vec<u8>> {
    Ok(Sha256::digest(read(file)?).to_vec())
}

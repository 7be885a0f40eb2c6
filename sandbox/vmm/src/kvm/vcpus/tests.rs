use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cofferdam_proto::monitor::ExitReason;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::devices::serial::SerialPort;
use crate::memory;
use crate::timeline::Timeline;

const HALT: u8 = 0xf4;

/// A VM whose first vCPU halts for good; nothing where this machine has no KVM.
fn running(most: u8) -> Option<RunningVcpus> {
    let memory = memory::map(memory::MIN_MEMORY_MIB).unwrap();
    let entry = Entry { address: memory::HIGH_RAM_START, start_info: 0 };
    memory.write_obj(HALT, GuestAddress(entry.address)).unwrap();
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").map(OwnedFd::from);
    let machine =
        match kvm.map_err(|e| e.to_string()).and_then(|kvm| Machine::new(kvm, &memory).map_err(|e| e.to_string())) {
            Ok(machine) => machine,
            Err(reason) => {
                eprintln!("skipped: this machine has no KVM: {reason}");
                return None;
            }
        };
    let maker = machine.maker(most, entry, memory).unwrap();
    let ending = Ending::new().unwrap();
    let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
    let (timeline, listens) = (Arc::new(Timeline::new()), Arc::new(EventFd::new(0).unwrap()));
    let bus = Arc::new(Bus::new(Vec::new(), serial, ending.clone(), timeline, listens));
    Some(RunningVcpus::new(maker, bus, ending).unwrap())
}

/// CPU time of this process' vCPU threads but the first, in the kernel's ticks, by number.
fn ticks() -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
        if let Some(number) = stat[open + 1..close].strip_prefix("vcpu").filter(|number| *number != "0") {
            let fields: Vec<&str> = stat[close + 2..].split(' ').collect();
            found.push((number.to_owned(), fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn later_ones_are_made_when_they_are_asked_for_and_sleep() {
    let Some(mut vcpus) = running(4) else { return };
    assert_eq!(vcpus.count(), monitor::Vcpus { most: 4, made: 0 });
    vcpus.make(1).unwrap();
    assert!(ticks().is_empty());
    vcpus.make(3).unwrap();
    vcpus.make(2).unwrap();
    assert_eq!(vcpus.count(), monitor::Vcpus { most: 4, made: 3 });
    let refused = vcpus.make(5).unwrap_err().to_string();
    assert!(refused.contains("4 vCPUs at most, not 5"), "{refused}");
    assert_eq!(vcpus.count().made, 3);

    let names = || ticks().into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    let limit = Instant::now() + Duration::from_secs(30);
    while names() != ["1", "2"] {
        assert!(Instant::now() < limit, "the threads are {:?}", names());
        std::thread::sleep(Duration::from_millis(10)); // they name themselves
    }
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks().iter().all(|(_, ticks)| *ticks <= 5), "half a second is 50 ticks: {:?}", ticks());

    vcpus.ending.finish(ExitReason::Killed, "the test is over");
    vcpus.stop();
    assert!(ticks().is_empty());
}

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

/// Where the first vCPU starts.
const CODE: GuestAddress = GuestAddress(memory::HIGH_RAM_START);
const HALT: u8 = 0xf4;

/// A VM over `memory`; nothing where this machine has no KVM.
fn machine(memory: &GuestMemoryMmap) -> Option<Machine> {
    let kvm = fs::File::options().read(true).write(true).open("/dev/kvm").map(OwnedFd::from);
    let made = kvm.map_err(|e| e.to_string()).and_then(|kvm| Machine::new(kvm, memory).map_err(|e| e.to_string()));
    made.inspect_err(|reason| eprintln!("skipped: this machine has no KVM: {reason}")).ok()
}

fn vcpus(maker: Maker) -> RunningVcpus {
    let ending = Ending::new().unwrap();
    let serial = Arc::new(Mutex::new(SerialPort::new().unwrap()));
    let (timeline, listens) = (Arc::new(Timeline::new()), Arc::new(EventFd::new(0).unwrap()));
    let bus = Arc::new(Bus::new(Vec::new(), serial, ending.clone(), timeline, listens));
    RunningVcpus::new(maker, bus, ending).unwrap()
}

/// A VM of `memory` whose first vCPU runs `program`; nothing where this machine has no KVM.
fn running(memory: &GuestMemoryMmap, program: &[u8], most: u8) -> Option<RunningVcpus> {
    memory.write_slice(program, CODE).unwrap();
    let maker = machine(memory)?.maker(most, memory.clone()).unwrap();
    let first = maker.boot(1, Entry { address: CODE.0, start_info: 0 }).unwrap();
    let mut vcpus = vcpus(maker);
    first.into_iter().for_each(|vcpu| vcpus.run(vcpu).unwrap());
    Some(vcpus)
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
    let memory = memory::map(memory::MIN_MEMORY_MIB).unwrap();
    let Some(mut vcpus) = running(&memory, &[HALT], 4) else { return };
    assert_eq!(vcpus.count(), monitor::Vcpus { most: 4, made: 1 });
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

/// As where the pod's cgroup has no room for one more thread.
#[test]
fn one_whose_thread_cannot_be_started_is_started_by_the_next_try() {
    let memory = memory::map(memory::MIN_MEMORY_MIB).unwrap();
    let Some(mut vcpus) = running(&memory, &[HALT], 4) else { return };
    vcpus.make(2).unwrap();
    let stack = std::mem::replace(&mut vcpus.stack, 1 << 62);
    for _ in 0..2 {
        let error = vcpus.make(4).unwrap_err();
        assert!(matches!(error, VcpusError::Thread(_)), "{error}");
        assert_eq!(vcpus.count().made, 2, "those that were there stay");
    }
    vcpus.stack = stack;
    vcpus.make(4).unwrap();
    assert_eq!(vcpus.count(), monitor::Vcpus { most: 4, made: 4 });
    end(vcpus);
}

/// What the program below read last from a register that is not there, and how often it did.
const READ: GuestAddress = GuestAddress(0x20_0000);
const COUNT: GuestAddress = GuestAddress(0x20_0004);
/// `mov eax, [0xd0000000]; mov [0x200000], eax; inc dword [0x200004]; jmp` to the first of them.
const PROGRAM: [u8; 18] =
    [0xa1, 0x00, 0x00, 0x00, 0xd0, 0xa3, 0x00, 0x00, 0x20, 0x00, 0xff, 0x05, 0x04, 0x00, 0x20, 0x00, 0xeb, 0xee];

fn count(memory: &GuestMemoryMmap) -> u32 {
    memory.load(COUNT, std::sync::atomic::Ordering::SeqCst).unwrap()
}

fn wait_for_more(memory: &GuestMemoryMmap, than: u32) {
    let limit = Instant::now() + Duration::from_secs(30);
    while count(memory) <= than {
        assert!(Instant::now() < limit, "the guest does not run: it has counted to {}", count(memory));
        std::thread::yield_now();
    }
}

fn end(mut vcpus: RunningVcpus) {
    vcpus.ending.finish(ExitReason::Killed, "the test is over");
    vcpus.stop();
}

/// The guest does nothing but read a device's register, so it is nearly always stopped in the
/// middle of that. A read that is not finished before the vCPU is read would be done by no one, or
/// twice.
#[test]
fn a_vcpu_stops_is_saved_and_goes_on_in_another_vm() {
    let memory = memory::map(memory::MIN_MEMORY_MIB).unwrap();
    let Some(original) = running(&memory, &PROGRAM, 1) else { return };
    for _ in 0..20 {
        wait_for_more(&memory, count(&memory));
        original.pause().unwrap();
        let (states, chips) = original.save().unwrap();
        let stopped = count(&memory);

        let copy = memory::map(memory::MIN_MEMORY_MIB).unwrap();
        let mut bytes = vec![0; (memory::MIN_MEMORY_MIB as usize) << 20];
        memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        copy.write_slice(&bytes, GuestAddress(0)).unwrap();
        copy.write_obj(0_u32, READ).unwrap();
        let maker = machine(&copy).unwrap().maker(1, copy.clone()).unwrap();
        let restored = maker.restore(&states, &chips).unwrap();
        let mut clone = vcpus(maker);
        restored.into_iter().for_each(|vcpu| clone.run(vcpu).unwrap());
        wait_for_more(&copy, stopped + 1);
        assert_eq!(copy.read_obj::<u32>(READ).unwrap(), u32::MAX);
        end(clone);

        assert_eq!(count(&memory), stopped, "the original still waits");
        original.resume();
        wait_for_more(&memory, stopped);
        assert_eq!(memory.read_obj::<u32>(READ).unwrap(), u32::MAX);
    }
    original.pause().unwrap();
    end(original);
}

#[test]
fn a_state_of_another_processor_is_refused() {
    let memory = memory::map(memory::MIN_MEMORY_MIB).unwrap();
    let Some(original) = running(&memory, &PROGRAM, 1) else { return };
    original.pause().unwrap();
    let (states, chips) = original.save().unwrap();
    end(original);
    // One of two processors says so in its CPUID.
    let maker = machine(&memory).unwrap().maker(2, memory).unwrap();
    let Err(error) = maker.restore(&states, &chips) else { panic!("it was restored") };
    assert!(matches!(error, KvmError::Processor { function: 1, .. }), "{error}");
}

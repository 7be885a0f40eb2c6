use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::*;

/// vCPUs that count, look at the gate each time, and end when the gate says so.
struct Machine {
    gate: Arc<Gate>,
    counts: Arc<[AtomicU64; 3]>,
    reads: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

struct Vcpu {
    id: u8,
    reads: Arc<AtomicUsize>,
    fails: bool,
}

impl Halted for Vcpu {
    fn save(&self, reading: &Reading) -> Result<VcpuState, KvmError> {
        assert_eq!(reading.msrs, [7]);
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.fails { Err(KvmError::Lacks("this")) } else { Ok(VcpuState::numbered(self.id)) }
    }
    fn go_on(&mut self) {}
}

impl Machine {
    fn new(fails: Option<u8>) -> Self {
        let (gate, counts) = (Arc::new(Gate::default()), Arc::new([const { AtomicU64::new(0) }; 3]));
        let reads = Arc::new(AtomicUsize::new(0));
        let start = |id: u8| {
            let (gate, counts) = (gate.clone(), counts.clone());
            let mut vcpu = Vcpu { id, reads: reads.clone(), fails: fails == Some(id) };
            std::thread::spawn(move || {
                loop {
                    counts[usize::from(id)].fetch_add(1, Ordering::SeqCst);
                    if !gate.is_open() && !gate.pass(id, &mut vcpu) {
                        return gate.leave();
                    }
                    std::thread::yield_now();
                }
            })
        };
        let threads = (0..3).map(start).collect();
        Self { gate, counts, reads, threads }
    }

    fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    fn halt(&self) {
        self.gate.close();
        self.gate.wait_for(3).unwrap();
    }

    fn reading() -> Reading {
        Reading { msrs: vec![7], xsave: 0 }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.end();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn all_stop_are_read_once_and_go_on_again_and_again() {
    let machine = Machine::new(None);
    for round in 1..=20 {
        machine.halt();
        let halted = machine.counts();
        let saved = machine.gate.save(3, Machine::reading()).unwrap();
        assert_eq!(saved.iter().map(|state| state.id).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(machine.reads.load(Ordering::SeqCst), 3 * round);
        assert_eq!(machine.counts(), halted, "nothing runs meanwhile");
        machine.gate.open();
        while machine.counts().iter().zip(&halted).any(|(now, then)| now <= then) {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_vcpu_that_cannot_be_read_is_an_error_and_all_go_on() {
    let machine = Machine::new(Some(1));
    machine.halt();
    let error = machine.gate.save(3, Machine::reading()).unwrap_err();
    assert!(matches!(error, KvmError::Lacks("this")));
    let halted = machine.counts();
    machine.gate.open();
    while machine.counts().iter().zip(&halted).any(|(now, then)| now <= then) {
        std::thread::yield_now();
    }
}

#[test]
fn the_end_of_the_vm_ends_every_wait() {
    let machine = Machine::new(None);
    machine.halt();
    machine.gate.end();
    while lock(&machine.gate.state).gone < 3 {
        std::thread::yield_now();
    }
    assert!(machine.gate.wait_for(3).is_err());
    assert!(matches!(machine.gate.save(3, Machine::reading()), Err(KvmError::Ended)));
    machine.gate.open();
    assert!(!machine.gate.is_open(), "a VM that has ended does not start again");
}

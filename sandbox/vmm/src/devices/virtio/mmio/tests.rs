use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

use super::*;
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError, SavedDevice};
use crate::devices::virtio::{ActivateError, Activation, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::event_loop::lock;

const MEMORY: u64 = 1 << 20;

#[derive(Default)]
struct Probe {
    active: Option<Activation>,
    activations: u32,
    resets: u32,
    fails: bool,
    is_busy: bool,
    keeps: bool,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | 5
    }
    fn keeps_configuration(&self) -> bool {
        self.keeps
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        if self.fails {
            let source = std::io::Error::other("on purpose");
            return Err(ActivateError { device: "probe", step: "start", source });
        }
        assert!(self.active.is_none(), "activated twice without a reset");
        self.active = Some(active);
        self.activations += 1;
        Ok(())
    }
    fn reset(&mut self) {
        self.active = None;
        self.resets += 1;
    }
    fn reset_now(&mut self) -> bool {
        if !self.is_busy {
            self.reset();
        }
        !self.is_busy
    }
    fn pause(&mut self) -> Option<Activation> {
        self.active.take()
    }
    fn save(&self) -> Result<DeviceState, SaveError> {
        if self.is_busy { Err(SaveError { device: "probe", what: "work" }) } else { Ok(DeviceState::Empty) }
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        if *state == DeviceState::Empty { Ok(()) } else { Err(RestoreError::Kind { device: "probe" }) }
    }
}

fn transport(probe: Probe) -> (Transport, Arc<Mutex<Probe>>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let probe = Arc::new(Mutex::new(probe));
    (Transport::new(Slot::new(0).unwrap(), memory, probe.clone()).unwrap(), probe)
}

fn get(transport: &Transport, offset: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(offset, &mut word);
    u32::from_le_bytes(word)
}

fn set(transport: &mut Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

fn negotiate(transport: &mut Transport) {
    set(transport, register::STATUS, 1);
    set(transport, register::STATUS, 3);
    set(transport, register::DRIVER_FEATURES_SEL, 1);
    set(transport, register::DRIVER_FEATURES, 1);
    set(transport, register::STATUS, 11);
}

fn set_up_queue(transport: &mut Transport, queue: u32) {
    set(transport, register::QUEUE_SEL, queue);
    set(transport, register::QUEUE_SIZE, 8);
    set(transport, register::QUEUE_DESC_LOW, 0x1000 * (queue + 1));
    set(transport, register::QUEUE_DRIVER_LOW, 0x1000 * (queue + 1) + 0x400);
    set(transport, register::QUEUE_DEVICE_LOW, 0x1000 * (queue + 1) + 0x800);
    set(transport, register::QUEUE_READY, 1);
}

fn live() -> (Transport, Arc<Mutex<Probe>>) {
    let (mut transport, probe) = transport(Probe::default());
    negotiate(&mut transport);
    set_up_queue(&mut transport, 0);
    set_up_queue(&mut transport, 1);
    set(&mut transport, register::STATUS, 15);
    assert_eq!(get(&transport, register::STATUS), 15);
    assert_eq!(lock(&probe).activations, 1);
    (transport, probe)
}

/// `guest/kernel/interrupts.patch` knows them by these names.
#[test]
fn the_vendor_tells_whether_the_configuration_may_change() {
    for (keeps, vendor) in [(false, b"CFDM"), (true, b"CFDQ")] {
        let (transport, _probe) = transport(Probe { keeps, ..Default::default() });
        let mut word = [0; 4];
        transport.read(register::VENDOR_ID, &mut word);
        assert_eq!(&word, vendor);
    }
}

#[test]
fn a_driver_finds_the_device_and_starts_it() {
    let (transport, probe) = live();
    assert_eq!(get(&transport, register::MAGIC), 0x7472_6976);
    assert_eq!(get(&transport, register::VERSION), 2);
    assert_eq!(get(&transport, register::DEVICE_ID), 42);
    assert_eq!(get(&transport, 0x0b0), u32::MAX, "no shared memory");
    let probe = lock(&probe);
    let active = probe.active.as_ref().unwrap();
    assert_eq!(active.features, VIRTIO_F_VERSION_1);
    assert_eq!(active.queues.len(), 2);
    assert_eq!(active.queues[1].queue.desc_table(), 0x2000);
}

#[test]
fn a_changed_configuration_has_another_generation() {
    let (transport, _probe) = live();
    let before = get(&transport, register::CONFIG_GENERATION);
    transport.interrupt().used_queue();
    assert_eq!(get(&transport, register::CONFIG_GENERATION), before);
    transport.interrupt().config_changed();
    assert_ne!(get(&transport, register::CONFIG_GENERATION), before);
}

#[test]
fn registers_of_a_live_queue_reach_nothing() {
    let (mut transport, probe) = live();
    let before = transport.state().clone();
    set_up_queue(&mut transport, 0);
    set(&mut transport, register::QUEUE_DESC_HIGH, 0xffff);
    set(&mut transport, register::QUEUE_SIZE, 16);
    set(&mut transport, register::QUEUE_READY, 0);
    set(&mut transport, register::DRIVER_FEATURES, 0xffff_ffff);
    set(&mut transport, register::QUEUE_SEL, 1);
    assert_eq!(transport.state(), &before);
    assert_eq!(lock(&probe).active.as_ref().unwrap().queues[0].queue.desc_table(), 0x1000);
    set(&mut transport, register::STATUS, 15);
    assert_eq!(lock(&probe).activations, 1, "DRIVER_OK again is no second activation");
}

#[test]
fn a_ready_queue_is_frozen_before_driver_ok_too() {
    let (mut transport, _probe) = transport(Probe::default());
    negotiate(&mut transport);
    set_up_queue(&mut transport, 0);
    set(&mut transport, register::QUEUE_DESC_LOW, 0x8000);
    assert_eq!(transport.state().queues[0].descriptors, 0x1000);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for (low, high) in [(2, 1), (0, 0), (0, 3)] {
        let (mut transport, _probe) = transport(Probe::default());
        set(&mut transport, register::STATUS, 1);
        set(&mut transport, register::STATUS, 3);
        set(&mut transport, register::DRIVER_FEATURES, low);
        set(&mut transport, register::DRIVER_FEATURES_SEL, 1);
        set(&mut transport, register::DRIVER_FEATURES, high);
        set(&mut transport, register::STATUS, 11);
        assert_eq!(get(&transport, register::STATUS), 3);
    }
}

#[test]
fn queues_outside_memory_unaligned_or_missing_need_a_reset() {
    for (register, value) in [
        (register::QUEUE_DESC_LOW, MEMORY as u32 - 16),
        (register::QUEUE_DESC_LOW, 0x1004),
        (register::QUEUE_DESC_HIGH, u32::MAX),
        (register::QUEUE_DRIVER_LOW, MEMORY as u32 - 2),
        (register::QUEUE_DEVICE_HIGH, 1),
        (register::QUEUE_SIZE, 0),
        (register::QUEUE_SIZE, 7),
        (register::QUEUE_SIZE, 32),
        (register::QUEUE_SIZE, 0x1_0008),
        (register::QUEUE_READY, 0),
    ] {
        let (mut transport, probe) = transport(Probe::default());
        negotiate(&mut transport);
        set_up_queue(&mut transport, 1);
        set_up_queue(&mut transport, 0);
        if register != register::QUEUE_READY {
            set(&mut transport, register::QUEUE_READY, 0);
        }
        set(&mut transport, register, value);
        if register != register::QUEUE_READY {
            set(&mut transport, register::QUEUE_READY, 1);
        }
        set(&mut transport, register::STATUS, 15);
        assert_eq!(get(&transport, register::STATUS), 15 | 64, "{register:#x} = {value:#x}");
        assert_eq!(get(&transport, register::INTERRUPT_STATUS), 2);
        assert_eq!(lock(&probe).activations, 0);
        set(&mut transport, register::STATUS, 0);
        assert_eq!(get(&transport, register::STATUS), 0);
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset_and_may_be_tried_again() {
    let (mut transport, probe) = transport(Probe { fails: true, ..Default::default() });
    for (fails, end) in [(true, 15 | 64), (false, 15)] {
        lock(&probe).fails = fails;
        negotiate(&mut transport);
        set_up_queue(&mut transport, 0);
        set_up_queue(&mut transport, 1);
        set(&mut transport, register::STATUS, 15);
        assert_eq!(get(&transport, register::STATUS), end);
        set(&mut transport, register::STATUS, 0);
    }
    assert_eq!(lock(&probe).resets, 2);
    assert!(lock(&probe).active.is_none());
}

#[test]
fn state_survives_serialization() {
    let (transport, _probe) = live();
    let text = serde_json::to_string(transport.state()).unwrap();
    assert_eq!(&serde_json::from_str::<TransportState>(&text).unwrap(), transport.state());
}

/// What is saved of a device that serves, whose queues were used a bit.
fn saved() -> SavedDevice {
    let (mut transport, probe) = live();
    transport.interrupt().used_queue();
    transport.interrupt().config_changed();
    {
        let mut probe = lock(&probe);
        let queues = &mut probe.active.as_mut().unwrap().queues;
        queues[0].queue.set_next_avail(65535);
        queues[0].queue.set_next_used(65533);
        queues[1].queue.set_next_avail(3);
    }
    transport.pause();
    assert!(lock(&probe).active.is_none(), "a device that is paused has no queues");
    transport.save().unwrap()
}

/// A queue's three addresses, its size, and its next entries in the available and the used ring.
type SeenQueue = (u64, u64, u64, u16, u16, u16);

/// Registers, queues and interrupts of `transport`, as its guest and its device see them.
fn seen(transport: &Transport, probe: &Mutex<Probe>) -> (Vec<u32>, Vec<SeenQueue>) {
    let registers = (0..0x100).step_by(4).map(|offset| get(transport, offset)).collect();
    let probe = lock(probe);
    let queues = probe.active.iter().flat_map(|active| &active.queues).map(|line| {
        let queue = &line.queue;
        let places = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        (places.0, places.1, places.2, queue.size(), queue.next_avail(), queue.next_used())
    });
    (registers, queues.collect())
}

#[test]
fn a_restored_device_goes_on_where_it_was_saved() {
    let saved = saved();
    let bytes = postcard::to_allocvec(&saved).unwrap();
    let saved: SavedDevice = postcard::from_bytes(&bytes).unwrap();
    let (mut clone, probe) = transport(Probe::default());
    clone.restore(&saved).unwrap();
    assert!(lock(&probe).active.is_none(), "nothing is served before the monitor is locked in");
    assert_eq!(clone.save().unwrap(), saved, "and it can be saved again");
    clone.resume().unwrap();
    assert_eq!((get(&clone, register::INTERRUPT_STATUS), get(&clone, register::CONFIG_GENERATION)), (3, 1));
    let (_, queues) = seen(&clone, &probe);
    assert_eq!(queues.iter().map(|queue| (queue.4, queue.5)).collect::<Vec<_>>(), [(65535, 65533), (3, 0)]);
    assert!(clone.kicks().iter().all(|kick| kick.read().is_ok()), "it looks at all queues");
    assert!(clone.interrupt().irqfd().read().is_ok(), "what the driver has not acknowledged is raised again");
    assert_eq!(lock(&probe).resets, 0);
}

#[test]
fn a_pause_changes_nothing() {
    let (mut transport, probe) = live();
    let before = seen(&transport, &probe);
    transport.pause();
    transport.pause();
    transport.resume().unwrap();
    transport.resume().unwrap();
    assert_eq!(seen(&transport, &probe), before);
    let (activations, resets) = {
        let probe = lock(&probe);
        (probe.activations, probe.resets)
    };
    assert_eq!((activations, resets), (2, 0));
    lock(&probe).is_busy = true;
    let why = transport.save().unwrap_err().to_string();
    assert_eq!(why, "device probe has work");
}

#[test]
fn a_device_that_no_driver_has_started_is_restored_as_such() {
    let (one, _) = transport(Probe::default());
    let saved = one.save().unwrap();
    let (mut clone, probe) = transport(Probe::default());
    clone.restore(&saved).unwrap();
    clone.resume().unwrap();
    assert!(lock(&probe).active.is_none());
    negotiate(&mut clone);
    assert_eq!(get(&clone, register::STATUS), 11);
}

/// The file's checksum keeps others from writing this; a bug must not become a hole all the same.
#[test]
fn registers_that_no_driver_could_write_are_refused() {
    let change = |change: fn(&mut SavedDevice)| {
        let mut saved = saved();
        change(&mut saved);
        let (mut clone, probe) = transport(Probe::default());
        let why = clone.restore(&saved).unwrap_err().to_string();
        assert!(clone.resume().is_ok() && lock(&probe).active.is_none(), "{why}");
        why
    };
    for (why, expected) in [
        (change(|saved| saved.kind = 7), "a virtio device 7, and this one is a 42"),
        (change(|saved| saved.registers.queues[0].max_size = 1024), "other queues"),
        (change(|saved| saved.registers.queues.truncate(1)), "other queues"),
        (change(|saved| saved.registers.driver_features |= 1 << 40), "accepted the features"),
        (change(|saved| saved.registers.queues[1].device = u64::MAX - 64), "queue 1"),
        (change(|saved| saved.registers.queues[1].device = MEMORY - 8), "queue 1 lies outside guest memory"),
        (change(|saved| saved.registers.queues[0].size = 32), "queue 0 is invalid"),
        (change(|saved| saved.registers.status = 11), "a device that serves"),
        (change(|saved| saved.positions = Some(Vec::new())), "a device that serves"),
        (change(|saved| saved.positions = None), "a device that serves"),
        (change(|saved| saved.registers.version = 9), "their version is 9"),
    ] {
        assert!(why.contains(expected), "{why}");
    }
    let mut other = saved();
    let rng = crate::devices::virtio::rng::Rng::new();
    other.device = rng.save().unwrap();
    let (mut clone, _) = transport(Probe::default());
    assert!(matches!(clone.restore(&other), Err(RestoreError::Kind { device: "probe" })));
}

#[test]
fn slots_end_with_the_interrupt_lines() {
    assert_eq!(Slot::new(18).unwrap(), Slot { address: 0xd001_2000, irq: 23 });
    assert_eq!(Slot::new(19), None);
    assert_eq!(Slot::new(u32::MAX), None);
}

#[test]
fn spare_slots_share_the_lines_that_are_left() {
    let irqs = |devices| (0..8).map(|number| Slot::spare(devices, number).unwrap().irq).collect::<Vec<_>>();
    assert_eq!(irqs(7), (12..20).collect::<Vec<_>>());
    assert_eq!(irqs(14), [19, 20, 21, 22, 23, 19, 20, 21]);
    assert_eq!(Slot::spare(14, 7).unwrap().address, MMIO_START + 21 * MMIO_DEVICE_SIZE);
    assert_eq!(Slot::spare(19, 0), None);
    assert_eq!(Slot::spare(u32::MAX, u32::MAX), None);
}

#[test]
fn a_reset_from_outside_clears_the_registers_once_the_device_is_still() {
    let (mut transport, probe) = live();
    lock(&probe).is_busy = true;
    assert!(!transport.reset_now());
    assert_eq!(get(&transport, register::STATUS), 15, "nothing changed");
    lock(&probe).is_busy = false;
    assert!(transport.reset_now());
    assert_eq!(get(&transport, register::STATUS), 0);
    assert!(lock(&probe).active.is_none());
}

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u32),
    WriteBytes(u64, Vec<u8>),
    Read(u64, usize),
    Negotiate,
    Queue(u32),
    Kick(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = prop_oneof![0..20_u32, any::<u32>(), (0..MEMORY as u32).prop_map(|address| address & !0xf)];
    let register = prop_oneof![(0..0x48_u64).prop_map(|word| word * 4), 0..0x1000_u64];
    let step = prop_oneof![
        4 => (register.clone(), value).prop_map(|(offset, value)| Step::Write(offset, value)),
        1 => (register.clone(), prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(o, b)| Step::WriteBytes(o, b)),
        1 => (register, 0..9_usize).prop_map(|(offset, length)| Step::Read(offset, length)),
        2 => prop_oneof![Just(1), Just(3), Just(11), Just(15), Just(0), Just(128)]
            .prop_map(|status| Step::Write(register::STATUS, status)),
        1 => Just(Step::Negotiate),
        2 => (0..3_u32).prop_map(Step::Queue),
        1 => (0..4_u32).prop_map(Step::Kick),
    ];
    prop::collection::vec(step, 0..60)
}

/// What must hold after any step.
fn check(transport: &Transport, probe: &Mutex<Probe>, live: &mut Option<Vec<(u64, u64, u64, u16)>>) {
    let mut probe = lock(probe);
    let Some(active) = probe.active.as_mut() else {
        *live = None;
        return;
    };
    assert_eq!(get_status(transport) & 15, 15);
    let now: Vec<_> = active
        .queues
        .iter()
        .map(|line| (line.queue.desc_table(), line.queue.avail_ring(), line.queue.used_ring(), line.queue.size()))
        .collect();
    for (descriptors, driver, device, size) in &now {
        let size = u64::from(*size);
        assert!(active.memory.check_range(GuestAddress(*descriptors), size as usize * 16));
        assert!(active.memory.check_range(GuestAddress(*driver), 4 + size as usize * 2));
        assert!(active.memory.check_range(GuestAddress(*device), 4 + size as usize * 8));
    }
    assert_eq!(live.get_or_insert_with(|| now.clone()), &now, "a live queue changed");
    let memory = active.memory.clone();
    for line in &mut active.queues {
        line.take_kick();
        if let Ok(chains) = line.queue.iter(&memory) {
            chains.take(32).for_each(|chain| assert!(chain.take(64).count() <= 64));
        }
    }
}

fn get_status(transport: &Transport) -> u32 {
    get(transport, register::STATUS)
}

proptest! {
    #[test]
    fn no_order_of_register_accesses_breaks_a_queue(steps in steps()) {
        let (mut transport, probe) = transport(Probe::default());
        let mut live = None;
        for step in steps {
            match step {
                Step::Write(offset, value) => set(&mut transport, offset, value),
                Step::WriteBytes(offset, bytes) => transport.write(offset, &bytes),
                Step::Read(offset, length) => transport.read(offset, &mut vec![0; length]),
                Step::Negotiate => negotiate(&mut transport),
                Step::Queue(queue) => set_up_queue(&mut transport, queue),
                Step::Kick(queue) => set(&mut transport, register::QUEUE_NOTIFY, queue),
            }
            check(&transport, &probe, &mut live);
        }
    }
}

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_queue::QueueT;

use super::request::Disk;
use super::state::{BlkState, STATE_VERSION};
use super::*;
use crate::devices::virtio::saved::DeviceState;
use crate::devices::virtio::test_guest::{DATA, Guest, WRITE, any_attack};
use crate::devices::virtio::{Buffers, Interrupt, QueueLine, VIRTIO_F_EVENT_IDX, VIRTIO_F_VERSION_1, VirtioDevice};
use crate::lock_in::{ThreadKind, run_as};

const SECTORS: u64 = 256;
const HEAD: u64 = DATA;
const STATUS: u64 = DATA + 0x800;
const BODY: u64 = DATA + 0x1000;

struct Bench {
    guest: Guest,
    line: QueueLine,
    interrupt: Interrupt,
    file: std::fs::File,
    state: BlkState,
}

fn state() -> BlkState {
    let (version, id) = (STATE_VERSION, state::id(ID));
    BlkState { version, capacity: SECTORS, block_size: 512, read_only: false, id, features: F_FLUSH }
}

impl Bench {
    fn new() -> Self {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..SECTORS * SECTOR).map(|at| (at / SECTOR) as u8).collect();
        file.write_all(&content).unwrap();
        let guest = Guest::new(&QUEUE_SIZES);
        let mut active = guest.activation(VIRTIO_F_VERSION_1);
        let state = state();
        Self { line: active.queues.remove(0), interrupt: active.interrupt, guest, file, state }
    }

    fn serve(&mut self) {
        let disk = Disk::new(&self.file, &self.state, true);
        let memory = self.guest.memory.clone();
        self.line.serve(&memory, &self.interrupt, |buffers: Buffers<'_>| disk.serve(buffers));
    }

    /// One request with `body`; answers its status byte and used length.
    fn request(&mut self, kind: u32, sector: u64, body: &[(u64, u32, u16)]) -> (u8, u32) {
        self.guest.write(HEAD, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.guest.write(STATUS, &[0xee]);
        let chain = [&[(HEAD, 16, 0)], body, &[(STATUS, 1, WRITE)]].concat();
        let before = self.guest.used_count(0);
        self.guest.chain(0, &chain);
        self.serve();
        assert_eq!(self.guest.used_count(0), before + 1);
        (self.guest.read(STATUS, 1)[0], self.guest.used_entry(0, before).1)
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        self.guest.write(BODY, &[&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat());
        self.request(kind, 0, &[(BODY, 16, 0)]).0
    }
}

#[test]
fn what_is_written_in_pieces_reads_back_in_others() {
    let mut bench = Bench::new();
    let data: Vec<u8> = (0..2048_u32).map(|at| (at * 7) as u8).collect();
    bench.guest.write(BODY, &data);
    assert_eq!(bench.request(1, 10, &[(BODY, 100, 0), (BODY + 100, 1436, 0), (BODY + 1536, 512, 0)]), (0, 1));
    assert_eq!(bench.request(4, 0, &[]), (0, 1));
    let pieces = [(BODY + 0x2000, 1, WRITE), (BODY + 0x2001, 2047, WRITE)];
    assert_eq!(bench.request(0, 10, &pieces), (0, 2049));
    assert_eq!(bench.guest.read(BODY + 0x2000, 2048), data);
    let mut neighbours = [0; 2];
    bench.file.read_exact_at(&mut neighbours[..1], 10 * SECTOR - 1).unwrap();
    bench.file.read_exact_at(&mut neighbours[1..], 14 * SECTOR).unwrap();
    assert_eq!(neighbours, [9, 14]);
}

#[test]
fn requests_beyond_the_disk_or_not_in_sectors_are_refused() {
    let mut bench = Bench::new();
    for (kind, flags) in [(0, WRITE), (1, 0)] {
        for (sector, length) in [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 1024), (0, 100)]
        {
            assert_eq!(bench.request(kind, sector, &[(BODY, length, flags)]), (1, 1), "{kind} {sector} {length}");
        }
        assert_eq!(bench.request(kind, SECTORS - 1, &[(BODY, 512, flags)]).0, 0);
    }
    assert_eq!(bench.request(99, 0, &[(BODY, 512, WRITE)]), (2, 1));
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * SECTOR, "never grown");
}

#[test]
fn discard_gives_space_back_and_zeroes_are_zeroes() {
    let mut bench = Bench::new();
    bench.file.sync_all().unwrap();
    let before = bench.file.metadata().unwrap().blocks();
    assert_eq!(bench.range(11, 64, 128, 0), 0);
    assert!(bench.file.metadata().unwrap().blocks() < before);
    for (sector, flags) in [(0, 0), (16, 1)] {
        assert_eq!(bench.range(13, sector, 8, flags), 0);
        let mut bytes = [1; 8 * 512];
        bench.file.read_exact_at(&mut bytes, sector * SECTOR).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
    for (kind, sector, sectors, flags, status) in [
        (11, SECTORS - 1, 2, 0, 1),
        (11, u64::MAX, 1, 0, 1),
        (11, 0, u32::MAX, 0, 1),
        (11, 0, 1, 1, 2),
        (13, 0, 1, 2, 2),
        (13, 0, 0, 0, 0),
    ] {
        assert_eq!(bench.range(kind, sector, sectors, flags), status);
    }
    assert_eq!(bench.request(11, 0, &[(BODY, 15, 0)]).0, 1, "half a range");
    assert_eq!(bench.request(11, 0, &[(BODY, 16 * (MAX_RANGES + 1), 0)]).0, 1, "too many ranges");
    assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * SECTOR);
}

#[test]
fn a_read_only_disk_takes_no_writes_whatever_the_driver_accepted() {
    let mut bench = Bench::new();
    bench.state.read_only = true;
    bench.guest.write(BODY, &[0xaa; 512]);
    for kind in [1, 11, 13] {
        assert_eq!(bench.request(kind, 5, &[(BODY, 512, 0)]), (1, 1), "{kind}");
        assert_eq!(bench.range(kind, 5, 8, 0), 1, "{kind}");
    }
    assert_eq!(bench.request(0, 5, &[(BODY, 512, WRITE)]), (0, 513));
    assert_eq!(bench.guest.read(BODY, 512), [5; 512]);
    assert_eq!(bench.request(4, 0, &[]), (0, 1), "a flush changes nothing");
}

/// A loop device over a file of 1 MiB.
struct LoopDevice {
    file: tempfile::NamedTempFile,
    path: String,
}

impl LoopDevice {
    /// None where there is no loop device to be had.
    fn new() -> Option<Self> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output().ok()?;
        let path = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        made.status.success().then_some(Self { file, path })
    }

    fn read(&self, offset: u64) -> [u8; 512] {
        let mut bytes = [1; 512];
        self.file.as_file().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        Command::new("losetup").args(["--detach", &self.path]).status().unwrap();
    }
}

#[test]
fn a_block_device_of_the_node_is_a_disk() {
    let Some(node) = LoopDevice::new() else { return println!("skipped: there is no loop device") };
    let open = |write| File::options().read(true).write(write).open(&node.path).unwrap();
    // As the monitor sizes it: under the filter of its main thread.
    let volume = |file: File| run_as(ThreadKind::Main, || Blk::volume(file.into(), "b7.0w", false)).unwrap();
    assert!(volume(open(false)).state.read_only, "a descriptor that cannot write");
    assert_ne!(volume(open(true)).features() & F_FLUSH, 0, "what it holds outlives the VM");
    let state = BlkState { features: F_FLUSH, ..volume(open(true)).state };
    assert_eq!((state.capacity, state.block_size, state.read_only), (2048, 512, false));
    let mut bench = Bench { file: open(true), state, ..Bench::new() };
    bench.guest.write(BODY, &[0xaa; 512]);
    for sector in [8, 16] {
        assert_eq!(bench.request(1, sector, &[(BODY, 512, 0)]), (0, 1));
    }
    assert_eq!(bench.request(4, 0, &[]), (0, 1));
    assert_eq!(node.read(8 * SECTOR), [0xaa; 512]);
    assert_eq!(bench.request(0, 16, &[(BODY + 0x1000, 512, WRITE)]), (0, 513));
    assert_eq!(bench.guest.read(BODY + 0x1000, 512), [0xaa; 512]);
    for (sector, flags) in [(8, 0), (16, 1)] {
        assert_eq!(bench.range(13, sector, 8, flags), 0);
        assert_eq!(bench.request(4, 0, &[]), (0, 1));
        assert_eq!(node.read(sector * SECTOR), [0; 512]);
    }
    assert!([0, 2].contains(&bench.range(11, 8, 8, 0)), "discarded, if the node's device can");
    assert_eq!(bench.request(0, 2048, &[(BODY, 512, WRITE)]), (1, 1), "behind its end");
}

#[test]
fn larger_blocks_are_told() {
    let config = |block_size| BlkState { block_size, ..state() }.config();
    for (block_size, exponent, blocks) in [(512_u32, 3, 8_u16), (1024, 2, 4), (4096, 0, 1)] {
        let config = config(block_size);
        assert_eq!(config[20..24], block_size.to_le_bytes());
        assert_eq!((config[24], &config[26..28]), (exponent, &blocks.to_le_bytes()[..]));
    }
}

#[test]
fn the_identity_fits_any_buffer() {
    let mut bench = Bench::new();
    assert_eq!(bench.request(8, 0, &[(BODY, 20, WRITE)]), (0, 21));
    assert_eq!(&bench.guest.read(BODY, 9), b"cofferdam");
    assert_eq!(bench.request(8, 0, &[(BODY, 4, WRITE)]), (0, 5));
}

#[test]
fn the_thread_serves_until_reset() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
    let mut guest = Guest::new(&QUEUE_SIZES);
    let mut blk = Blk::new(file).unwrap();
    let mut capacity = [0; 8];
    blk.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    for round in 1..=2 {
        blk.activate(guest.activation(VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)).unwrap();
        if round == 1 {
            guest.write(HEAD, &[0; 16]);
            guest.chain(0, &[(HEAD, 16, 0), (BODY, 512, WRITE), (STATUS, 1, WRITE)]);
            guest.kick(0);
            let limit = Instant::now() + Duration::from_secs(10);
            while guest.used_count(0) == 0 && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(guest.used_entry(0, 0), (0, 513));
            assert_eq!(guest.interrupts(), 1);
        }
        blk.reset();
        blk.reset();
    }
}

/// What the guest asks for while the device is paused is done afterwards, by the same queue.
#[test]
fn the_thread_stops_for_a_pause_and_goes_on() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
    let mut guest = Guest::new(&QUEUE_SIZES);
    let mut blk = Blk::new(file).unwrap();
    assert!(blk.pause().is_none(), "no driver has started it");
    blk.activate(guest.activation(VIRTIO_F_VERSION_1)).unwrap();
    guest.write(HEAD, &[0; 16]);
    for round in 1..=3 {
        let active = blk.pause().unwrap();
        assert_eq!(active.queues[0].queue.next_used(), round - 1);
        guest.chain(0, &[(HEAD, 16, 0), (BODY, 512, WRITE), (STATUS, 1, WRITE)]);
        guest.kick(0);
        assert!(blk.pause().is_none() && guest.used_count(0) == round - 1);
        blk.activate(active).unwrap();
        guest.wait_used(0, round);
    }
    blk.pause();
    blk.reset();
}

#[test]
fn only_a_disk_as_large_takes_the_place_of_another() {
    let disk = |sectors: u64| {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        rustix::fs::ftruncate(&file, sectors * SECTOR).unwrap();
        Blk::new(file).unwrap()
    };
    let saved = disk(64).save().unwrap();
    disk(64).restore(&saved).unwrap();
    let why = disk(65).restore(&saved).unwrap_err().to_string();
    assert_eq!(why, "the number of sectors of device blk was 64 when it was saved, and is 65");
    let DeviceState::Blk(mut other) = saved else { panic!("another device's") };
    other.version = 1;
    let why = disk(64).restore(&DeviceState::Blk(other)).unwrap_err().to_string();
    assert_eq!(why, "the state of device blk has version 1, and this monitor knows 2");
}

/// A flush would have the node write out what nobody will ever read again.
#[test]
fn nothing_is_flushed_to_a_disk_that_ends_with_its_vm() {
    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    assert_eq!(Blk::new(file).unwrap().features() & F_FLUSH, 0);
}

#[test]
fn only_a_regular_file_is_a_disk() {
    let (end, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Blk::new(end.into()).is_err());
}

#[test]
fn state_survives_serialization() {
    let state = state();
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<BlkState>(&text).unwrap(), state);
}

proptest! {
    #[test]
    fn no_chain_breaks_it_or_grows_the_file(attacks in prop::collection::vec(any_attack(), 1..4)) {
        let mut bench = Bench::new();
        for attack in attacks {
            attack.strike(&mut bench.guest, 0);
            bench.serve();
        }
        prop_assert_eq!(bench.file.metadata().unwrap().len(), SECTORS * SECTOR);
    }

    #[test]
    fn no_header_breaks_it(kind in prop_oneof![0..16_u32, any::<u32>()], sector in prop_oneof![0..300_u64, any::<u64>()],
                           body in prop::collection::vec((0..8_u64, 0..9000_u32, 0..2_u16), 0..5)) {
        let mut bench = Bench::new();
        let mut body: Vec<_> = body.into_iter().map(|(page, length, write)| (BODY + page * 4096, length, write * WRITE)).collect();
        body.sort_by_key(|part| part.2);
        let (status, used) = bench.request(kind, sector, &body);
        prop_assert!(status <= 2 && used >= 1, "a well-formed chain gets a status");
    }
}

//! What else the monitor reads: registers, saved VMs, output of containers, and the daemon's words.

use cofferdam_vmm::fuzzing::{self, Access};

use super::{Target, target, texts};
use crate::words::Words;

pub(super) const MMIO: Target = target("mmio", mmio, mmio_seeds);
pub(super) const SAVED_STATE: Target =
    Target { name: "saved_state", most: 16 << 10, run: fuzzing::saved_state, seeds: state_seeds };
pub(super) const LOG_FRAMES: Target = target("log_frames", log_frames, log_seeds);
pub(super) const LAUNCH_CONFIG: Target = target("launch_config", fuzzing::launch_config, launch_seeds);
pub(super) const PACKETS: Target = target("packets", fuzzing::packets, packet_seeds);

/// The registers (virtio 1.3 table 4.1), and some that are none.
const REGISTERS: [u16; 29] = [
    0x000, 0x004, 0x008, 0x00c, 0x010, 0x014, 0x020, 0x024, 0x030, 0x034, 0x038, 0x044, 0x050, 0x060, 0x064, 0x070,
    0x080, 0x084, 0x090, 0x094, 0x0a0, 0x0a4, 0x0b0, 0x0fc, 0x100, 0x104, 0x108, 0x138, 0xffc,
];
const STATUS: u16 = 0x070;
/// Accesses of one input.
const MOST: usize = 400;
/// Bytes of guest memory that an access may name.
const MEMORY: u32 = 1 << 20;

fn mmio(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let device = words.byte();
    let mut accesses = Vec::new();
    while words.more() && accesses.len() < MOST {
        match words.byte() % 16 {
            0..=5 => {
                let register = words.one_of(&REGISTERS);
                let value = match words.byte() {
                    255 => words.word(),
                    254 => u32::from(words.half()) << 12,
                    small => u32::from(small),
                };
                accesses.push(Access::Write(register, value));
            }
            6 => accesses.push(Access::Write(STATUS, words.one_of(&[0, 1, 3, 11, 15, 128, 64]))),
            7 | 8 => accesses.push(Access::Read(words.one_of(&REGISTERS), words.one_of(&[4, 1, 2, 8, 0, 255]))),
            9 => accesses.push(Access::WriteBytes(words.half(), words.piece().to_vec())),
            10 | 11 => accesses.push(Access::Memory(words.word() % MEMORY, words.piece().to_vec())),
            12 => accesses.push(Access::Restore),
            13 => accesses.extend(negotiation(&mut words)),
            _ => accesses.extend(queue(&mut words)),
        }
    }
    fuzzing::registers(device, &accesses);
}

/// A driver that accepts features, as far as it gets.
fn negotiation(words: &mut Words<'_>) -> Vec<Access> {
    let (low, high) = (words.word(), u32::from(words.byte()) | 1);
    let write = |(register, value)| Access::Write(register, value);
    [(STATUS, 0), (STATUS, 1), (STATUS, 3), (0x24, 0), (0x20, low), (0x24, 1), (0x20, high), (STATUS, 11)]
        .map(write)
        .to_vec()
}

/// A driver that sets up a queue, and the last one of which starts the device.
fn queue(words: &mut Words<'_>) -> Vec<Access> {
    let number = u32::from(words.byte() % 4);
    let base = 0x4000 * (number + 1);
    let size = words.one_of(&[8_u32, 128, 16, 1, 64, 0, 3]);
    let mut accesses = vec![Access::Write(0x30, number), Access::Write(0x38, size)];
    accesses.extend([(0x80, base), (0x90, base + 0x1000), (0xa0, base + 0x2000)].map(|(r, v)| Access::Write(r, v)));
    accesses.push(Access::Write(0x44, 1));
    if words.byte() % 2 == 1 {
        accesses.push(Access::Write(STATUS, 15));
    }
    accesses
}

/// A driver that starts each device; then its VM is saved.
fn mmio_seeds() -> Vec<Vec<u8>> {
    let start = |device: u8| {
        let features = [13, 0xff, 0xff, 0xff, 0xff, 1];
        [&[device][..], &features, &[14, 0, 0, 0, 14, 1, 0, 0, 14, 2, 0, 1, 6, 4, 12, 0, 12, 1, 7, 15, 0]].concat()
    };
    let mut seeds: Vec<Vec<u8>> = (0..5).map(start).collect();
    seeds.push((0..=255).collect());
    seeds
}

fn state_seeds() -> Vec<Vec<u8>> {
    vec![fuzzing::saved_state_seed()]
}

fn log_frames(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let mut head = vec![64];
    // An id that has a file, or any bytes.
    let known = words.byte() != 0;
    if known {
        head.extend([b'a'; 64]);
    }
    let mut pieces: Vec<Vec<u8>> = if known { vec![head] } else { Vec::new() };
    while words.more() && pieces.len() < 64 {
        match words.byte() % 4 {
            0 => pieces.push(words.piece().to_vec()),
            1 => {
                let (byte, count) = (words.byte(), 64 * usize::from(words.byte()));
                pieces.push([&[1][..], &(count as u32).to_le_bytes(), &vec![byte; count]].concat());
            }
            _ => {
                let (stream, text) = (words.byte() % 4, words.piece());
                let length = if words.byte() == 255 { words.word() } else { text.len() as u32 };
                pieces.push([&[stream][..], &length.to_le_bytes(), text].concat());
            }
        }
    }
    fuzzing::log_frames(&pieces.iter().map(Vec::as_slice).collect::<Vec<_>>());
}

fn log_seeds() -> Vec<Vec<u8>> {
    let frame = |stream: u8, text: &str| [&[2, stream, text.len() as u8], text.as_bytes(), &[0]].concat();
    vec![
        [vec![1], frame(1, "one line\n"), frame(2, "no end"), frame(1, "\n\n\n"), frame(1, "")].concat(),
        vec![1, 1, b'x', 255, 1, b'x', 255, 1, b'\n', 255, 2, 1, 1, b'\n', 0],
        vec![0, 0, 65, 64, b'a', b'b'],
    ]
}

fn launch_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"api_version":4,"name":"pod","vcpus":2,"vcpus_max":4,"memory_mib":64,"hotplug_mib":128,"kernel_fd":4,"initrd_fd":5,"cmdline":"a=b","control_fd":6,"vsock_fd":7,"exit_fd":8,"kvm_fd":9,"share_fd":10,"mounts_fd":11,"disk_fd":12,"tap_fd":13,"more_tap_fds":[14,15],"restore":{"memory_fd":16,"state_fd":17}}"#,
    ])
}

fn packet_seeds() -> Vec<Vec<u8>> {
    let id = "ab".repeat(32);
    let mut seeds = texts(&[
        r#"{"request":"hello","api_version":4}"#,
        r#"{"request":"plug","serial":"b7.0w","read_only":true}"#,
        r#"{"reply":"status","milestones":{"kernel_loaded_us":1,"vcpu_started_us":2,"agent_started_us":3,"agent_listening_us":4},"vcpu_exits":5,"queue_kicks":6,"interrupts":7,"memory":{"most_mib":8,"requested_mib":2,"plugged_mib":2},"disks":[{"slot":7,"serial":"s","read_only":false}]}"#,
        r#"{"reason":"power_off","detail":"text","at_unix_nanos":-1}"#,
    ]);
    seeds.push(format!(r#"{{"request":"sink","sink":"open","container":"{id}"}}"#).into_bytes());
    seeds
}

//! Each virtio device, driven by a hostile driver over its queues.

use cofferdam_vmm::fuzzing::{Device, Fuse, Step, play};

use super::driver::{Request, steps};
use super::fuse::{Share, in_own_thread, request as fuse_request};
use super::{Target, target};
use crate::words::Words;

pub(super) const BLK: Target = target("virtio_blk", blk, seeds);
pub(super) const NET: Target = target("virtio_net", net, seeds);
pub(super) const VSOCK: Target = target("virtio_vsock", vsock, vsock_seeds);
pub(super) const MEM: Target = target("virtio_mem", mem, seeds);
pub(super) const BALLOON: Target = target("virtio_balloon", balloon, seeds);
pub(super) const RNG: Target = target("virtio_rng", rng, seeds);
pub(super) const FS: Target = target("virtio_fs", fs, seeds);

/// Well-formed requests, then what a driver may do besides. The bytes mean something else for each
/// device.
fn seeds() -> Vec<Vec<u8>> {
    let request = |kind: u8| vec![0, kind, kind, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 16, 1];
    vec![
        [vec![0xff; 9], (0..8).flat_map(request).collect()].concat(),
        [vec![0; 9], (0..16).flat_map(|step| [vec![step, 0], vec![step; 24]].concat()).collect()].concat(),
        [vec![0xff; 9], vec![5, 0, 2, 1, 0, 0, 9, 0, 1, 2, 0, 9, 1, 1, 3, 0, 1, 1, 15, 0, 14, 0, 13, 0]].concat(),
        [vec![0xff; 9], vec![7, 0, 0, 1, 0, 0, 9, 1, 1, 7, 0, 1, 1, 0, 9, 9, 2, 0, 9, 0, 0, 10, 0, 9, 0, 15, 0]]
            .concat(),
    ]
}

fn run(device: Device, words: &mut Words<'_>, request: fn(&mut Words<'_>) -> Request) {
    let features = words.long();
    play(device, features, &steps(words, request));
}

fn blk(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    let read_only = words.byte().is_multiple_of(2);
    run(Device::Blk { read_only }, &mut words, |words| {
        let kind = words.one_of(&[0_u32, 1, 4, 8, 11, 13, 2, 99]);
        let sector = match words.byte() {
            255 => words.long(),
            sector => u64::from(sector),
        };
        let mut out = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        let mut room = Vec::new();
        match kind {
            0 => room.push(512 * u32::from(words.byte() % 16)),
            8 => room.push(20),
            1 => out.extend(vec![words.byte(); 512 * usize::from(words.byte() % 8)]),
            11 | 13 => {
                for _ in 0..words.byte() % 4 {
                    let sectors = if words.byte() == 0 { words.word() } else { u32::from(words.byte()) };
                    out.extend(u64::from(words.half()).to_le_bytes());
                    out.extend(sectors.to_le_bytes());
                    out.extend(u32::from(words.byte() % 4).to_le_bytes());
                }
            }
            _ => out.extend(words.piece()),
        }
        room.push(1);
        Request { queue: 0, out, room }
    });
}

fn net(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    words.byte();
    run(Device::Net, &mut words, |words| {
        let queue = words.byte() % 2;
        if queue == 0 {
            return Request { queue, out: Vec::new(), room: vec![words.one_of(&[1526, 4096, 12, 64, 65_562, 11])] };
        }
        // flags, type of segmentation, then lengths and offsets, and a frame
        let mut out = vec![words.byte() % 8, words.byte() % 8];
        out.extend(words.bytes(10));
        out.extend(words.piece());
        Request { queue, out, room: Vec::new() }
    });
}

/// A packet with a header whose fields are mostly right.
fn packet(words: &mut Words<'_>) -> Vec<u8> {
    let payload = words.piece();
    let length = if words.byte() == 0 { words.word() } else { payload.len() as u32 };
    let guest_port = words.one_of(&[1024_u32, 9000, 9001]);
    let host_port = match words.byte() {
        0 => words.word(),
        1..=127 => 1025, // the log sink
        small => (1 << 30) + u32::from(small % 4),
    };
    let cids: [u64; 2] = if words.byte() == 0 { [words.long(), words.long()] } else { [3, 2] };
    let kind = if words.byte() == 0 { words.half() } else { 1 };
    let op = u16::from(words.byte() % 9);
    [
        &cids[0].to_le_bytes()[..],
        &cids[1].to_le_bytes(),
        &guest_port.to_le_bytes(),
        &host_port.to_le_bytes(),
        &length.to_le_bytes(),
        &kind.to_le_bytes(),
        &op.to_le_bytes(),
        &u32::from(words.byte() % 4).to_le_bytes(),
        &(if words.byte() == 0 { words.word() } else { 0x1_0000 }).to_le_bytes(),
        &(if words.byte() == 0 { words.word() } else { u32::from(words.byte()) }).to_le_bytes(),
        payload,
    ]
    .concat()
}

fn vsock(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    words.byte();
    run(Device::Vsock, &mut words, |words| match words.byte() % 4 {
        0 => Request { queue: 0, out: Vec::new(), room: vec![words.one_of(&[0x1100, 44, 45, 43, 0x4000])] },
        1 => Request { queue: 2, out: Vec::new(), room: vec![4] },
        _ => Request { queue: 1, out: packet(words), room: Vec::new() },
    });
}

/// A daemon that connects, and a guest that answers, beside the others.
fn vsock_seeds() -> Vec<Vec<u8>> {
    let mut connect = vec![0xff; 9];
    for _ in 0..4 {
        connect.extend([0, 0, 0, 0, 0, 1]); // a buffer for the device
    }
    connect.extend([12, 0, 14, 0]);
    connect.extend(b"CONNECT 1024\n");
    connect.extend([0, 2, 5]);
    connect.extend(b"hello");
    connect.extend([1, 0, 200, 1, 1, 2, 0, 1, 1, 1, 44, 1, 12, 0, 3, 0, b'a', b'b']);
    let mut seeds = seeds();
    seeds.push(connect);
    seeds
}

fn mem(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    words.byte();
    run(Device::Mem, &mut words, |words| {
        let kind = u16::from(words.byte() % 5);
        // The region starts at 4 GiB, and has blocks of 2 MiB.
        let address = match words.byte() {
            255 => words.long(),
            block => (4_u64 << 30) + (u64::from(block % 16) << 21),
        };
        let mut out = [&kind.to_le_bytes()[..], &[0; 6], &address.to_le_bytes()].concat();
        out.extend(u16::from(words.byte() % 10).to_le_bytes());
        out.extend([0; 6]);
        Request { queue: 0, out, room: vec![10] }
    });
}

fn balloon(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    words.byte();
    run(Device::Balloon, &mut words, |words| {
        let room = (0..1 + words.byte() % 4).map(|_| 4096 * u32::from(words.byte() % 8)).collect();
        Request { queue: words.byte() % 3, out: Vec::new(), room }
    });
}

fn rng(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    words.byte();
    run(Device::Rng, &mut words, |words| Request {
        queue: 0,
        out: Vec::new(),
        room: vec![u32::from(words.half()), u32::from(words.byte())],
    });
}

fn fs(bytes: &[u8]) {
    in_own_thread(|| {
        let Some(share) = Share::new() else { return };
        let mut words = Words::new(bytes);
        let steps: Vec<(u8, Step)> = steps(&mut words, |words| Request {
            queue: 1,
            out: fuse_request(words, 0),
            room: vec![words.one_of(&[4096, 16, 0, 104, 40])],
        });
        share.before_and_after(|root| Fuse::new(root).expect("a file server").play(&steps));
    });
}

//! From bytes to what a driver does.

use cofferdam_vmm::fuzzing::{DATA, MEMORY, Step};

use crate::words::Words;

/// Lengths that requests and their parts have.
const LENGTHS: [u32; 16] = [0, 1, 4, 10, 12, 16, 24, 40, 44, 512, 1024, 4096, 4400, 8192, 65_535, 131_072];
/// Most steps of one input.
const MOST: usize = 200;
/// Distance of the buffers of requests, and how many of them there are.
const BUFFER: u64 = 0x2000;
const BUFFERS: u8 = 64;

/// A request that a driver without mistakes would send: its queue, what the device reads, and the
/// lengths of what it may write.
pub(super) struct Request {
    pub(super) queue: u8,
    pub(super) out: Vec<u8>,
    pub(super) room: Vec<u32>,
}

/// All steps of an input. `request` makes the requests of a kind of device.
pub(super) fn steps(words: &mut Words<'_>, request: fn(&mut Words<'_>) -> Request) -> Vec<(u8, Step)> {
    let mut steps = Vec::new();
    while words.more() && steps.len() < MOST {
        match words.byte() % 16 {
            0..=4 => {
                let (request, at) = (request(words), buffer(words));
                let mut parts = Vec::new();
                // The first bytes are often a part of their own, and need not be.
                let head = usize::from(words.byte()).min(request.out.len());
                let length = request.out.len() as u32;
                parts.push((at, head as u32, false));
                parts.push((at + head as u64, length - head as u32, false));
                parts.retain(|(_, length, _)| *length > 0);
                let mut to = at + u64::from(length);
                for length in request.room {
                    parts.push((to, length, true));
                    to += u64::from(length);
                }
                steps.push((request.queue, Step::Memory(at, request.out)));
                steps.push((request.queue, Step::Chain(parts)));
                if !words.byte().is_multiple_of(4) {
                    steps.push((request.queue, Step::Serve));
                }
            }
            other => {
                let queue = words.byte();
                steps.push((queue, step(words, other)));
            }
        }
    }
    steps
}

fn step(words: &mut Words<'_>, kind: u8) -> Step {
    match kind {
        5 => {
            let count = 1 + words.byte() % 8;
            Step::Chain((0..count).map(|_| (address(words), length(words), words.byte() % 2 == 1)).collect())
        }
        6 => Step::Memory(address(words), words.piece().to_vec()),
        7 | 8 => Step::Descriptor {
            slot: u16::from(words.byte()),
            address: address(words),
            length: length(words),
            flags: match words.byte() {
                flags @ 0..=15 => u16::from(flags),
                _ => words.half(),
            },
            next: u16::from(words.byte()),
        },
        9 => Step::Offer(match words.byte() {
            255 => words.half(),
            head => u16::from(head),
        }),
        10 => Step::AvailableIndex(words.half()),
        11 => Step::UsedEvent(words.half()),
        12 => Step::Input(words.piece().to_vec()),
        13 => Step::Pause,
        14 => Step::Restart,
        _ => Step::Serve,
    }
}

fn buffer(words: &mut Words<'_>) -> u64 {
    DATA + BUFFER * u64::from(words.byte() % BUFFERS)
}

/// Where a buffer is: mostly where buffers are, sometimes at the edge of memory, in the rings, or
/// nowhere.
pub(super) fn address(words: &mut Words<'_>) -> u64 {
    match words.byte() {
        0..=199 => DATA + 16 * u64::from(words.half()),
        200..=219 => MEMORY - 128 + u64::from(words.byte()),
        220..=239 => u64::from(words.half()),
        _ => words.long(),
    }
}

fn length(words: &mut Words<'_>) -> u32 {
    match words.byte() {
        kind @ 0..=199 => LENGTHS[usize::from(kind) % LENGTHS.len()],
        200..=229 => u32::from(words.half()),
        _ => words.word(),
    }
}

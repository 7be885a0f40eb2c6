//! Random changes of an input, for runs without a coverage-guided fuzzer.

use fastrand::Rng;

/// Bytes that parsers treat in some way of their own.
const SPECIAL: &[u8] = b"\0\x01\x7f\x80\xff\n\r\t \"\\/:=,.{}[]<>-+0123456789";

/// Makes another input out of those of `corpus`, of at most `most` bytes.
pub fn changed(rng: &mut Rng, corpus: &[Vec<u8>], most: usize) -> Vec<u8> {
    let mut bytes = rng.choice(corpus).cloned().unwrap_or_default();
    for _ in 0..rng.usize(1..6) {
        change(rng, &mut bytes, corpus);
    }
    bytes.truncate(most);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.usize(0..=bytes.len());
    let length = rng.usize(0..=16_usize.min(bytes.len() - at));
    match rng.u8(0..7) {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << rng.u8(0..8)),
        1 => bytes.iter_mut().skip(at).take(length).for_each(|byte| *byte = rng.u8(..)),
        2 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = SPECIAL[rng.usize(0..SPECIAL.len())]),
        3 => drop(bytes.drain(at..at + length)),
        4 => {
            let piece: Vec<u8> = (0..rng.usize(1..9)).map(|_| rng.u8(..)).collect();
            drop(bytes.splice(at..at, piece));
        }
        5 => {
            let piece = bytes[at..at + length].to_vec();
            drop(bytes.splice(at..at, piece));
        }
        _ => {
            let other = rng.choice(corpus).map(Vec::as_slice).unwrap_or_default();
            let from = rng.usize(0..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
    }
}

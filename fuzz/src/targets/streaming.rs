//! What clients of exec, attach and port-forward send.

use cofferdam::fuzzing;
use flate2::{Compress, Compression, FlushCompress};

use super::{Target, target};
use crate::words::Words;

pub(super) const SPDY: Target = target("spdy", spdy, spdy_seeds);
pub(super) const WEBSOCKET: Target = target("websocket", websocket, websocket_seeds);

/// Frames of one input.
const MOST: usize = 64;

/// Bytes as they are, or frames whose headers are whole; header blocks are deflated without the
/// dictionary, which inflaters take too.
fn spdy(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    if words.byte().is_multiple_of(2) {
        return fuzzing::spdy(words.rest());
    }
    let mut deflate = Compress::new(Compression::fast(), true);
    let mut frames = Vec::new();
    for _ in 0..MOST {
        if !words.more() {
            break;
        }
        let (flags, stream) = (words.byte() % 3, u32::from(words.byte() % 8));
        match words.byte() % 8 {
            0..=2 => frames.extend(frame(&stream.to_be_bytes(), flags, words.piece())),
            3..=5 => {
                let mut block = vec![0; 10];
                block[..4].copy_from_slice(&stream.to_be_bytes());
                block.extend(headers(&mut deflate, &mut words));
                frames.extend(frame(&[0x80, 3, 0, 1], flags, &block));
            }
            _ => frames.extend(frame(&[0x80, 3, 0, words.byte() % 12], flags, words.piece())),
        }
    }
    fuzzing::spdy(&frames);
}

fn frame(head: &[u8; 4], flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&head[..], &[flags], &length[1..], payload].concat()
}

/// A header block of pairs, or of any bytes.
fn headers(deflate: &mut Compress, words: &mut Words<'_>) -> Vec<u8> {
    let plain = match words.byte() % 4 {
        0 => words.piece().to_vec(),
        1 => vec![words.byte(); 256 * usize::from(words.byte())],
        _ => {
            let value = words.one_of(&["stdin", "stdout", "stderr", "error", "resize", "data", ""]);
            let texts = ["streamtype", value];
            let pair = texts.iter().flat_map(|text| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat());
            [1_u32.to_be_bytes().to_vec(), pair.collect()].concat()
        }
    };
    let mut block = Vec::with_capacity(plain.len() + 64);
    let _ = deflate.compress_vec(&plain, &mut block, FlushCompress::Sync);
    block
}

fn spdy_seeds() -> Vec<Vec<u8>> {
    let open = |stream: u8, kind: u8| vec![0, stream, 3, 2, kind];
    let data = |stream: u8, text: &str| [&[1, stream, 0, text.len() as u8], text.as_bytes()].concat();
    vec![
        [vec![1], open(1, 3), open(3, 0), open(5, 1), data(3, "hello"), data(3, ""), vec![0, 0, 6, 6, 4, 0, 0, 0, 1]]
            .concat(),
        [
            &[0][..],
            &frame(&[0x80, 3, 0, 6], 0, &[0, 0, 0, 9]),
            &frame(&[0, 0, 0, 1], 1, b"x"),
            &frame(&[0x80, 3, 0, 7], 0, &[0; 8]),
        ]
        .concat(),
        vec![1, 0, 1, 3, 1, b'x', 255, 0, 1, 3, 0, 4, 0, 0, 0, 9],
    ]
}

/// Bytes as they are, or masked frames with lengths that are right.
fn websocket(bytes: &[u8]) {
    let mut words = Words::new(bytes);
    if words.byte().is_multiple_of(2) {
        fuzzing::channels(words.rest());
        return fuzzing::websocket(bytes);
    }
    let mut frames = Vec::new();
    for _ in 0..MOST {
        if !words.more() {
            break;
        }
        let head = words.one_of(&[0x82_u8, 0x81, 0x02, 0x80, 0x00, 0x88, 0x89, 0x8a, 0xf2, 0x83]);
        let payload = words.piece();
        let length = payload.len() as u8;
        frames.push(head);
        match length {
            0..126 => frames.push(0x80 | length),
            _ => frames.extend([0x80 | 126, 0, length]),
        }
        frames.extend([0; 4]);
        frames.extend(payload);
    }
    fuzzing::websocket(&frames);
}

fn websocket_seeds() -> Vec<Vec<u8>> {
    let message = |kind: u8, text: &[u8]| [&[kind, text.len() as u8], text].concat();
    vec![
        [vec![1], message(0, b"\x00hello"), message(6, b"ping"), message(1, b"0aGVsbG8="), message(5, b"\x03\xe8bye")]
            .concat(),
        [
            vec![1],
            message(2, b"\x01first"),
            message(3, b"second"),
            message(0, &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ]
        .concat(),
        b"\x000aGVsbG8=".to_vec(),
        vec![0x82, 0x85, 1, 2, 3, 4, 9, 9, 9, 9, 9],
    ]
}

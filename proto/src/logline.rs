//! The CRI log file format: `2026-01-02T03:04:05.123456789Z stdout F text\n`.
//!
//! A line longer than [`MAX_LINE`] is split; each part but the last is marked `P` (partial), the last `F` (full).
//! Specification: Kubernetes CRI, "Container logging".

use crate::sink::Stream;

/// Longest text of one record, bytes.
pub const MAX_LINE: usize = 16 * 1024;

/// Splits one output stream of a container into records.
///
/// Holds at most [`MAX_LINE`] bytes of an unfinished line.
#[derive(Debug)]
pub struct LineSplitter {
    stream: Stream,
    pending: Vec<u8>,
}

impl LineSplitter {
    /// An empty splitter for `stream`.
    pub fn new(stream: Stream) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Appends to `out` the records that `data` completes, dated `now` (see [`timestamp`]).
    pub fn push(&mut self, data: &[u8], now: &str, out: &mut Vec<u8>) {
        let mut rest = data;
        while !rest.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &rest[..rest.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    self.emit(&rest[..end], now, b'F', out);
                    rest = &rest[end + 1..];
                }
                None if window.len() == room && rest.len() > room && rest[room] != b'\n' => {
                    self.emit(window, now, b'P', out);
                    rest = &rest[room..];
                }
                None if window.len() == room && rest.len() > room => {
                    self.emit(window, now, b'F', out);
                    rest = &rest[room + 1..];
                }
                None => {
                    self.pending.extend_from_slice(window);
                    rest = &rest[window.len()..];
                }
            }
        }
    }

    /// The stream ended: writes what is pending as a partial record, as containerd does.
    pub fn finish(&mut self, now: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.emit(&[], now, b'P', out);
        }
    }

    fn emit(&mut self, tail: &[u8], now: &str, tag: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(now.as_bytes());
        out.extend_from_slice(match self.stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        out.push(tag);
        out.push(b' ');
        out.append(&mut self.pending);
        out.extend_from_slice(tail);
        out.push(b'\n');
    }
}

/// The node's present time as the format wants it: RFC 3339 with nine digits, UTC.
pub fn timestamp() -> String {
    format!("{:.9}", jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(log: &[u8]) -> Vec<(u8, Vec<u8>)> {
        log.split_inclusive(|b| *b == b'\n')
            .map(|l| {
                let l = l.strip_prefix(b"T stdout ").unwrap();
                (l[0], l[2..l.len() - 1].to_vec())
            })
            .collect()
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_full_record() {
        let mut s = LineSplitter::new(Stream::Stdout);
        let mut out = Vec::new();
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        s.push(&line, "T", &mut out);
        assert_eq!(texts(&out), vec![(b'F', vec![b'x'; MAX_LINE])]);
    }

    #[test]
    fn timestamps_have_nine_digits() {
        let t = timestamp();
        assert_eq!(t.len(), "2026-01-02T03:04:05.123456789Z".len(), "{t}");
    }

    proptest! {
        /// However the bytes are cut into pushes, the file holds them all, in order, in bounded records.
        #[test]
        fn nothing_is_lost(parts in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![4 => Just(b'a'), 1 => Just(b'\n')], 0..9000), 0..8)) {
            let mut s = LineSplitter::new(Stream::Stdout);
            let mut out = Vec::new();
            for p in &parts { s.push(p, "T", &mut out); }
            s.finish("T", &mut out);
            let mut back = Vec::new();
            for (tag, text) in texts(&out) {
                prop_assert!(text.len() <= MAX_LINE);
                back.extend_from_slice(&text);
                if tag == b'F' { back.push(b'\n'); }
            }
            prop_assert_eq!(back, parts.concat());
        }
    }
}

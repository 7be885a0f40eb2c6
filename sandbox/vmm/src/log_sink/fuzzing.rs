//! The parser of a guest's output without its thread, for the fuzz targets.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use cofferdam_proto::logline::MAX_LINE;
use rustix::fs::{MemfdFlags, memfd_create};

use super::ID_LENGTH;
use super::file::LogFile;
use super::stream::{Files, Parser};

/// Bytes of a record before its text: time, stream, F or P.
const BEFORE_TEXT: usize = 64;

/// Has a connection say `pieces`, one after the other, for the container whose id is 64 times `a`.
///
/// # Panics
/// When the log has something that is not a record, or bytes were lost on the way.
pub fn log_frames(pieces: &[&[u8]]) {
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).expect("a memfd"));
    let log = LogFile::new(OwnedFd::from(file.try_clone().expect("a descriptor"))).expect("a regular file");
    let mut files = Files::from([("a".repeat(ID_LENGTH), log)]);
    let mut parser = Parser::new();
    let whole = pieces.iter().all(|piece| {
        let taken = parser.take(piece, &mut files);
        // With a file, all of it; without one, no more than the header of the connection.
        taken.is_ok_and(|taken| taken <= piece.len())
    });
    if whole {
        parser.finish(&mut files);
    }
    check(&file);
}

fn check(log: &File) {
    let length = log.metadata().expect("it is open").len() as usize;
    let mut bytes = vec![0; length];
    log.read_exact_at(&mut bytes, 0).expect("it is open");
    assert!(bytes.is_empty() || bytes.ends_with(b"\n"), "a record has no end");
    for record in bytes.split(|byte| *byte == b'\n').filter(|record| !record.is_empty()) {
        assert!(record.len() <= BEFORE_TEXT + MAX_LINE, "a record of {} bytes", record.len());
        let mut words = record.splitn(4, |byte| *byte == b' ');
        let (time, stream, tag) = (words.next(), words.next(), words.next());
        assert!(time.is_some_and(|time| time.ends_with(b"Z")), "a record begins with no time");
        assert!(matches!(stream, Some(b"stdout" | b"stderr")) && matches!(tag, Some(b"F" | b"P")), "no record");
    }
}

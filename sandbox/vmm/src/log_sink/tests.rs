use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::stream::{Files, Parser};
use super::*;

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn open(files: &mut Files, file: &File) {
    files.insert(ID.into(), LogFile::new(file.try_clone().unwrap().into()).unwrap());
}

fn header() -> Vec<u8> {
    [&[64][..], ID.as_bytes()].concat()
}

fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
    [&[stream][..], &(text.len() as u32).to_le_bytes(), text].concat()
}

/// The records of `file` without their dates.
fn records(file: &File) -> Vec<String> {
    let mut file = file.try_clone().unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

#[test]
fn both_streams_become_records_in_order() {
    let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
    open(&mut files, &file);
    let mut stream = Parser::new();
    let bytes = [header(), frame(1, b"one\ntw"), frame(2, b"error\n"), frame(1, b"o\nrest")].concat();
    assert_eq!(stream.take(&bytes, &mut files).unwrap(), bytes.len());
    assert!(stream.is_of(ID));
    stream.finish(&mut files);
    assert_eq!(records(&file), ["stdout F one", "stderr F error", "stdout F two", "stdout P rest"]);
}

#[test]
fn output_waits_for_its_file() {
    let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
    let mut stream = Parser::new();
    let frames = frame(1, b"early\n");
    assert_eq!(stream.take(&[header(), frames.clone()].concat(), &mut files).unwrap(), 65, "the header only");
    assert_eq!(stream.take(&frames, &mut files).unwrap(), 0);
    open(&mut files, &file);
    assert_eq!(stream.take(&frames, &mut files).unwrap(), frames.len());
    assert_eq!(records(&file), ["stdout F early"]);
}

#[test]
fn a_new_file_takes_over_between_records() {
    let (mut files, first, second) = (Files::new(), tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    open(&mut files, &first);
    let mut stream = Parser::new();
    stream.take(&[header(), frame(1, b"a\nb")].concat(), &mut files).unwrap();
    open(&mut files, &second);
    stream.take(&frame(1, b"c\nd\n"), &mut files).unwrap();
    assert_eq!(records(&first), ["stdout F a"]);
    assert_eq!(records(&second), ["stdout F bc", "stdout F d"]);
}

#[test]
fn what_a_guest_must_not_send_is_refused() {
    let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
    open(&mut files, &file);
    for bad in [
        vec![63],
        [&[64][..], "../../../../etc/passwd".repeat(3).as_bytes()].concat(),
        [&[64][..], ID.to_uppercase().as_bytes()].concat(),
        [header(), frame(0, b"x")].concat(),
        [header(), frame(3, b"x")].concat(),
        [header(), frame(1, b"")].concat(),
        [header(), vec![1, 1, 0, 1, 0]].concat(), // 65537
        [header(), vec![1, 0xff, 0xff, 0xff, 0xff]].concat(),
    ] {
        assert!(Parser::new().take(&bad, &mut files).is_err(), "{bad:?}");
    }
    assert_eq!(records(&file), Vec::<String>::new());
}

#[test]
fn requests_are_checked() {
    let mut sink = LogSink::new().unwrap();
    let container = ID.to_owned();
    let text = |result: Result<Ticket, SinkError>| result.err().unwrap().to_string();
    let open = SinkRequest::Open { container: container.clone() };
    assert!(text(sink.request(&open, None)).contains("without a file"));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert!(text(sink.request(&open, Some(pipe))).contains("regular file"));
    let odd = SinkRequest::Open { container: "../x".into() };
    assert!(text(sink.request(&odd, None)).contains("hex digits"));
    let ticket = sink.request(&SinkRequest::Close { container }, None).unwrap();
    sink.wait_idle();
    assert!(ticket.is_done());
}

/// A pipe that nobody reads, full.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let size = rustix::pipe::fcntl_getpipe_size(&writer).unwrap();
    assert_eq!(rustix::io::write(&writer, &vec![b'.'; size]).unwrap(), size);
    (reader, writer)
}

#[test]
fn a_disk_that_does_not_answer_holds_up_nobody_who_asks() {
    let mut sink = LogSink::new().unwrap();
    let (reader, writer) = full_pipe();
    sink.open_unchecked(ID, writer);
    let stream = sink.stream(16).unwrap();
    stream.push(&[header(), frame(1, b"one\n")].concat());
    while !lock(&sink.shared.state).is_writing() {
        std::thread::yield_now();
    }
    let file = tempfile::tempfile().unwrap();
    let open = SinkRequest::Open { container: ID.into() };
    let fd = || Some(file.try_clone().unwrap().into());
    let mut tickets: Vec<Ticket> = std::iter::from_fn(|| sink.request(&open, fd()).ok()).take(1000).collect();
    assert_eq!(tickets.len(), MAX_REQUESTS);
    assert!(sink.request(&open, fd()).err().unwrap().to_string().contains("does not answer"));
    stream.push(&frame(1, b"two\nthree"));
    drop(stream);
    assert_eq!((sink.count(), sink.take_moved()), (1, vec![]), "what is gone is still to be written");
    let last = tickets.pop().unwrap();
    assert!(!last.is_done());
    // The disk answers.
    let mut read = File::from(reader);
    let mut text = vec![0; 1 << 20];
    while sink.count() > 0 || !last.is_done() {
        let _ = read.read(&mut text).unwrap();
        sink.wait_idle();
    }
    sink.finish();
    assert_eq!(records(&file), ["stdout F two", "stdout P three"], "after the requests, and before the end");
}

#[test]
fn a_full_disk_loses_lines_but_never_joins_two() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert!(LogFile::new(full.into()).is_none(), "a device is no log");
    let null = File::options().write(true).open("/dev/null").unwrap();
    assert!(LogFile::new(null.into()).is_some(), "a container without a log writes nowhere");
    // A file that may not be written at all: output is dropped, the stream goes on.
    let path = tempfile::NamedTempFile::new().unwrap();
    let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
    open(&mut files, &File::open(path.path()).unwrap());
    let mut stream = Parser::new();
    stream.take(&[header(), frame(1, b"lost\n")].concat(), &mut files).unwrap();
    open(&mut files, &file);
    stream.take(&frame(1, b"kept\n"), &mut files).unwrap();
    assert_eq!(records(&file), ["stdout F kept"]);
}

proptest! {
    /// However the bytes are cut, the same records come out.
    #[test]
    fn cuts_change_nothing(texts in prop::collection::vec((1..3_u8, prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 1..300)), 1..6),
                           cuts in prop::collection::vec(1..90_usize, 1..40)) {
        let bytes: Vec<u8> = std::iter::once(header()).chain(texts.iter().map(|(stream, text)| frame(*stream, text))).flatten().collect();
        let mut outputs = Vec::new();
        for cut in [vec![bytes.len()], cuts] {
            let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
            open(&mut files, &file);
            let mut stream = Parser::new();
            let (mut rest, mut number) = (&bytes[..], 0);
            while !rest.is_empty() {
                let (piece, other) = rest.split_at(cut[number % cut.len()].min(rest.len()));
                prop_assert_eq!(stream.take(piece, &mut files).unwrap(), piece.len());
                rest = other;
                number += 1;
            }
            stream.finish(&mut files);
            outputs.push(records(&file));
        }
        prop_assert_eq!(&outputs[0], &outputs[1]);
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), valid: bool) {
        let (mut files, file) = (Files::new(), tempfile::tempfile().unwrap());
        open(&mut files, &file);
        let mut stream = Parser::new();
        if valid { stream.take(&header(), &mut files).unwrap(); }
        let _ = stream.take(&bytes, &mut files);
        stream.finish(&mut files);
    }
}

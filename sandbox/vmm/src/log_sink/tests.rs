use std::fs::File;
use std::io::{Read, Seek};

use proptest::prelude::*;

use super::*;

const ID: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn open(sink: &mut LogSink, file: &File) {
    let fd = Some(file.try_clone().unwrap().into());
    sink.request(&SinkRequest::Open { container: ID.into() }, fd).unwrap();
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
    let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
    open(&mut sink, &file);
    let mut stream = sink.stream();
    let bytes = [header(), frame(1, b"one\ntw"), frame(2, b"error\n"), frame(1, b"o\nrest")].concat();
    assert_eq!(stream.take(&bytes).unwrap(), bytes.len());
    assert!(stream.is_of(ID));
    stream.finish();
    stream.finish();
    assert_eq!(records(&file), ["stdout F one", "stderr F error", "stdout F two", "stdout P rest"]);
}

#[test]
fn output_waits_for_its_file() {
    let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
    let mut stream = sink.stream();
    let frames = frame(1, b"early\n");
    assert_eq!(stream.take(&[header(), frames.clone()].concat()).unwrap(), 65, "the header only");
    assert_eq!(stream.take(&frames).unwrap(), 0);
    open(&mut sink, &file);
    assert_eq!(stream.take(&frames).unwrap(), frames.len());
    assert_eq!(records(&file), ["stdout F early"]);
}

#[test]
fn a_new_file_takes_over_between_records() {
    let (mut sink, first, second) = (LogSink::new(), tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    open(&mut sink, &first);
    let mut stream = sink.stream();
    stream.take(&[header(), frame(1, b"a\nb")].concat()).unwrap();
    open(&mut sink, &second);
    stream.take(&frame(1, b"c\nd\n")).unwrap();
    assert_eq!(records(&first), ["stdout F a"]);
    assert_eq!(records(&second), ["stdout F bc", "stdout F d"]);
}

#[test]
fn what_a_guest_must_not_send_is_refused() {
    let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
    open(&mut sink, &file);
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
        assert!(sink.stream().take(&bad).is_err(), "{bad:?}");
    }
    assert_eq!(records(&file), Vec::<String>::new());
}

#[test]
fn requests_are_checked() {
    let mut sink = LogSink::new();
    let container = ID.to_owned();
    let text = |result: Result<(), SinkError>| result.unwrap_err().to_string();
    let open = SinkRequest::Open { container: container.clone() };
    assert!(text(sink.request(&open, None)).contains("without a file"));
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert!(text(sink.request(&open, Some(pipe))).contains("regular file"));
    let odd = SinkRequest::Open { container: "../x".into() };
    assert!(text(sink.request(&odd, None)).contains("hex digits"));
    sink.request(&SinkRequest::Close { container }, None).unwrap();
}

#[test]
fn a_full_disk_loses_lines_but_never_joins_two() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert!(LogFile::new(full.into()).is_none(), "a device is no log");
    let null = File::options().write(true).open("/dev/null").unwrap();
    assert!(LogFile::new(null.into()).is_some(), "a container without a log writes nowhere");
    // A file that may not be written at all: output is dropped, the stream goes on.
    let path = tempfile::NamedTempFile::new().unwrap();
    let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
    let read_only = Some(File::open(path.path()).unwrap().into());
    sink.request(&SinkRequest::Open { container: ID.into() }, read_only).unwrap();
    let mut stream = sink.stream();
    stream.take(&[header(), frame(1, b"lost\n")].concat()).unwrap();
    open(&mut sink, &file);
    stream.take(&frame(1, b"kept\n")).unwrap();
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
            let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
            open(&mut sink, &file);
            let mut stream = sink.stream();
            let (mut rest, mut number) = (&bytes[..], 0);
            while !rest.is_empty() {
                let (piece, other) = rest.split_at(cut[number % cut.len()].min(rest.len()));
                prop_assert_eq!(stream.take(piece).unwrap(), piece.len());
                rest = other;
                number += 1;
            }
            stream.finish();
            outputs.push(records(&file));
        }
        prop_assert_eq!(&outputs[0], &outputs[1]);
    }

    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), valid: bool) {
        let (mut sink, file) = (LogSink::new(), tempfile::tempfile().unwrap());
        open(&mut sink, &file);
        let mut stream = sink.stream();
        if valid { stream.take(&header()).unwrap(); }
        let _ = stream.take(&bytes);
        stream.finish();
    }
}

//! What one connection of the guest's says: header, then frames.

use std::collections::HashMap;
use std::io;

use cofferdam_proto::logline::{self, LineSplitter};
use cofferdam_proto::sink::{MAX_FRAME, Stream};

use super::file::LogFile;
use super::{ID_LENGTH, is_id};

/// Output that is split at once: a record of an empty line is some 45 times its size.
const PIECE: usize = 4096;
/// `u8 stream | u32 length`.
const FRAME_HEADER: usize = 5;

/// The files, by container.
pub(super) type Files = HashMap<String, LogFile>;

/// A connection's parser, and its unfinished lines.
pub(super) struct Parser {
    state: State,
    container: String,
    stdout: LineSplitter,
    stderr: LineSplitter,
}

/// What comes next.
enum State {
    /// The length of the id.
    Length,
    /// The id, so far.
    Id(Vec<u8>),
    /// A frame's header, so far.
    Header(Vec<u8>),
    /// This many bytes of a frame.
    Payload(Stream, usize),
}

impl Parser {
    pub(super) fn new() -> Self {
        Self {
            state: State::Length,
            container: String::new(),
            stdout: LineSplitter::new(Stream::Stdout),
            stderr: LineSplitter::new(Stream::Stderr),
        }
    }

    /// Whether it carries the output of `container`.
    pub(super) fn is_of(&self, container: &str) -> bool {
        self.container == container
    }

    /// Takes what it can: everything, or only the header while the container has no file. Answers how many bytes.
    ///
    /// # Errors
    /// When the guest does not keep to the format; the connection is to be closed.
    pub(super) fn take(&mut self, bytes: &[u8], files: &mut Files) -> io::Result<usize> {
        let mut rest = bytes;
        let mut now = None;
        while !rest.is_empty() {
            let used = match &mut self.state {
                State::Length | State::Id(_) => self.header(rest)?,
                State::Header(header) => {
                    if !files.contains_key(&self.container) {
                        break; // the guest waits for the file
                    }
                    let used = rest.len().min(FRAME_HEADER - header.len());
                    header.extend_from_slice(&rest[..used]);
                    if let Ok(header) = <[u8; FRAME_HEADER]>::try_from(&header[..]) {
                        self.state = frame(header)?;
                    }
                    used
                }
                State::Payload(stream, left) => {
                    let (stream, used) = (*stream, rest.len().min(*left).min(PIECE));
                    *left -= used;
                    if *left == 0 {
                        self.state = State::Header(Vec::with_capacity(FRAME_HEADER));
                    }
                    let now = now.get_or_insert_with(logline::timestamp);
                    self.write(stream, &rest[..used], now, files);
                    used
                }
            };
            rest = &rest[used..];
        }
        Ok(bytes.len() - rest.len())
    }

    /// The id.
    fn header(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.state {
            State::Length if usize::from(bytes[0]) == ID_LENGTH => {
                self.state = State::Id(Vec::with_capacity(ID_LENGTH));
                Ok(1)
            }
            State::Id(id) => {
                let used = bytes.len().min(ID_LENGTH - id.len());
                id.extend_from_slice(&bytes[..used]);
                if id.len() == ID_LENGTH {
                    if !is_id(id) {
                        return Err(malformed("a container id that is none"));
                    }
                    self.container = String::from_utf8_lossy(id).into_owned();
                    self.state = State::Header(Vec::with_capacity(FRAME_HEADER));
                }
                Ok(used)
            }
            _ => Err(malformed("an id of another length")),
        }
    }

    fn write(&mut self, stream: Stream, bytes: &[u8], now: &str, files: &mut Files) {
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let mut records = Vec::new();
        splitter.push(bytes, now, &mut records);
        if !records.is_empty()
            && let Some(file) = files.get_mut(&self.container)
        {
            file.append(&self.container, &records);
        }
    }

    /// The connection is over: unfinished lines are written as they are.
    pub(super) fn finish(&mut self, files: &mut Files) {
        let now = logline::timestamp();
        let mut records = Vec::new();
        self.stdout.finish(&now, &mut records);
        self.stderr.finish(&now, &mut records);
        if let Some(file) = files.get_mut(&self.container) {
            file.append(&self.container, &records);
        }
    }
}

/// What a frame's header announces.
fn frame(header: [u8; FRAME_HEADER]) -> io::Result<State> {
    let [stream, a, b, c, d] = header;
    let stream = match stream {
        1 => Stream::Stdout,
        2 => Stream::Stderr,
        _ => return Err(malformed("a frame of no stream")),
    };
    match u32::from_le_bytes([a, b, c, d]) as usize {
        length @ 1..=MAX_FRAME => Ok(State::Payload(stream, length)),
        _ => Err(malformed("a frame out of bounds")),
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

//! Connections to the sink and the writer's work, under the lock of [`super::writer::Shared`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::TOLD_AFTER;
use super::file::LogFile;
use super::stream::Parser;

/// What is to be written, and what became of it.
#[derive(Default)]
pub(super) struct State {
    work: VecDeque<Work>,
    streams: HashMap<u64, Stream>,
    last: u64,
    /// Connections that can go on, or are over.
    pub(super) moved: Vec<u32>,
    /// Requests that wait or are carried out.
    pub(super) requests: usize,
    /// The writer ends when there is no work.
    pub(super) stopping: bool,
}

enum Work {
    Stream(u64),
    Change(Change),
}

/// What the writer is to do.
pub(super) enum Job {
    Stream(u64, Output),
    Change(Change),
}

/// A container's new file, or none any more.
pub(super) struct Change {
    pub(super) container: String,
    pub(super) file: Option<LogFile>,
    /// Set when it is done.
    pub(super) done: Arc<AtomicBool>,
}

/// What the writer takes of a connection.
pub(super) struct Output {
    pub(super) parser: Parser,
    pub(super) bytes: Vec<u8>,
    /// They are the last ones.
    pub(super) ends: bool,
}

/// A connection as the writer sees it.
pub(super) struct Stream {
    token: u32,
    /// The writer has it while it is at this connection.
    parser: Option<Parser>,
    bytes: Vec<u8>,
    /// The guest sends no more.
    ends: bool,
    /// The connection is gone: nobody waits for what becomes of this.
    forgotten: bool,
    queued: bool,
    /// Bytes that were taken since the main thread was told.
    untold: usize,
    progress: Progress,
}

/// How far a connection's output is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    /// Bytes in all.
    pub(crate) taken: u32,
    /// Bytes that wait.
    pub(crate) waiting: usize,
    /// It is over.
    pub(crate) end: Option<StreamEnd>,
}

/// How a connection to the sink ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// Everything is written, unfinished lines too.
    Whole,
    /// The guest did not keep to the format, or the daemon closed the log.
    Broken,
}

impl State {
    /// How many connections there are, those included whose rest is still to be written.
    pub(super) fn count(&self) -> usize {
        self.streams.len()
    }

    /// Whether the writer has nothing to do.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let nothing_waits = self.requests == 0 && self.work.is_empty();
        nothing_waits && self.streams.values().all(|stream| stream.parser.is_some())
    }

    /// Whether the writer is at a connection.
    #[cfg(test)]
    pub(super) fn is_writing(&self) -> bool {
        self.streams.values().any(|stream| stream.parser.is_none())
    }

    /// A new connection; its `token` is told when it can go on.
    pub(super) fn add(&mut self, token: u32) -> u64 {
        self.last += 1;
        let stream = Stream {
            token,
            parser: Some(Parser::new()),
            bytes: Vec::new(),
            ends: false,
            forgotten: false,
            queued: false,
            untold: 0,
            progress: Progress::default(),
        };
        self.streams.insert(self.last, stream);
        self.last
    }

    /// Changes a connection; answers how far it is, and whether that makes work.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut Changing<'_>)) -> (Progress, bool) {
        let Some(stream) = self.streams.get_mut(&number) else { return (Progress::default(), false) };
        let mut changing = Changing { stream, changed: false };
        change(&mut changing);
        let (changed, progress) = (changing.changed, stream.progress);
        let work = changed && progress.end.is_none();
        if stream.forgotten && progress.end.is_some() {
            self.streams.remove(&number);
        } else if work {
            self.enqueue(number);
        }
        (progress, work)
    }

    /// Adds a request of the daemon.
    pub(super) fn request(&mut self, change: Change) {
        self.requests += 1;
        self.work.push_back(Work::Change(change));
    }

    /// What is to be done next.
    pub(super) fn next(&mut self) -> Option<Job> {
        loop {
            match self.work.pop_front()? {
                Work::Change(change) => return Some(Job::Change(change)),
                Work::Stream(number) => {
                    if let Some(output) = self.check_out(number) {
                        return Some(Job::Stream(number, output));
                    }
                }
            }
        }
    }

    /// The writer is done with a connection for now; answers whether the main thread is to look.
    pub(super) fn served(&mut self, number: u64, parser: Parser, took: impl FnOnce(&mut Stream)) -> bool {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.parser = Some(parser);
            took(stream);
        }
        self.tell(number)
    }

    /// A request is done. Connections that waited for a file may have one now; those of a container
    /// that was `closed` are over. Answers whether the main thread is to look at some.
    pub(super) fn done(&mut self, closed: Option<&str>) -> bool {
        self.requests -= 1;
        let mut tells = false;
        let numbers: Vec<u64> = self.streams.keys().copied().collect();
        for number in numbers {
            let Some(stream) = self.streams.get_mut(&number) else { continue };
            let of = |parser: &Parser| closed.is_some_and(|closed| parser.is_of(closed));
            if stream.parser.as_ref().is_some_and(of) {
                stream.progress.end.get_or_insert(StreamEnd::Broken);
                tells |= self.tell(number);
            } else if closed.is_none() && stream.progress.waiting > 0 {
                self.enqueue(number);
            }
        }
        tells
    }

    fn enqueue(&mut self, number: u64) {
        if let Some(stream) = self.streams.get_mut(&number)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.work.push_back(Work::Stream(number));
        }
    }

    fn check_out(&mut self, number: u64) -> Option<Output> {
        let stream = self.streams.get_mut(&number)?;
        stream.queued = false;
        if stream.progress.end.is_some() {
            return None;
        }
        let parser = stream.parser.take()?;
        Some(Output { parser, bytes: std::mem::take(&mut stream.bytes), ends: stream.ends })
    }

    /// Notes that the main thread is to look at a connection, if there is a reason. Drops one that
    /// is gone and cannot go on.
    fn tell(&mut self, number: u64) -> bool {
        let Some(stream) = self.streams.get_mut(&number) else { return false };
        let over = stream.progress.end.is_some();
        if stream.forgotten {
            if over || !stream.queued {
                self.streams.remove(&number);
            }
            return false;
        }
        let tells = over || stream.untold >= TOLD_AFTER;
        if tells {
            stream.untold = 0;
            self.moved.push(stream.token);
        }
        tells
    }
}

impl Stream {
    /// Of `bytes` so many were `taken`, or they are malformed; `whole` when they were the last
    /// ones.
    pub(super) fn took(&mut self, mut bytes: Vec<u8>, taken: io::Result<usize>, whole: bool) {
        let Ok(count) = taken else {
            self.bytes = Vec::new();
            self.progress.end = Some(StreamEnd::Broken);
            return;
        };
        let mut left = bytes.split_off(count);
        left.append(&mut self.bytes);
        self.bytes = left;
        self.untold += count;
        self.progress.waiting -= count;
        self.progress.taken = self.progress.taken.wrapping_add(count as u32);
        if whole {
            self.progress.end = Some(StreamEnd::Whole);
        }
    }
}

/// What the main thread may change of a connection.
pub(super) struct Changing<'a> {
    stream: &'a mut Stream,
    changed: bool,
}

impl Changing<'_> {
    /// Adds what the guest sent.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.stream.bytes.extend_from_slice(bytes);
        self.stream.progress.waiting += bytes.len();
        self.changed = true;
    }

    /// The guest sends no more.
    pub(super) fn end(&mut self) {
        self.changed |= !std::mem::replace(&mut self.stream.ends, true);
    }

    /// The connection is gone; what it sent is still written.
    pub(super) fn forget(&mut self) {
        self.stream.forgotten = true;
        self.stream.ends = true;
        self.changed = true;
    }
}

//! One connection, as far as it needs neither queues nor the event loop.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::Shutdown;

use super::header::{Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{BUF_ALLOC, HOST_CID};
use crate::log_sink::{LogStream, StreamEnd, TOLD_AFTER};

/// The sink tells soon enough for the guest to be given new credit.
const _: () = assert!(TOLD_AFTER <= BUF_ALLOC as usize / 2);

/// Longest line `CONNECT <port>\n`.
const MAX_GREETING: usize = 32;

/// The two ports by which a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// On the node's side.
    pub(super) host_port: u32,
    /// On the guest's side.
    pub(super) guest_port: u32,
}

/// What is at the node's end.
pub(super) enum Peer {
    /// A socket of the daemon's.
    Socket(OwnedFd),
    /// A log, which another thread writes.
    Log(LogStream),
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// REQUEST was or will be sent; waits for the guest's answer.
    Requested,
    /// Data may flow.
    Open,
    /// The guest is done with it (RST, or SHUTDOWN of both directions): what it sent before is still to be delivered.
    Draining,
}

/// A connection of either side.
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) peer: Peer,
    pub(super) phase: Phase,
    /// Control packets that wait for a receive buffer, in the order in which they are sent.
    pub(super) send_request: bool,
    pub(super) send_response: bool,
    pub(super) send_credit: bool,
    /// The guest was asked for credit, and has not answered yet.
    asked: bool,
    /// SHUTDOWN flags to send.
    pub(super) send_shutdown: u32,
    /// The socket has (or may have) data or its end.
    pub(super) readable: bool,
    /// The socket said that its other end is closed for good.
    pub(super) hung_up: bool,
    /// No more is read from the socket: it ended, or the guest takes no more.
    pub(super) read_done: bool,
    /// The guest sends no more.
    pub(super) guest_sent_all: bool,
    /// The token is in the list of connections with work.
    pub(super) queued: bool,
    /// From the guest, not yet taken by the socket; at most [`BUF_ALLOC`].
    inbound: Vec<u8>,
    /// Bytes that the peer took.
    taken: u32,
    /// What the guest was last told of `taken`.
    told: u32,
    /// Bytes sent to the guest, and what it said of its buffer.
    sent: u32,
    guest_alloc: u32,
    guest_taken: u32,
}

impl Connection {
    pub(super) fn new(key: Key, peer: Peer, phase: Phase) -> Self {
        Self {
            key,
            peer,
            phase,
            send_request: false,
            send_response: false,
            send_credit: false,
            asked: false,
            send_shutdown: 0,
            readable: false,
            hung_up: false,
            read_done: false,
            guest_sent_all: false,
            queued: false,
            inbound: Vec::new(),
            taken: 0,
            told: 0,
            sent: 0,
            guest_alloc: 0,
            guest_taken: 0,
        }
    }

    /// A packet to the guest, with the node's credit in it.
    pub(super) fn packet(&mut self, guest_cid: u64, op: u16, flags: u32, len: u32) -> Header {
        self.told = self.taken;
        self.send_credit = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.taken,
        }
    }

    /// Remembers the guest's credit.
    pub(super) fn credit(&mut self, header: &Header) {
        self.guest_alloc = header.buf_alloc;
        self.guest_taken = header.fwd_cnt;
        self.asked = false;
    }

    /// Whether to ask the guest for credit now: data waits, there is none, and it was not asked before.
    pub(super) fn ask_for_credit(&mut self) -> bool {
        let stalled = self.phase == Phase::Open && self.readable && !self.read_done && self.room() == 0;
        stalled && !std::mem::replace(&mut self.asked, true)
    }

    /// Bytes that the guest has room for.
    pub(super) fn room(&self) -> usize {
        let under_way = self.sent.wrapping_sub(self.guest_taken);
        self.guest_alloc.saturating_sub(under_way) as usize
    }

    /// `count` bytes were sent to the guest.
    pub(super) fn sent(&mut self, count: usize) {
        self.sent = self.sent.wrapping_add(count as u32);
    }

    /// Whether the guest may send `count` bytes now.
    pub(super) fn may_take(&self, count: usize) -> bool {
        self.waiting() + count <= BUF_ALLOC as usize
    }

    /// Takes bytes from the guest; [`Self::deliver`] passes them on.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        match &self.peer {
            Peer::Socket(_) => self.inbound.extend_from_slice(bytes),
            Peer::Log(log) => log.push(bytes),
        }
    }

    /// Bytes from the guest that the peer did not take so far.
    fn waiting(&self) -> usize {
        match &self.peer {
            Peer::Socket(_) => self.inbound.len(),
            Peer::Log(log) => log.progress().waiting,
        }
    }

    /// Whether everything that the guest sent was delivered.
    pub(super) fn delivered(&self) -> bool {
        self.waiting() == 0
    }

    /// Passes on what the peer takes now. An error ends the connection.
    pub(super) fn deliver(&mut self) -> io::Result<()> {
        let mut done = 0;
        let result = match &mut self.peer {
            Peer::Socket(socket) => loop {
                if done == self.inbound.len() {
                    break Ok(());
                }
                match rustix::net::send(&*socket, &self.inbound[done..], rustix::net::SendFlags::NOSIGNAL) {
                    Ok(count) => done += count,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break Ok(()),
                    Err(error) => break Err(error.into()),
                }
            },
            Peer::Log(log) => {
                let progress = log.progress();
                done = progress.taken.wrapping_sub(self.taken) as usize;
                let broken = progress.end == Some(StreamEnd::Broken);
                if broken { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
            }
        };
        self.inbound.drain(..done.min(self.inbound.len()));
        if self.inbound.is_empty() {
            self.inbound = Vec::new(); // an idle connection holds no memory
        }
        self.taken = self.taken.wrapping_add(done as u32);
        if self.phase == Phase::Open && self.taken.wrapping_sub(self.told) >= BUF_ALLOC / 2 {
            self.send_credit = true;
        }
        result
    }

    /// The guest's half is over and delivered: the peer learns it. True when nothing is left to do at all.
    pub(super) fn finish_if_delivered(&mut self) -> bool {
        if !self.guest_sent_all {
            return false;
        }
        match &self.peer {
            Peer::Socket(_) if !self.inbound.is_empty() => return false,
            Peer::Socket(socket) => {
                let _ = rustix::net::shutdown(socket, Shutdown::Write);
            }
            Peer::Log(log) => {
                log.end();
                if log.progress().end.is_none() {
                    return false; // the sink tells when it is
                }
                // The agent waits for this end: a container has ended when its log is whole.
                if self.phase == Phase::Open && !std::mem::replace(&mut self.read_done, true) {
                    self.send_shutdown |= SHUTDOWN_SEND;
                }
            }
        }
        self.phase == Phase::Draining
    }

    /// The guest shuts directions down.
    pub(super) fn guest_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.read_done = true;
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sent_all = true;
        }
        if self.read_done && self.guest_sent_all {
            self.phase = Phase::Draining;
        }
    }

    /// The next control packet, if one waits.
    pub(super) fn control(&mut self, guest_cid: u64) -> Option<Header> {
        if std::mem::take(&mut self.send_request) {
            return Some(self.packet(guest_cid, op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut self.send_response) {
            return Some(self.packet(guest_cid, op::RESPONSE, 0, 0));
        }
        if self.send_credit {
            return Some(self.packet(guest_cid, op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    /// Whether [`Self::control`] has something.
    pub(super) fn has_control(&self) -> bool {
        self.send_request || self.send_response || self.send_credit || self.send_shutdown != 0
    }

    /// Whether the socket is to be read, when it has something and the guest has buffers.
    pub(super) fn wants_to_read(&self) -> bool {
        self.phase == Phase::Open && !self.read_done && self.room() > 0 && matches!(self.peer, Peer::Socket(_))
    }
}

/// A socket that has not said yet which port it wants.
pub(super) struct Greeting {
    pub(super) socket: OwnedFd,
    line: Vec<u8>,
}

/// What a greeting came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeted {
    /// More is to come.
    Not,
    /// It wants this port.
    Port(u32),
    /// It is closed, or said something else.
    Wrong,
}

impl Greeting {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, line: Vec::new() }
    }

    /// Reads what is there, byte by byte: what follows the line is the connection's.
    pub(super) fn read(&mut self) -> Greeted {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.socket, &mut byte) {
                Ok(0) => return Greeted::Wrong,
                Ok(_) if byte[0] == b'\n' => return self.port().map_or(Greeted::Wrong, Greeted::Port),
                Ok(_) if self.line.len() >= MAX_GREETING => return Greeted::Wrong,
                Ok(_) => self.line.push(byte[0]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Greeted::Not,
                Err(_) => return Greeted::Wrong,
            }
        }
    }

    fn port(&self) -> Option<u32> {
        std::str::from_utf8(&self.line).ok()?.strip_prefix("CONNECT ")?.parse().ok()
    }
}

//! Packets to the guest: its receive queue.

use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::connection::{Peer, Phase};
use super::header::{HEADER, Header, SHUTDOWN_SEND, TYPE_STREAM, op};
use super::{BUF_ALLOC, HOST_CID, MAX_PAYLOAD, MAX_RESETS, RX, Vsock};
use crate::devices::virtio::vsock::connection::Key;
use crate::devices::virtio::{Activation, BUDGET, Buffers, Interrupt, QueueLine};

/// What became of the first connection with work.
enum Step {
    /// A packet, with so many bytes of payload in the scratch buffer.
    Packet(Header, usize),
    /// It has no work for now.
    Idle,
    /// It is over.
    Over,
}

impl Vsock {
    /// Sends the guest what there is, as long as it has buffers. When it has none it will kick.
    pub(super) fn fill(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let Activation { memory, queues, interrupt, .. } = &mut active;
        self.fill_queue(&mut queues[RX], memory, interrupt);
        self.active = Some(active);
    }

    fn fill_queue(&mut self, line: &mut QueueLine, memory: &GuestMemoryMmap, interrupt: &Interrupt) {
        for _ in 0..BUDGET {
            if self.resets.is_empty() && self.work.is_empty() {
                return;
            }
            let before = line.queue.next_avail();
            let Some(chain) = line.pop_or_ask(memory) else { return };
            let head = chain.head_index();
            let buffers = Buffers::new(memory, chain).filter(|buffers| buffers.writable.len() >= HEADER);
            let Some(mut buffers) = buffers else {
                line.complete(memory, interrupt, head, 0);
                continue;
            };
            let Some((header, payload)) = self.next_packet(buffers.writable.len() - HEADER) else {
                line.queue.set_next_avail(before); // the buffer stays the guest's
                return;
            };
            if let Some(front) = buffers.writable.take_front(HEADER) {
                front.copy_from(&header.bytes());
            }
            buffers.writable.copy_from(&self.scratch[..payload]);
            line.complete(memory, interrupt, head, (HEADER + payload) as u32);
        }
        line.kick_again();
    }

    /// The next packet, with at most `room` bytes of payload; they are in the scratch buffer.
    fn next_packet(&mut self, room: usize) -> Option<(Header, usize)> {
        loop {
            if let Some(reset) = self.resets.pop_front() {
                return Some((reset, 0));
            }
            let token = *self.work.front()?;
            match self.step(token, room) {
                Step::Packet(header, payload) => {
                    self.work.rotate_left(1); // everyone's turn
                    return Some((header, payload));
                }
                Step::Idle => {
                    self.work.pop_front();
                    if let Some(connection) = self.connections.get_mut(&token) {
                        connection.queued = false;
                    }
                    self.rearm(token);
                }
                Step::Over => {} // and it left the list
            }
        }
    }

    fn step(&mut self, token: u32, room: usize) -> Step {
        let guest_cid = self.state.guest_cid;
        let Some(connection) = self.connections.get_mut(&token) else {
            self.work.retain(|queued| *queued != token);
            return Step::Over;
        };
        if connection.phase == Phase::Draining {
            return Step::Idle;
        }
        if let Some(header) = connection.control(guest_cid) {
            return Step::Packet(header, 0);
        }
        if connection.readable && connection.wants_to_read() {
            let limit = room.min(connection.room()).min(MAX_PAYLOAD);
            self.scratch.resize(self.scratch.len().max(limit), 0);
            let Peer::Socket(socket) = &connection.peer else { return Step::Idle };
            match rustix::io::read(socket, &mut self.scratch[..limit]) {
                Ok(0) if limit == 0 => return Step::Idle,
                Ok(0) => {
                    connection.read_done = true;
                    connection.send_shutdown |= SHUTDOWN_SEND;
                }
                Ok(count) => {
                    connection.sent(count);
                    return Step::Packet(connection.packet(guest_cid, op::RW, 0, count as u32), count);
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => connection.readable = false,
                Err(_) => {
                    self.reset_connection(token);
                    return Step::Over;
                }
            }
        }
        if connection.hung_up && connection.read_done {
            self.reset_connection(token);
            return Step::Over;
        }
        let flags = std::mem::take(&mut connection.send_shutdown);
        if flags != 0 {
            return Step::Packet(connection.packet(guest_cid, op::SHUTDOWN, flags, 0), 0);
        }
        if connection.ask_for_credit() {
            return Step::Packet(connection.packet(guest_cid, op::CREDIT_REQUEST, 0, 0), 0);
        }
        Step::Idle
    }

    /// Puts a connection on the list of those with something for the guest.
    pub(super) fn enqueue(&mut self, token: u32) {
        if let Some(connection) = self.connections.get_mut(&token)
            && !connection.queued
        {
            connection.queued = true;
            self.work.push_back(token);
        }
    }

    /// Ends a connection, and tells the guest.
    pub(super) fn reset_connection(&mut self, token: u32) {
        let Some(connection) = self.connections.get(&token) else { return };
        let (key, known) = (connection.key, connection.phase != Phase::Draining);
        if known {
            self.push_reset(key);
        }
        self.remove(token);
    }

    /// Tells the guest that there is no such connection.
    pub(super) fn push_reset(&mut self, key: Key) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header {
                src_cid: HOST_CID,
                dst_cid: self.state.guest_cid,
                src_port: key.host_port,
                dst_port: key.guest_port,
                len: 0,
                kind: TYPE_STREAM,
                op: op::RST,
                flags: 0,
                buf_alloc: BUF_ALLOC,
                fwd_cnt: 0,
            });
        }
    }
}

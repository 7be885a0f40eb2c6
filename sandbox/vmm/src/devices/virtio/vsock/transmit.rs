//! Packets of the guest: its transmit queue.

use cofferdam_proto::sink::VSOCK_PORT as LOG_PORT;

use super::connection::{Connection, Key, Peer, Phase};
use super::header::{HEADER, Header, TYPE_STREAM, op};
use super::{HOST_CID, SENT_PER_TURN, TX, Vsock};
use crate::devices::virtio::{Activation, Buffers, Slices};

impl Vsock {
    /// Serves what the guest has sent.
    pub(super) fn transmit(&mut self) {
        let Some(mut active) = self.active.take() else { return };
        let Activation { memory, queues, interrupt, .. } = &mut active;
        queues[TX].take_kick();
        queues[TX].serve_few(SENT_PER_TURN, memory, interrupt, |buffers| {
            self.packet(buffers);
            0
        });
        self.active = Some(active);
    }

    fn packet(&mut self, mut buffers: Buffers<'_>) {
        let mut bytes = [0; HEADER];
        let Some(front) = buffers.readable.take_front(HEADER) else { return };
        front.copy_to(&mut bytes);
        let header = Header::parse(&bytes);
        if header.src_cid != self.state.guest_cid || header.dst_cid != HOST_CID {
            return; // nobody to answer to
        }
        let key = Key { host_port: header.dst_port, guest_port: header.src_port };
        match self.by_key.get(&key) {
            _ if header.kind != TYPE_STREAM => self.push_reset(key),
            Some(token) => self.known(*token, &header, &buffers.readable),
            None => self.unknown(key, &header),
        }
    }

    /// A packet of no connection: only a log may begin so.
    fn unknown(&mut self, key: Key, header: &Header) {
        match header.op {
            op::RST => {}
            op::REQUEST if key.host_port == LOG_PORT && self.may_log() => {
                let token = self.new_token();
                let log = match self.sink.stream(token) {
                    Ok(log) => log,
                    Err(error) => {
                        complain!("vsock: cannot start the thread that writes logs: {error}");
                        self.push_reset(key);
                        return;
                    }
                };
                let mut connection = Connection::new(key, Peer::Log(log), Phase::Open);
                connection.credit(header);
                connection.send_response = true;
                self.insert(token, connection);
                self.enqueue(token);
            }
            _ => self.push_reset(key),
        }
    }

    fn known(&mut self, token: u32, header: &Header, payload: &Slices<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.credit(header);
        match (header.op, connection.phase) {
            (op::RESPONSE, Phase::Requested) => self.accepted(token),
            (op::RST, Phase::Requested) => self.refused(token),
            (op::RST, _) => {
                connection.guest_sent_all = true;
                self.release_key(token);
                self.deliver(token);
            }
            (op::SHUTDOWN, Phase::Open) => {
                connection.guest_shutdown(header.flags);
                if connection.phase == Phase::Draining {
                    // Both sides are done: the guest waits for this before it forgets the connection.
                    let key = connection.key;
                    self.push_reset(key);
                    self.release_key(token);
                }
                self.deliver(token);
            }
            (op::RW, Phase::Open) => self.data(token, header.len as usize, payload),
            (op::CREDIT_UPDATE, _) => self.enqueue(token),
            (op::CREDIT_REQUEST, Phase::Open) => {
                connection.send_credit = true;
                self.enqueue(token);
            }
            _ => self.reset_connection(token),
        }
    }

    /// The guest took the node's connection.
    fn accepted(&mut self, token: u32) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.phase = Phase::Open;
        let line = format!("OK {}\n", connection.key.guest_port);
        let told = match &connection.peer {
            Peer::Socket(socket) => rustix::net::send(socket, line.as_bytes(), rustix::net::SendFlags::NOSIGNAL),
            Peer::Log(_) => Ok(line.len()),
        };
        if told != Ok(line.len()) {
            self.reset_connection(token);
            return;
        }
        self.rearm(token);
    }

    /// The guest refused: for now, or for good.
    fn refused(&mut self, token: u32) {
        let Some(connection) = self.remove(token) else { return };
        let port = connection.key.guest_port;
        if let Peer::Socket(socket) = connection.peer
            && !self.state.agent_listened
            && !connection.hung_up
        {
            if let Some(poller) = &self.poller {
                let _ = poller.remove(&socket);
            }
            self.early.push((socket, port));
        }
    }

    fn data(&mut self, token: u32, length: usize, payload: &Slices<'_>) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if length > payload.len() || !connection.may_take(length) || connection.guest_sent_all {
            self.reset_connection(token);
            return;
        }
        self.scratch.resize(self.scratch.len().max(length), 0);
        payload.copy_to(&mut self.scratch[..length]);
        connection.take(&self.scratch[..length]);
        self.deliver(token);
    }

    /// Passes on what the guest sent, and ends what is over.
    pub(super) fn deliver(&mut self, token: u32) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.deliver().is_err() {
            self.reset_connection(token);
        } else if connection.finish_if_delivered() {
            self.remove(token);
        } else {
            if connection.has_control() || connection.readable {
                self.enqueue(token);
            }
            self.rearm(token);
        }
    }
}

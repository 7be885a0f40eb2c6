//! The device as the transport sees it, and its tables.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_proto::sink::SinkRequest;
use vmm_sys_util::eventfd::EventFd;

use super::connection::{Connection, Greeting, Key, Peer, Phase};
use super::header::Header;
use super::state::{STATE_VERSION, VsockState};
use super::{DEVICE_TYPE, FIRST_HOST_PORT, MAX_LOGS, QUEUE_SIZES, SENT_PER_TURN, TX};
use crate::accept::Listener;
use crate::devices::virtio::{
    ActivateError, Activation, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice, read_from,
};
use crate::event_loop::Poller;
use crate::log_sink::{LogSink, SinkError, Ticket};

/// First token of a socket; those before are the device's own.
pub(super) const FIRST_TOKEN: u32 = 16;

/// The device.
pub(crate) struct Vsock {
    pub(super) state: VsockState,
    pub(super) listener: Listener,
    /// Readable once the guest's agent listens.
    pub(super) agent_listens: Arc<EventFd>,
    /// The agent said that it listens: who is refused now is refused for good.
    pub(super) agent_listened: bool,
    pub(super) poller: Option<Poller>,
    pub(super) active: Option<Activation>,
    pub(super) greetings: HashMap<u32, Greeting>,
    /// Sockets that were refused before the agent listened, with their port.
    pub(super) early: Vec<(OwnedFd, u32)>,
    pub(super) connections: HashMap<u32, Connection>,
    pub(super) by_key: HashMap<Key, u32>,
    /// Tokens of connections with something for the guest, each once, and of no other connections.
    pub(super) work: VecDeque<u32>,
    /// Resets of connections that are not known.
    pub(super) resets: VecDeque<Header>,
    pub(super) next_token: u32,
    pub(super) sink: LogSink,
    /// One packet's payload, either way.
    pub(super) scratch: Vec<u8>,
}

impl Vsock {
    /// A device for the guest `guest_cid`; the daemon connects to `listener`. `agent_listens` becomes readable once the guest's
    /// agent does.
    pub(crate) fn new(guest_cid: u32, listener: OwnedFd, agent_listens: Arc<EventFd>) -> io::Result<Self> {
        let listener = Listener::new(listener)?;
        Ok(Self {
            state: VsockState {
                version: STATE_VERSION,
                guest_cid: u64::from(guest_cid),
                features: 0,
                next_port: FIRST_HOST_PORT,
            },
            listener,
            agent_listens,
            agent_listened: false,
            poller: None,
            active: None,
            greetings: HashMap::new(),
            early: Vec::new(),
            connections: HashMap::new(),
            by_key: HashMap::new(),
            work: VecDeque::new(),
            resets: VecDeque::new(),
            next_token: FIRST_TOKEN,
            sink: LogSink::new()?,
            scratch: Vec::new(),
        })
    }

    /// Accepts a request for the log sink.
    pub(crate) fn sink_request(&mut self, request: &SinkRequest, file: Option<OwnedFd>) -> Result<Ticket, SinkError> {
        self.sink.request(request, file)
    }

    /// Readable once a request for the log sink is done.
    pub(crate) fn sink_changed(&self) -> Arc<EventFd> {
        self.sink.changed()
    }

    /// Waits until all logs are written, after the guest's end.
    pub(crate) fn finish_logs(&mut self) {
        self.sink.finish();
    }

    /// A token that no socket has.
    pub(super) fn new_token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = self.next_token.checked_add(1).unwrap_or(FIRST_TOKEN);
            if !self.connections.contains_key(&token) && !self.greetings.contains_key(&token) {
                return token;
            }
        }
    }

    /// A port of the node's side that is free toward `guest_port`.
    pub(super) fn new_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.state.next_port;
            self.state.next_port = self.state.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let key = Key { host_port, guest_port };
            if !self.by_key.contains_key(&key) {
                return key;
            }
        }
    }

    /// Adds a connection; the caller decides what it sends first.
    pub(super) fn insert(&mut self, token: u32, connection: Connection) {
        self.by_key.insert(connection.key, token);
        self.connections.insert(token, connection);
    }

    /// How many connections to the log sink there are, also those that wait for their file or its
    /// disk after their end.
    pub(super) fn log_count(&self) -> usize {
        self.connections.values().filter(|connection| matches!(connection.peer, Peer::Log(_))).count()
    }

    /// Whether the guest may open another one.
    pub(super) fn may_log(&self) -> bool {
        self.sink.count() < MAX_LOGS
    }

    /// Forgets a connection. When what it answers is dropped, the socket closes, which leaves the event loop too.
    pub(super) fn remove(&mut self, token: u32) -> Option<Connection> {
        let connection = self.connections.remove(&token)?;
        if self.by_key.get(&connection.key) == Some(&token) {
            self.by_key.remove(&connection.key);
        }
        if connection.queued {
            // Or the list would grow with each connection of a guest that offers no buffers.
            self.work.retain(|queued| *queued != token);
        }
        Some(connection)
    }

    /// The guest has no such connection any more, but what it sent is still to be delivered: its key is free.
    pub(super) fn release_key(&mut self, token: u32) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.phase = Phase::Draining;
            self.by_key.remove(&connection.key);
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.watch(&active).map_err(|source| ActivateError { device: "vsock", step: "watch its queues", source })?;
        self.state.features = active.features;
        self.active = Some(active);
        Ok(())
    }

    fn reset(&mut self) {
        for _ in 0..=usize::from(QUEUE_SIZES[TX]) / SENT_PER_TURN {
            self.transmit(); // what the guest sent before it ended
        }
        if let Some(active) = self.active.take() {
            self.unwatch(&active);
        }
        self.greetings.clear();
        self.early.clear();
        let tokens: Vec<u32> = self.connections.keys().copied().collect();
        for token in tokens {
            // A guest that dies leaves its last lines in its logs.
            if let Some(connection) = self.connections.get_mut(&token) {
                connection.guest_sent_all = true;
                let _ = connection.deliver();
                connection.finish_if_delivered();
            }
            self.remove(token);
        }
        self.work.clear();
        self.resets.clear();
        self.scratch = Vec::new();
        self.state.features = 0;
    }
}

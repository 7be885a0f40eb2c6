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
use super::{DEVICE_TYPE, EVENT, FIRST_HOST_PORT, MAX_LOGS, QUEUE_SIZES, SENT_PER_TURN, TRANSPORT_RESET, TX};
use crate::accept::Listener;
use crate::devices::virtio::saved::{DeviceState, RestoreError, SaveError};
use crate::devices::virtio::{
    ActivateError, Activation, Buffers, VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1, VirtioDevice,
    read_from,
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
    /// The guest is to be told that all connections are gone, since it was restored.
    connections_lost: bool,
    /// It was told, and has not taken note yet: the available index of the event queue that it had.
    /// A connection that it accepted before would be gone with the others.
    pub(super) told_of_loss_at: Option<u16>,
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
                agent_listened: false,
                connected: false,
            },
            listener,
            agent_listens,
            connections_lost: false,
            told_of_loss_at: None,
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

    /// Whether the guest's agent has said that it listens.
    pub(crate) fn agent_listens(&self) -> bool {
        self.state.agent_listened
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

    /// Tells a guest that was restored that its connections are gone (virtio 1.3 section 5.10.6.7,
    /// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET); what listens there goes on.
    fn tell_of_loss(&mut self) {
        if !std::mem::take(&mut self.connections_lost) {
            return;
        }
        let Some(Activation { memory, queues, interrupt, .. }) = &mut self.active else { return };
        let line = &mut queues[EVENT];
        let Some(chain) = line.pop(memory) else {
            complain!("vsock: the guest has no room to be told that its connections are gone");
            return;
        };
        let head = chain.head_index();
        let written = Buffers::new(memory, chain).map_or(0, |buffers| buffers.writable.copy_from(&TRANSPORT_RESET));
        // The driver gives the buffer back once it has done what the event asks for.
        self.told_of_loss_at = line.ask_for_new(memory);
        line.complete(memory, interrupt, head, written as u32);
    }

    /// The driver gave buffers of the event queue: it has taken note of what it was told.
    pub(super) fn event_kick(&mut self) {
        let Some(active) = &self.active else { return };
        let line = &active.queues[EVENT];
        line.take_kick();
        if self.told_of_loss_at.is_some_and(|told_at| line.available_index(&active.memory) != Some(told_at)) {
            self.told_of_loss_at = None;
            self.retry_early();
        }
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

    fn keeps_configuration(&self) -> bool {
        true
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.state.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, active: Activation) -> Result<(), ActivateError> {
        self.watch(&active).map_err(|source| ActivateError { device: "vsock", step: "watch its queues", source })?;
        self.state.features = active.features;
        self.active = Some(active);
        self.tell_of_loss();
        self.watch_again();
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
        self.told_of_loss_at = None;
        self.work.clear();
        self.resets.clear();
        self.scratch = Vec::new();
        self.state.features = 0;
    }

    fn pause(&mut self) -> Option<Activation> {
        let active = self.active.take()?;
        self.unwatch(&active);
        self.unwatch_greetings();
        Some(active)
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let connected = !self.connections.is_empty();
        Ok(DeviceState::Vsock(VsockState { connected, ..self.state.clone() }))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(state) = state else { return Err(RestoreError::Kind { device: "vsock" }) };
        RestoreError::check_version("vsock", state.version, STATE_VERSION)?;
        RestoreError::check("vsock", "the address", &state.guest_cid, &self.state.guest_cid)?;
        self.state.next_port = state.next_port.max(FIRST_HOST_PORT);
        self.state.agent_listened = state.agent_listened;
        self.connections_lost = state.connected;
        Ok(())
    }
}

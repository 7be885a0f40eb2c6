//! The device in the main loop.
//!
//! Sockets are watched once at a time (`ONESHOT`): one that cannot make progress, because the guest has no buffers or no credit,
//! is not watched, and so cannot keep the loop busy, not even by hanging up.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::connection::{Connection, Greeted, Greeting, Peer, Phase};
use super::{EVENT, MAX_STREAMS, RX, TX, Vsock};
use crate::devices::virtio::Activation;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd};

const LISTENER: u32 = 3;
const AGENT_LISTENS: u32 = 4;
/// Logs were written.
const LOGS: u32 = 5;

impl EventHandler for Vsock {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(event_fd(&self.agent_listens), AGENT_LISTENS, EventFlags::IN)?;
        poller.add(event_fd(self.sink.moved()), LOGS, EventFlags::IN)?;
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, token: u32, events: EventFlags) -> Flow {
        if token == AGENT_LISTENS {
            let _ = self.agent_listens.read();
            self.agent_is_there();
        }
        if token == LOGS {
            self.logs_moved();
        }
        if self.active.is_none() {
            return Flow::Continue; // a stale event
        }
        match token {
            AGENT_LISTENS | LOGS => {}
            LISTENER => self.accept(),
            token if token == TX as u32 => self.transmit(),
            token if token == EVENT as u32 => self.event_kick(),
            token if token == RX as u32 => {
                if let Some(active) = &self.active {
                    active.queues[RX].take_kick();
                }
            }
            token if self.greetings.contains_key(&token) => self.greet(token),
            token => self.socket_ready(token, events),
        }
        self.fill();
        Flow::Continue
    }
}

impl Vsock {
    /// Watches the queues and the listener.
    pub(super) fn watch(&self, active: &Activation) -> io::Result<()> {
        let Some(poller) = &self.poller else { return Err(io::Error::other("it is in no event loop")) };
        let mut watched: Vec<_> = active.queues.iter().map(|line| event_fd(&line.kick)).zip(0..).collect();
        watched.push((self.listener.as_fd(), LISTENER));
        poller.add_all(&watched)
    }

    pub(super) fn unwatch(&self, active: &Activation) {
        let Some(poller) = &self.poller else { return };
        let done = active.queues.iter().try_for_each(|line| poller.remove(event_fd(&line.kick)));
        if let Err(error) = done.and_then(|()| poller.remove(&self.listener)) {
            complain!("vsock: cannot leave the event loop: {error}");
        }
    }

    /// Nobody reads what a socket says before anything else, while the device is paused.
    pub(super) fn unwatch_greetings(&self) {
        let Some(poller) = &self.poller else { return };
        for greeting in self.greetings.values() {
            if let Err(error) = poller.remove(&greeting.socket) {
                complain!("vsock: cannot leave a connection alone: {error}");
            }
        }
    }

    /// Watches all sockets again after a pause, in which events of theirs may have been lost.
    pub(super) fn watch_again(&mut self) {
        if let Some(poller) = &self.poller {
            for (token, greeting) in &self.greetings {
                if let Err(error) = poller.add(&greeting.socket, *token, EventFlags::IN) {
                    complain!("vsock: cannot watch a connection: {error}");
                }
            }
        }
        let tokens: Vec<u32> = self.connections.keys().copied().collect();
        tokens.into_iter().for_each(|token| self.rearm(token));
    }

    fn accept(&mut self) {
        let socket = match self.listener.accept() {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => {
                complain!("vsock: cannot accept a connection: {error}");
                return;
            }
        };
        if self.greetings.len() + self.early.len() + self.connections.len() - self.log_count() >= MAX_STREAMS {
            complain!("vsock: refused a connection beyond {MAX_STREAMS}");
            return;
        }
        let token = self.new_token();
        let added = self.poller.as_ref().map(|poller| poller.add(&socket, token, EventFlags::IN));
        if let Some(Err(error)) = added {
            complain!("vsock: cannot watch a connection: {error}");
            return;
        }
        self.greetings.insert(token, Greeting::new(socket));
        self.greet(token); // often the line is there already
    }

    fn greet(&mut self, token: u32) {
        let Some(greeting) = self.greetings.get_mut(&token) else { return };
        match greeting.read() {
            Greeted::Not => {}
            Greeted::Wrong => {
                self.greetings.remove(&token);
            }
            Greeted::Port(port) => {
                let Some(Greeting { socket, .. }) = self.greetings.remove(&token) else { return };
                if self.told_of_loss_at.is_some() {
                    if let Some(poller) = &self.poller {
                        let _ = poller.remove(&socket);
                    }
                    self.early.push((socket, port));
                    return;
                }
                if let Some(poller) = &self.poller {
                    let _ = poller.modify(&socket, token, EventFlags::ONESHOT);
                }
                self.request(token, socket, port);
            }
        }
    }

    /// Asks the guest for a connection to `port`.
    fn request(&mut self, token: u32, socket: OwnedFd, port: u32) {
        let key = self.new_key(port);
        let mut connection = Connection::new(key, Peer::Socket(socket), Phase::Requested);
        connection.send_request = true;
        self.insert(token, connection);
        self.enqueue(token);
    }

    /// The agent listens now: tries again whoever was refused before.
    fn agent_is_there(&mut self) {
        self.state.agent_listened = true;
        self.retry_early();
    }

    /// Asks the guest for the connections that it could not take before.
    pub(super) fn retry_early(&mut self) {
        for (socket, port) in std::mem::take(&mut self.early) {
            let token = self.new_token();
            self.request(token, socket, port);
        }
    }

    /// What of the guest's output was written makes room for more of it, or was the last of it.
    fn logs_moved(&mut self) {
        for token in self.sink.take_moved() {
            let connection = self.connections.get(&token);
            if connection.is_some_and(|connection| matches!(connection.peer, Peer::Log(_))) {
                self.deliver(token);
            }
        }
    }

    fn socket_ready(&mut self, token: u32, events: EventFlags) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if events.intersects(EventFlags::HUP | EventFlags::ERR) {
            connection.hung_up = true;
            if connection.phase == Phase::Requested {
                // The caller gave up before the guest answered.
                self.reset_connection(token);
                return;
            }
        }
        if events.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            connection.readable = true;
        }
        if events.contains(EventFlags::OUT) {
            self.deliver(token);
        }
        self.enqueue(token);
        self.rearm(token);
    }

    /// Watches the connection's socket for what would let it go on.
    pub(super) fn rearm(&mut self, token: u32) {
        let (Some(poller), Some(connection)) = (&self.poller, self.connections.get(&token)) else { return };
        let Peer::Socket(socket) = &connection.peer else { return };
        let mut interest = EventFlags::ONESHOT;
        if !connection.readable && connection.wants_to_read() {
            interest |= EventFlags::IN;
        }
        if !connection.delivered() {
            interest |= EventFlags::OUT;
        }
        // A hang-up is reported whatever is asked for, and must not be once it is known: then only `OUT` is of use, which a
        // closed socket answers with an error that ends the connection.
        if connection.hung_up && connection.delivered() {
            let _ = poller.remove(socket);
            return;
        }
        let watched = match poller.modify(socket, token, interest) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => poller.add(socket, token, interest),
            other => other,
        };
        if let Err(error) = watched {
            complain!("vsock: cannot watch a connection: {error}");
        }
    }
}

//! The control socket: requests of the daemon, one JSON packet each.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cofferdam_proto::monitor::{API_VERSIONS, ExitReason, Memory, Reply, Request, Status};
use cofferdam_proto::packet::{self, PacketError};

use crate::accept::Listener;
use crate::counters::{INTERRUPTS, QUEUE_KICKS, VCPU_EXITS};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::vsock::Vsock;
use crate::ending::Ending;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, lock};
use crate::kvm::RunningVcpus;
use crate::report;
use crate::timeline::Timeline;

const LISTENER: u32 = 0;
/// Connections at once; the daemon needs one or two.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of console that one reply carries; escaped as JSON they may be six times as many.
const CONSOLE_LIMIT: usize = 32 << 10;

/// The socket and its connections.
pub(crate) struct Control {
    listener: Listener,
    connections: BTreeMap<u32, Connection>,
    next_token: u32,
    poller: Option<Poller>,
    parts: Parts,
    timeline: Arc<Timeline>,
    ending: Arc<Ending>,
}

/// The devices that requests reach.
pub(crate) struct Parts {
    /// The console.
    pub(crate) serial: Arc<Mutex<SerialPort>>,
    /// Which has the log sink.
    pub(crate) vsock: Arc<Mutex<Vsock>>,
    /// Memory that comes and goes.
    pub(crate) mem: Option<Arc<Mutex<Mem>>>,
    /// vCPUs that come; absent when there is but one.
    pub(crate) vcpus: Option<Arc<Mutex<RunningVcpus>>>,
}

struct Connection {
    socket: OwnedFd,
    greeted: bool,
}

impl Control {
    /// Serves the listening socket `listener`.
    pub(crate) fn new(
        listener: OwnedFd,
        parts: Parts,
        timeline: Arc<Timeline>,
        ending: Arc<Ending>,
    ) -> io::Result<Self> {
        let listener = Listener::new(listener)?;
        let connections = BTreeMap::new();
        Ok(Self { listener, connections, next_token: LISTENER + 1, poller: None, parts, timeline, ending })
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(socket) = self.listener.accept()? else { return Ok(()) };
        if self.connections.len() >= MAX_CONNECTIONS {
            complain!("control: refused a connection beyond {MAX_CONNECTIONS}");
            return Ok(());
        }
        let token = self.next_token;
        self.next_token = self.next_token.checked_add(1).unwrap_or(LISTENER + 1);
        if let Some(poller) = &self.poller {
            poller.add(&socket, token, EventFlags::IN)?;
        }
        self.connections.insert(token, Connection { socket, greeted: false });
        Ok(())
    }

    /// Serves one packet; false when the connection is over.
    fn serve(&mut self, token: u32) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return true };
        let (reply, kill) = match packet::recv::<Request>(&connection.socket) {
            Ok(None) => return false,
            Err(PacketError::Socket(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => return true,
            Err(PacketError::Socket(_)) => return false,
            Err(error) => (refused(format!("{error}: {error:?}")), false),
            Ok(Some((Request::Hello { api_version }, _))) if API_VERSIONS.contains(&api_version) => {
                connection.greeted = true;
                let monitor_version = env!("CARGO_PKG_VERSION").to_owned();
                (Reply::Hello { api_version, monitor_version }, false)
            }
            Ok(Some((Request::Hello { api_version }, _))) => {
                let (oldest, newest) = API_VERSIONS.into_inner();
                (
                    refused(format!("the monitor speaks versions {oldest} to {newest} of its API, not {api_version}")),
                    false,
                )
            }
            Ok(Some(_)) if !connection.greeted => (refused("the first request must be a hello".into()), false),
            Ok(Some((request, fd))) => self.answer(request, fd),
        };
        let sent = self.send(token, &reply);
        if kill {
            self.ending.finish(ExitReason::Killed, "killed by request");
        }
        sent
    }

    /// The reply to a request of a greeted connection, and whether the VM ends after it.
    fn answer(&self, request: Request, fd: Option<OwnedFd>) -> (Reply, bool) {
        match request {
            Request::Status => (Reply::Status(self.status()), false),
            Request::Console => (Reply::Console { text: lock(&self.parts.serial).tail(CONSOLE_LIMIT) }, false),
            Request::Memory { plugged_mib } => (self.plug(plugged_mib), false),
            Request::Vcpus { count } => (self.make_vcpus(count), false),
            Request::Sink(request) => match lock(&self.parts.vsock).sink_request(&request, fd) {
                Ok(()) => (Reply::Done, false),
                Err(error) => (refused(error.to_string()), false),
            },
            Request::Kill => (Reply::Done, true),
            Request::Hello { .. } => (refused("unexpected hello".into()), false),
        }
    }

    fn status(&self) -> Status {
        Status {
            milestones: self.timeline.milestones(),
            vcpu_exits: VCPU_EXITS.get(),
            queue_kicks: QUEUE_KICKS.get(),
            interrupts: INTERRUPTS.get(),
            memory: self.memory(),
            vcpus: self.parts.vcpus.as_ref().map(|vcpus| lock(vcpus).count()),
        }
    }

    /// Sends `reply`; false when the peer does not take it.
    fn send(&self, token: u32, reply: &Reply) -> bool {
        let Some(connection) = self.connections.get(&token) else { return false };
        let mut result = packet::send(&connection.socket, reply, None);
        // A console full of control characters: the newest part of it that fits.
        let mut limit = CONSOLE_LIMIT;
        while let (Reply::Console { text }, Err(PacketError::TooLong)) = (reply, &result) {
            limit /= 2;
            let start = text.ceil_char_boundary(text.len().saturating_sub(limit));
            let shorter = Reply::Console { text: text[start..].to_owned() };
            result = packet::send(&connection.socket, &shorter, None);
        }
        if let Err(error) = &result {
            complain!("control: a reply was not sent: {error}: {error:?}");
        }
        result.is_ok()
    }
}

impl Control {
    fn plug(&self, mib: u32) -> Reply {
        let Some(mem) = &self.parts.mem else { return refused("this VM keeps the memory that it started with".into()) };
        match lock(mem).request(u64::from(mib) << 20) {
            Ok(()) => Reply::Done,
            Err(error) => refused(error),
        }
    }

    fn make_vcpus(&self, count: u8) -> Reply {
        let Some(vcpus) = &self.parts.vcpus else {
            return refused("this VM keeps the vCPU that it started with".into());
        };
        match lock(vcpus).make(count) {
            Ok(()) => Reply::Done,
            Err(error) => refused(report::chain(&error)),
        }
    }

    fn memory(&self) -> Option<Memory> {
        let mem = lock(self.parts.mem.as_ref()?);
        let mib = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let (most_mib, requested_mib, plugged_mib) = (mib(mem.size()), mib(mem.requested()), mib(mem.plugged()));
        Some(Memory { most_mib, requested_mib, plugged_mib })
    }
}

fn refused(message: String) -> Reply {
    Reply::Error { message }
}

impl EventHandler for Control {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        poller.add(&self.listener, LISTENER, EventFlags::IN)?;
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: EventFlags) -> Flow {
        if token == LISTENER {
            if let Err(error) = self.accept() {
                complain!("control: cannot accept a connection: {error}");
            }
        } else if !self.serve(token) {
            self.connections.remove(&token); // closing it leaves the event loop too
        }
        Flow::Continue
    }
}

#[cfg(test)]
mod tests;

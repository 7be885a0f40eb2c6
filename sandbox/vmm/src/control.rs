//! The control socket: requests of the daemon, one JSON packet each.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cofferdam_proto::monitor::{API_VERSIONS, ExitReason, Memory, Reply, Request, Status};
use cofferdam_proto::packet::{self, PacketError};
use vmm_sys_util::eventfd::EventFd;

use crate::accept::Listener;
use crate::counters::{FILE_REQUESTS, INTERRUPTS, QUEUE_KICKS, VCPU_EXITS};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::mem::Mem;
use crate::devices::virtio::vsock::Vsock;
use crate::disks::Disks;
use crate::ending::Ending;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd, lock};
use crate::kvm::RunningVcpus;
use crate::log_sink::Ticket;
use crate::report;
use crate::saver::Saver;
use crate::timeline::Timeline;

const LISTENER: u32 = 0;
/// The log sink has done what was asked of it.
const SINK: u32 = 1;
const FIRST_CONNECTION: u32 = 2;
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
    sink_changed: Arc<EventFd>,
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
    /// Disks that come and go.
    pub(crate) disks: Disks,
    /// Pauses and saves the VM; absent where there is no whole one.
    pub(crate) saver: Option<Saver>,
}

struct Connection {
    socket: OwnedFd,
    greeted: bool,
    /// What its reply waits for; no request is read meanwhile.
    waits: Option<Ticket>,
}

/// What becomes of a request.
enum Answer {
    Now(Reply),
    /// The VM ends after it.
    Last(Reply),
    /// [`Reply::Done`], once the log sink has done it.
    Later(Ticket),
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
        let (connections, next_token) = (BTreeMap::new(), FIRST_CONNECTION);
        let sink_changed = lock(&parts.vsock).sink_changed();
        Ok(Self { listener, connections, next_token, poller: None, parts, timeline, ending, sink_changed })
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(socket) = self.listener.accept()? else { return Ok(()) };
        if self.connections.len() >= MAX_CONNECTIONS {
            complain!("control: refused a connection beyond {MAX_CONNECTIONS}");
            return Ok(());
        }
        let token = self.next_token;
        self.next_token = self.next_token.checked_add(1).unwrap_or(FIRST_CONNECTION);
        if let Some(poller) = &self.poller {
            poller.add(&socket, token, EventFlags::IN)?;
        }
        self.connections.insert(token, Connection { socket, greeted: false, waits: None });
        Ok(())
    }

    /// Serves one packet; false when the connection is over.
    fn serve(&mut self, token: u32) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return true };
        if connection.waits.is_some() {
            return false; // whoever asked has gone, which is all that is watched for
        }
        let answer = match packet::recv_all::<Request>(&connection.socket) {
            Ok(None) => return false,
            Err(PacketError::Socket(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => return true,
            Err(PacketError::Socket(_)) => return false,
            Err(error) => Answer::Now(refused(format!("{error}: {error:?}"))),
            Ok(Some((Request::Hello { api_version }, _))) if API_VERSIONS.contains(&api_version) => {
                connection.greeted = true;
                let monitor_version = env!("CARGO_PKG_VERSION").to_owned();
                Answer::Now(Reply::Hello { api_version, monitor_version })
            }
            Ok(Some((Request::Hello { api_version }, _))) => {
                let (oldest, newest) = API_VERSIONS.into_inner();
                Answer::Now(refused(format!(
                    "the monitor speaks versions {oldest} to {newest} of its API, not {api_version}"
                )))
            }
            Ok(Some(_)) if !connection.greeted => Answer::Now(refused("the first request must be a hello".into())),
            Ok(Some((request, fds))) => self.answer(request, fds),
        };
        match answer {
            Answer::Now(reply) => self.send(token, &reply),
            Answer::Last(reply) => {
                let sent = self.send(token, &reply);
                self.ending.finish(ExitReason::Killed, "killed by request");
                sent
            }
            Answer::Later(ticket) => self.answer_later(token, ticket),
        }
    }

    /// What becomes of a request of a greeted connection.
    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> Answer {
        let mut fds = fds.into_iter();
        Answer::Now(match request {
            Request::Save => self.save(fds.collect()),
            Request::Pause => self.pause(),
            Request::Resume => self.resume(),
            Request::Memory { .. } | Request::Vcpus { .. } | Request::Plug { .. } | Request::Unplug { .. }
                if self.is_paused() =>
            {
                refused("the VM is paused: let it go on before it is changed".into())
            }
            Request::Status => Reply::Status(self.status()),
            Request::Console => Reply::Console { text: lock(&self.parts.serial).tail(CONSOLE_LIMIT) },
            Request::Memory { plugged_mib } => self.plug(plugged_mib),
            Request::Vcpus { count } => self.make_vcpus(count),
            Request::Sink(request) => match lock(&self.parts.vsock).sink_request(&request, fds.next()) {
                Ok(ticket) => return Answer::Later(ticket),
                Err(error) => refused(report::chain(&error)),
            },
            Request::Plug { serial, read_only } => match self.parts.disks.plug(serial, read_only, fds.next()) {
                Ok(slot) => Reply::Plugged { slot },
                Err(error) => refused(report::chain(&error)),
            },
            Request::Unplug { serial } if self.parts.disks.unplug(&serial) => Reply::Done,
            Request::Unplug { .. } => Reply::Busy,
            Request::Kill => return Answer::Last(Reply::Done),
            Request::Hello { .. } => refused("unexpected hello".into()),
        })
    }

    /// Leaves a connection alone, unless it is closed, until `ticket` is done. False when that
    /// cannot be.
    fn answer_later(&mut self, token: u32, ticket: Ticket) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else { return false };
        connection.waits = Some(ticket);
        let watched = self.poller.as_ref().map(|poller| poller.modify(&connection.socket, token, EventFlags::RDHUP));
        !matches!(watched, Some(Err(_)))
    }

    /// Answers those whose request the log sink has done.
    fn sink_has_changed(&mut self) {
        let _ = self.sink_changed.read();
        let done = |connection: &Connection| connection.waits.as_ref().is_some_and(Ticket::is_done);
        let tokens: Vec<u32> = self.connections.iter().filter(|(_, c)| done(c)).map(|(token, _)| *token).collect();
        for token in tokens {
            let Some(connection) = self.connections.get_mut(&token) else { continue };
            connection.waits = None;
            let watched = self.poller.as_ref().map(|poller| poller.modify(&connection.socket, token, EventFlags::IN));
            if matches!(watched, Some(Err(_))) || !self.send(token, &Reply::Done) {
                self.connections.remove(&token);
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            milestones: self.timeline.milestones(),
            vcpu_exits: VCPU_EXITS.get(),
            queue_kicks: QUEUE_KICKS.get(),
            interrupts: INTERRUPTS.get(),
            file_requests: FILE_REQUESTS.get(),
            file_requests_by_kind: Vec::new(),
            memory: self.memory(),
            vcpus: self.parts.vcpus.as_ref().map(|vcpus| lock(vcpus).count()),
            disks: self.parts.disks.list(),
            paused: self.is_paused(),
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
    fn is_paused(&self) -> bool {
        self.parts.saver.as_ref().is_some_and(Saver::is_paused)
    }

    fn save(&mut self, fds: Vec<OwnedFd>) -> Reply {
        let Some(saver) = &mut self.parts.saver else { return refused("there is no VM to save".into()) };
        let Ok([memory, state]) = <[OwnedFd; 2]>::try_from(fds) else {
            return refused("a request to save needs two memfds: for the memory, and for the state".into());
        };
        match saver.save(memory, state) {
            Ok(()) => Reply::Done,
            Err(error) => refused(report::chain(&error)),
        }
    }

    fn pause(&mut self) -> Reply {
        let Some(saver) = &mut self.parts.saver else { return refused("there is no VM to pause".into()) };
        match saver.pause() {
            Ok(()) => Reply::Done,
            Err(error) => refused(report::chain(&error)),
        }
    }

    fn resume(&mut self) -> Reply {
        match self.parts.saver.as_mut().map_or(Ok(()), Saver::resume) {
            Ok(()) => Reply::Done,
            Err(error) => refused(report::chain(&error)),
        }
    }

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
        poller.add(event_fd(&self.sink_changed), SINK, EventFlags::IN)?;
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: EventFlags) -> Flow {
        if token == LISTENER {
            if let Err(error) = self.accept() {
                complain!("control: cannot accept a connection: {error}");
            }
        } else if token == SINK {
            self.sink_has_changed();
        } else if !self.serve(token) {
            self.connections.remove(&token); // closing it leaves the event loop too
        }
        Flow::Continue
    }
}

#[cfg(test)]
mod tests;

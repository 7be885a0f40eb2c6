//! The device in the main loop.

use std::io;

use super::{Net, RX, TX};
use crate::devices::virtio::Activation;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd};

const TAP: u32 = 2;

impl EventHandler for Net {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, token: u32, events: EventFlags) -> Flow {
        if self.active.is_none() {
            return Flow::Continue; // a stale event
        }
        match token {
            // The tap's namespace is gone; it would be reported for ever.
            TAP if events.intersects(EventFlags::ERR | EventFlags::HUP) => self.watch_tap(false),
            TAP if self.watches_tap => self.receive(),
            token if token == RX as u32 => self.receive_kick(),
            token if token == TX as u32 => self.transmit(),
            _ => {}
        }
        Flow::Continue
    }
}

impl Net {
    pub(super) fn watch(&self, active: &Activation) -> io::Result<()> {
        let Some(poller) = &self.poller else { return Err(io::Error::other("it is in no event loop")) };
        let kicks: Vec<_> = active.queues.iter().map(|line| event_fd(&line.kick)).zip(0..).collect();
        poller.add_all(&kicks)
    }

    pub(super) fn unwatch(&self, active: &Activation) {
        let Some(poller) = &self.poller else { return };
        for line in &active.queues {
            if let Err(error) = poller.remove(event_fd(&line.kick)) {
                complain!("net: cannot leave the event loop: {error}");
            }
        }
    }

    /// Watches the tap, or not.
    pub(super) fn watch_tap(&mut self, watch: bool) {
        let Some(poller) = &self.poller else { return };
        let done = match (self.watches_tap, watch) {
            (false, true) => poller.add(&self.tap, TAP, EventFlags::IN),
            (true, false) => poller.remove(&self.tap),
            _ => return,
        };
        match done {
            Ok(()) => self.watches_tap = watch,
            Err(error) => complain!("net: cannot change whether the tap is watched: {error}"),
        }
    }
}

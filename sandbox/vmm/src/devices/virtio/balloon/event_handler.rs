//! The device in the main loop.

use std::io;

use super::Balloon;
use crate::devices::virtio::Activation;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd};

impl EventHandler for Balloon {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, token: u32, _events: EventFlags) -> Flow {
        self.serve(token as usize);
        Flow::Continue
    }
}

impl Balloon {
    pub(super) fn watch(&self, active: &Activation) -> io::Result<()> {
        let Some(poller) = &self.poller else { return Err(io::Error::other("it is in no event loop")) };
        let kicks: Vec<_> = active.queues.iter().map(|line| event_fd(&line.kick)).zip(0..).collect();
        poller.add_all(&kicks)
    }

    pub(super) fn unwatch(&self, active: &Activation) {
        let Some(poller) = &self.poller else { return };
        for line in &active.queues {
            if let Err(error) = poller.remove(event_fd(&line.kick)) {
                complain!("balloon: cannot leave the event loop: {error}");
            }
        }
    }
}

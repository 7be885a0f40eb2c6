//! The device in the main loop.

use std::io;

use super::Rng;
use crate::devices::virtio::Activation;
use crate::event_loop::{EventFlags, EventHandler, Flow, Poller, event_fd};

const QUEUE: u32 = 0;

impl EventHandler for Rng {
    fn register(&mut self, poller: Poller) -> io::Result<()> {
        self.poller = Some(poller);
        Ok(())
    }

    fn ready(&mut self, _token: u32, _events: EventFlags) -> Flow {
        self.serve();
        Flow::Continue
    }
}

impl Rng {
    pub(super) fn watch(&self, active: &Activation) -> io::Result<()> {
        match &self.poller {
            Some(poller) => poller.add(event_fd(&active.queues[0].kick), QUEUE, EventFlags::IN),
            None => Err(io::Error::other("it is in no event loop")),
        }
    }

    pub(super) fn unwatch(&self, active: &Activation) {
        if let Some(poller) = &self.poller
            && let Err(error) = poller.remove(event_fd(&active.queues[0].kick))
        {
            complain!("rng: cannot leave the event loop: {error}");
        }
    }
}

//! Where clients come in over TCP: so many at once, the others wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A listener with a limit.
pub(crate) struct Door {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    whose: &'static str,
}

impl Door {
    /// Lets `most` clients in at once; `whose` they are is for the journal.
    pub(crate) fn new(listener: TcpListener, most: usize, whose: &'static str) -> Self {
        Self { listener, slots: Arc::new(Semaphore::new(most)), whose }
    }

    /// The next client, with its place, which is free again when it is dropped. `None` only at the daemon's end.
    pub(crate) async fn next(&self) -> Option<(TcpStream, OwnedSemaphorePermit)> {
        let place = self.slots.clone().acquire_owned().await.ok()?;
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                Err(error) => {
                    // Out of descriptors: give connections time to end instead of spinning.
                    tracing::warn!(whose = self.whose, %error, "accept of a client failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

//! Threads of the store's own. What blocks never runs on the runtime's blocking threads: those
//! serve the daemon's calls, and a registry or a disk that is slow must not use them up.

use std::sync::Mutex;
use std::thread::JoinHandle;

use tokio::sync::oneshot;

use crate::error::{StoreError, StoreResult};
use crate::lock::lock;

/// The threads that were begun and may still run.
#[derive(Default)]
pub(crate) struct Background(Mutex<Vec<JoinHandle<()>>>);

impl Background {
    /// Runs `work` on a thread of its own; the store's end waits for it. False when there is no
    /// thread for it.
    pub(crate) fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) -> bool {
        // Spans end where their last handle is dropped, by the subscriber of that thread.
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let work = move || tracing::dispatcher::with_default(&subscriber, work);
        match std::thread::Builder::new().name(name.into()).spawn(work) {
            Ok(handle) => {
                let mut threads = lock(&self.0);
                threads.retain(|handle| !handle.is_finished());
                threads.push(handle);
                true
            }
            Err(error) => {
                tracing::error!(name, %error, "no thread for the image store's work");
                false
            }
        }
    }

    /// As [`Background::spawn`], and gives what `work` answers.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> StoreResult<T> + Send + 'static,
    ) -> StoreResult<T> {
        let (sender, receiver) = oneshot::channel();
        // Nobody waits for the answer of a call that was given up.
        self.spawn(name, move || drop(sender.send(work())));
        // Closed when the thread panicked or could not be made.
        receiver.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Waits for all of them.
    pub(crate) fn finish(&self) {
        loop {
            let threads = std::mem::take(&mut *lock(&self.0));
            if threads.is_empty() {
                return;
            }
            for handle in threads {
                let _ = handle.join();
            }
        }
    }
}

/// Work that ended without an answer.
pub(crate) fn lost() -> StoreError {
    StoreError::io("work in the image store", std::io::Error::other("its thread could not be made, or panicked"))
}

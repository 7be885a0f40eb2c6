//! How a container is made to end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cofferdam_proto::agent::SignalContainerRequest;

use super::Container;
use super::agent::QUICK;
use crate::error::{CriError, During, message};
use crate::translate::signal::KILL;

/// How long a killed container may take to be gone. Generous: the kernel may be writing its memory out.
const GONE: Duration = Duration::from_secs(30);
/// Pause before a start is taken back once more.
const RETRY: Duration = Duration::from_secs(5);

impl Container {
    /// The stop signal once, then `grace`, then the end of all its processes. An agent that cannot be asked costs the pod its life.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<(), CriError> {
        if !grace.is_zero() {
            if !self.signalled.swap(true, Ordering::AcqRel) {
                let signal = self.with(|r| r.stop_signal);
                if let Err(error) = self.send(signal, false).await {
                    // The kill below is what counts; a pod that is gone ends its containers itself.
                    tracing::warn!(container = %self.id, error = message(&error), "stop signal not sent");
                }
            }
            if tokio::time::timeout(grace, self.exited()).await.is_ok() {
                return Ok(());
            }
        }
        let killed = self.send(KILL, true).await;
        if tokio::time::timeout(GONE, self.exited()).await.is_ok() {
            return Ok(());
        }
        match killed {
            // Dead but not gone: its processes hang in the kernel. The kubelet asks again.
            Ok(()) => Err(CriError::TimedOut(format!("container {} was killed and is not gone yet", self.id))),
            // An agent that cannot be asked holds the whole pod; ending it is the only way left.
            Err(error) => {
                let why =
                    format!("the pod was killed since nothing else ends container {}: {}", self.id, message(&error));
                tracing::error!(pod = %self.pod.id, why, "pod is killed");
                let _ = self.pod.condemned.set(why); // one reason is enough
                self.pod.sandbox()?.stop().await.during(|| format!("kill pod {}", self.pod.id))?;
                tokio::time::timeout(GONE, self.exited())
                    .await
                    .map_err(|_| CriError::TimedOut(format!("container {} is not gone yet", self.id)))
            }
        }
    }

    async fn send(&self, signal: u32, all: bool) -> Result<(), CriError> {
        let request = SignalContainerRequest { id: self.id.clone(), signal, all };
        self.pod
            .ask(&format!("signal container {}", self.id), QUICK, |mut agent| async move {
                agent.signal_container(request).await
            })
            .await
            .map(drop)
    }

    /// Ends, beside everything else, a container whose start got no answer: its caller was told that it does not run, and must not find
    /// it running later, with whatever hooks the kubelet has for a start left out.
    pub(crate) fn take_back(self: &Arc<Self>) {
        let container = self.clone();
        tokio::spawn(async move {
            // The end of a pod is the end of its containers.
            while container.with(|r| r.is_live()) && container.pod.sandbox().is_ok() {
                match container.stop(Duration::ZERO).await {
                    Ok(()) => tracing::info!(container = %container.id, "a start without an answer was taken back"),
                    Err(error) => {
                        tracing::warn!(container = %container.id, error = message(&error), "start not taken back yet");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        });
    }
}

//! Work that outlives its caller: a client that hangs up, or whose deadline passes, must leave neither half of a pod nor a whole one.

use std::future::Future;

use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tracing::Instrument;

use crate::error::{CriError, message};

/// A result that nobody has taken yet; dropped, it is undone.
struct Unclaimed<T: Send + 'static> {
    result: Option<T>,
    undo: Option<Box<dyn FnOnce(T) -> BoxFuture<'static, ()> + Send>>,
}

impl<T: Send + 'static> Drop for Unclaimed<T> {
    fn drop(&mut self) {
        if let (Some(result), Some(undo)) = (self.result.take(), self.undo.take()) {
            tokio::spawn(undo(result));
        }
    }
}

/// Runs `work` to its end in a task of its own. When the caller is gone by then, `undo` gets what came of it.
pub(super) async fn run<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, CriError>> + Send + 'static,
    undo: impl FnOnce(T) -> BoxFuture<'static, ()> + Send + 'static,
) -> Result<T, CriError> {
    let (send, receive) = oneshot::channel();
    let work = async move {
        let result = work.await.map(|done| Unclaimed { result: Some(done), undo: Some(Box::new(undo)) });
        if let Err(unheard) = send.send(result) {
            match unheard {
                Ok(_) => tracing::warn!(what, "the caller left before the answer: undone"),
                Err(error) => tracing::warn!(what, error = message(&error), "failed after the caller had left"),
            }
        }
    };
    tokio::spawn(work.in_current_span());
    let panicked = "its task panicked: a bug of the daemon, which its journal has in full";
    let mut done = receive.await.map_err(|_| CriError::internal(what, panicked))??;
    done.result.take().ok_or_else(|| CriError::State(format!("{what}: there is no result")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    async fn scenario(leave: bool) -> u32 {
        let undone = Arc::new(AtomicU32::new(0));
        let count = undone.clone();
        let work = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, CriError>(7)
        };
        let undo = move |n: u32| {
            async move {
                let _ = count.fetch_add(n, Ordering::SeqCst);
            }
            .boxed()
        };
        let call = run("test", work, undo);
        if leave {
            assert!(tokio::time::timeout(Duration::from_secs(1), call).await.is_err());
        } else {
            assert_eq!(call.await.unwrap(), 7);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        undone.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn work_that_panics_is_an_answer() {
        let work = async { if true { panic!("a bug") } else { Ok(()) } };
        let error = run("do a thing", work, |()| async {}.boxed()).await.unwrap_err();
        assert_eq!(crate::error::code(&error), tonic::Code::Internal);
        assert!(message(&error).contains("cannot do a thing: its task panicked"), "{error:?}");
        assert_eq!(run("do a thing", async { Ok(5) }, |_| async {}.boxed()).await.unwrap(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_unheard_answer_is_undone() {
        assert_eq!(scenario(true).await, 7);
        assert_eq!(scenario(false).await, 0);
    }
}

//! A blob's bytes on their way from the network to the thread that unpacks them: a queue bounded in
//! bytes, whatever the size of the pieces that the network hands over.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What goes through the queue.
enum Piece {
    /// With its share of the queue's bound, which is given back when the piece was taken.
    Bytes(Bytes, OwnedSemaphorePermit),
    /// The unpacking is to end without the rest.
    Stop,
}

/// Ends the unpacking at the other end of a queue, whoever has the sink.
#[derive(Clone)]
pub(crate) struct Stopper(mpsc::WeakUnboundedSender<Piece>);

/// What comes next.
pub(crate) enum Next {
    Bytes(Bytes),
    /// The sink is gone.
    End,
    /// [`Stopper::stop`] was called.
    Stopped,
}

/// The network's end. The queue ends when it is dropped.
pub(crate) struct Sink {
    room: Arc<Semaphore>,
    limit: u32,
    pieces: mpsc::UnboundedSender<Piece>,
}

/// The unpacking end.
pub(crate) struct Source {
    pieces: mpsc::UnboundedReceiver<Piece>,
    first: Option<Piece>,
    room: Arc<Semaphore>,
}

/// Room in the queue for one piece.
pub(crate) struct Room<'a> {
    sink: &'a Sink,
    share: OwnedSemaphorePermit,
}

/// A queue that holds `limit` bytes, or one piece when that is larger.
pub(crate) fn queue(limit: u32) -> (Sink, Source) {
    let room = Arc::new(Semaphore::new(limit as usize));
    let (sender, pieces) = mpsc::unbounded_channel();
    (Sink { room: room.clone(), limit, pieces: sender }, Source { pieces, first: None, room })
}

impl Sink {
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.pieces.downgrade())
    }

    /// Whether nobody takes pieces any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.room.is_closed()
    }

    /// Waits for room for `bytes`; `None` when nobody takes them any more. A future that is dropped
    /// has sent nothing.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room<'_>> {
        let share = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit);
        let share = self.room.clone().acquire_many_owned(share).await.ok()?;
        Some(Room { sink: self, share })
    }
}

impl Room<'_> {
    /// Sends the piece. That nobody takes it is told by the next [`Sink::room`].
    pub(crate) fn send(self, piece: Bytes) {
        let _ = self.sink.pieces.send(Piece::Bytes(piece, self.share));
    }
}

impl Stopper {
    pub(crate) fn stop(&self) {
        if let Some(pieces) = self.0.upgrade() {
            let _ = pieces.send(Piece::Stop);
        }
    }
}

impl Next {
    fn of(piece: Option<Piece>) -> Self {
        match piece {
            Some(Piece::Bytes(bytes, _share)) => Self::Bytes(bytes),
            Some(Piece::Stop) => Self::Stopped,
            None => Self::End,
        }
    }
}

impl Source {
    /// Waits until something was sent; false when the other end went before that.
    pub(crate) async fn begun(&mut self) -> bool {
        if self.first.is_none() {
            self.first = self.pieces.recv().await;
        }
        self.first.is_some()
    }

    /// What comes next if it is known already.
    pub(crate) fn next_now(&mut self) -> Option<Next> {
        if let Some(piece) = self.first.take() {
            return Some(Next::of(Some(piece)));
        }
        match self.pieces.try_recv() {
            Ok(piece) => Some(Next::of(Some(piece))),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Next::End),
        }
    }

    /// Waits for what comes next. Blocks the thread.
    pub(crate) fn next(&mut self) -> Next {
        Next::of(self.first.take().or_else(|| self.pieces.blocking_recv()))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(source: &mut Source) -> Option<usize> {
        match source.next_now() {
            Some(Next::Bytes(bytes)) => Some(bytes.len()),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_queue_holds_its_bound_in_bytes_and_no_more() {
        let (sink, mut source) = queue(100);
        sink.room(60).await.unwrap().send(vec![1; 60].into());
        let mut second = Box::pin(sink.room(60));
        assert!(futures::poll!(&mut second).is_pending(), "120 bytes in a queue of 100");
        assert!(source.begun().await);
        assert_eq!(length(&mut source), Some(60));
        second.await.unwrap().send(vec![2; 60].into());
        // What is larger than the queue fills it alone.
        let mut large = Box::pin(sink.room(1000));
        assert!(futures::poll!(&mut large).is_pending());
        assert_eq!(length(&mut source), Some(60));
        large.await.unwrap().send(vec![3; 1000].into());
        assert!(length(&mut source) == Some(1000) && source.next_now().is_none());
        sink.stopper().stop();
        assert!(matches!(source.next_now(), Some(Next::Stopped)));
        drop(source);
        assert!(sink.room(1).await.is_none(), "nobody takes it");
    }
}

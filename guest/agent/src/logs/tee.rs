//! Output for those who are attached, beside the log: neither the container nor its log ever waits for them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cofferdam_proto::sink::Stream;
use tokio::sync::mpsc;

use crate::error::{Error, Kind, Result};
use crate::lock;

/// Most that may wait for one attached client, bytes.
const MAX_WAITING: usize = 2 << 20;
/// What a piece costs beyond its bytes.
const OVERHEAD: usize = 128;
/// Most clients that one container may have attached.
const MAX_CLIENTS: usize = 8;

/// A piece of output.
pub type Piece = (Stream, Vec<u8>);

#[derive(Debug)]
struct Client {
    send: mpsc::UnboundedSender<Piece>,
    waiting: Arc<AtomicUsize>,
}

/// Copies a container's output to the clients that are attached.
#[derive(Debug, Clone, Default)]
pub struct Tee {
    clients: Arc<Mutex<Vec<Client>>>,
}

impl Tee {
    /// Joins: everything from now on.
    ///
    /// # Errors
    /// When too many have joined.
    pub fn join(&self) -> Result<Joined> {
        let mut clients = lock(&self.clients);
        clients.retain(|c| !c.send.is_closed());
        if clients.len() >= MAX_CLIENTS {
            return Err(Error::new(Kind::Exhausted, format!("{MAX_CLIENTS} clients are attached already")));
        }
        let (send, receive) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        clients.push(Client { send, waiting: waiting.clone() });
        Ok(Joined { receive, waiting })
    }

    /// Hands on what was read; a client that has too much waiting is dropped.
    pub fn push(&self, stream: Stream, bytes: &[u8]) {
        let mut clients = lock(&self.clients);
        clients.retain(|client| {
            let cost = bytes.len() + OVERHEAD;
            if client.waiting.fetch_add(cost, Ordering::Relaxed) + cost > MAX_WAITING {
                return false;
            }
            client.send.send((stream, bytes.to_vec())).is_ok()
        });
    }
}

/// One client's end.
#[derive(Debug)]
pub struct Joined {
    receive: mpsc::UnboundedReceiver<Piece>,
    waiting: Arc<AtomicUsize>,
}

impl Joined {
    /// The next piece; `None` when this client was too slow and what it was given before that is read.
    pub async fn next(&mut self) -> Option<Piece> {
        let piece = self.receive.recv().await;
        self.taken(piece)
    }

    /// What is there now.
    pub fn rest(&mut self) -> Option<Piece> {
        let piece = self.receive.try_recv().ok();
        self.taken(piece)
    }

    fn taken(&self, piece: Option<Piece>) -> Option<Piece> {
        if let Some((_, bytes)) = &piece {
            self.waiting.fetch_sub(bytes.len() + OVERHEAD, Ordering::Relaxed);
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_client_gets_all_and_a_slow_one_is_dropped_alone() {
        let tee = Tee::default();
        tee.push(Stream::Stdout, b"before");
        let (mut quick, mut slow) = (tee.join().unwrap(), tee.join().unwrap());
        let piece = vec![7u8; 32 * 1024];
        for _ in 0..2 * MAX_WAITING / piece.len() {
            tee.push(Stream::Stderr, &piece);
            let (stream, bytes) = quick.next().await.unwrap();
            assert!(stream == Stream::Stderr && bytes == piece);
        }
        let mut held = 0;
        while let Some((_, bytes)) = slow.next().await {
            held += bytes.len();
        }
        assert!((1..=MAX_WAITING).contains(&held), "{held} bytes were held");
        tee.push(Stream::Stdout, b"after");
        assert_eq!(quick.next().await.unwrap().1, b"after");
    }

    #[test]
    fn clients_are_counted_while_they_last() {
        let tee = Tee::default();
        let some: Vec<_> = (0..MAX_CLIENTS).map(|_| tee.join().unwrap()).collect();
        assert!(tee.join().is_err());
        drop(some);
        tee.join().unwrap();
    }
}

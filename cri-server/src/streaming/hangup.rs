//! Notices that a client has closed its connection, also while nothing is read from it: a session that waits for a process
//! to take its input would otherwise outlive its client.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

/// How long a session may take to read what its client has sent before it closed.
const GRACE: Duration = Duration::from_secs(5);

/// A second handle of a connection, to be dropped with it.
pub(super) struct Hangup(TcpStream);

impl Hangup {
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        let copy = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(TcpStream::from_std(copy.into())?))
    }

    /// Waits until the client has closed its side, and a while longer.
    pub(super) async fn gone(&self) {
        while let Ok(ready) = self.0.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                break;
            }
            // Bytes arrived; they are for others. The next event is awaited.
            let _ = self.0.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
        }
        tokio::time::sleep(GRACE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_close_is_seen_behind_bytes_that_nobody_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let hangup = Hangup::of(&server).unwrap();
        client.write_all(b"unread").await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(300), hangup.gone()).await;
        assert!(waiting.is_err(), "the client is still there");
        drop(client);
        tokio::time::timeout(GRACE * 3, hangup.gone()).await.unwrap();
    }
}

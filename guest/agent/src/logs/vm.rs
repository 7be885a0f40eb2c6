//! Output of a container in a microVM: frames over vsock to the monitor, which dates them and writes the log.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cofferdam_proto::agent::LOG_VSOCK_PORT;
use cofferdam_proto::sink::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Mutex, OnceCell};
use tokio_vsock::{OwnedReadHalf, OwnedWriteHalf, VsockAddr, VsockStream};

use super::CHUNK;
use super::tee::Tee;
use crate::container::stdio::End;

/// The node, as a guest sees it.
const NODE_CID: u32 = 2;
/// Pauses between attempts to connect, while the monitor has no log for the container.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long the monitor may take to have written the last frame.
const LAST_WORD: Duration = Duration::from_secs(5);

const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Sends a container's output until both streams end, and waits until the monitor has read all. It connects with the first bytes.
pub async fn carry(id: &str, tee: &Tee, stdout: Option<End>, stderr: Option<End>, open: &AtomicBool) {
    let connection: OnceCell<(Mutex<OwnedReadHalf>, Mutex<OwnedWriteHalf>)> = OnceCell::new();
    let one = |end: Option<End>, stream| {
        let connection = &connection;
        async move {
            if let Some(end) = end
                && let Err(e) = copy(id, connection, open, tee, &end, stream).await
            {
                tracing::warn!(container = id, ?stream, error = %e, "output ended early");
            }
        }
    };
    tokio::join!(one(stdout, Stream::Stdout), one(stderr, Stream::Stderr));
    if let Some((read, write)) = connection.into_inner() {
        let _ = write.lock().await.shutdown().await;
        // The monitor closes when it has read, and written, all.
        let _ = tokio::time::timeout(LAST_WORD, read.lock().await.read(&mut [0u8; 1])).await;
    }
}

/// Connects and says whose output follows. The monitor refuses, or closes at once, as long as it has no log for it.
async fn connect(id: &str) -> VsockStream {
    let mut pause = FIRST_PAUSE;
    loop {
        match attempt(id).await {
            Ok(stream) => return stream,
            Err(error) => {
                tracing::debug!(container = id, %error, "no log yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

async fn attempt(id: &str) -> io::Result<VsockStream> {
    let mut stream = VsockStream::connect(VsockAddr::new(NODE_CID, LOG_VSOCK_PORT)).await?;
    let mut header = vec![u8::try_from(id.len()).unwrap_or(u8::MAX)];
    header.extend_from_slice(id.as_bytes());
    stream.write_all(&header).await?;
    Ok(stream)
}

async fn copy(
    id: &str,
    connection: &OnceCell<(Mutex<OwnedReadHalf>, Mutex<OwnedWriteHalf>)>,
    open: &AtomicBool,
    tee: &Tee,
    end: &End,
    stream: Stream,
) -> io::Result<()> {
    loop {
        end.wait_readable().await?;
        let mut frame = vec![0u8; 5 + CHUNK];
        let n = end.read(&mut frame[5..]).await?;
        if n == 0 {
            return Ok(());
        }
        tee.push(stream, &frame[5..5 + n]);
        frame[0] = match stream {
            Stream::Stdout => STDOUT,
            Stream::Stderr => STDERR,
        };
        frame[1..5].copy_from_slice(&(n as u32).to_le_bytes());
        let (_, write) = connection
            .get_or_init(|| async {
                let (read, write) = connect(id).await.into_split();
                open.store(true, Ordering::Relaxed);
                (Mutex::new(read), Mutex::new(write))
            })
            .await;
        write.lock().await.write_all(&frame[..5 + n]).await?;
    }
}

//! Log files on the node: the daemon hands over a descriptor for each container, and another one after a rotation.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cofferdam_proto::logline::{LineSplitter, timestamp};
use cofferdam_proto::packet::{self, PacketError};
use cofferdam_proto::sink::{SinkReply, SinkRequest, Stream};
use tokio::sync::watch;

use super::CHUNK;
use super::tee::Tee;
use crate::container::spec::check_id;
use crate::container::stdio::End;
use crate::error::{Doing, Error, Result};
use crate::lock;

/// Most containers with a log file.
const MAX_SINKS: usize = 4096;
/// Pause after a failed write (a full disk), before the next attempt.
const RETRY: Duration = Duration::from_secs(1);

type File = Option<Arc<std::fs::File>>;

/// Log files by container.
#[derive(Debug, Clone, Default)]
pub struct Sinks {
    files: Arc<Mutex<HashMap<String, watch::Sender<File>>>>,
}

impl Sinks {
    fn carry_out(&self, request: SinkRequest, fd: Option<OwnedFd>) -> Result<()> {
        let mut files = lock(&self.files);
        match request {
            SinkRequest::Open { container } => {
                check_id(&container)?;
                let fd = fd.ok_or_else(|| Error::invalid("there is no descriptor with the log"))?;
                if files.len() >= MAX_SINKS && !files.contains_key(&container) {
                    return Err(Error::invalid(format!("{MAX_SINKS} logs are open")));
                }
                files.entry(container).or_default().send_replace(Some(Arc::new(std::fs::File::from(fd))));
            }
            SinkRequest::Close { container } => {
                files.remove(&container);
            }
        }
        Ok(())
    }

    /// The file of a container, now and later. A container may come before its file.
    fn follow(&self, id: &str) -> watch::Receiver<File> {
        lock(&self.files).entry(id.to_owned()).or_default().subscribe()
    }

    /// Whether a container has a log file.
    pub fn has(&self, id: &str) -> bool {
        lock(&self.files).get(id).is_some_and(|file| file.borrow().is_some())
    }

    /// Serves requests on the listening socket, for ever.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(self, listener: OwnedFd) -> Result<()> {
        rustix::io::ioctl_fionbio(&listener, true).doing("make the sink socket non-blocking")?;
        let listener = crate::sys::watch(listener).doing("watch the sink socket")?;
        loop {
            let mut ready = listener.readable().await.doing("wait on the sink socket")?;
            let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
            match rustix::net::accept_with(listener.get_ref(), flags) {
                Ok(connection) => {
                    let this = self.clone();
                    tokio::spawn(async move {
                        if let Err(e) = this.talk(connection).await {
                            tracing::warn!(error = e.chain(), "a sink connection failed");
                        }
                    });
                }
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "cannot accept on the sink socket");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn talk(&self, connection: OwnedFd) -> Result<()> {
        let connection = crate::sys::watch(connection).doing("watch a sink connection")?;
        loop {
            let mut ready = connection.readable().await.doing("wait on a sink connection")?;
            let (request, fd) = match packet::recv::<SinkRequest>(connection.get_ref()) {
                Err(PacketError::Socket(rustix::io::Errno::AGAIN)) => {
                    ready.clear_ready();
                    continue;
                }
                other => match other.doing("read a sink request")? {
                    Some(request) => request,
                    None => return Ok(()),
                },
            };
            let reply = SinkReply { error: self.carry_out(request, fd).err().map(|e| e.chain()) };
            packet::send(connection.get_ref(), &reply, None).doing("answer a sink request")?;
        }
    }
}

/// One of a container's two outputs.
struct Source {
    end: End,
    stream: Stream,
    splitter: LineSplitter,
}

/// Writes a container's output to its log until both streams end. One task reads both, standard output first, so that what was
/// written one after the other mostly stays so.
pub async fn carry(sinks: &Sinks, id: &str, tee: &Tee, stdout: Option<End>, stderr: Option<End>) {
    let mut file = sinks.follow(id);
    let source = |stream| move |end| Source { end, stream, splitter: LineSplitter::new(stream) };
    let mut out = stdout.map(source(Stream::Stdout));
    let mut err = stderr.map(source(Stream::Stderr));
    while out.is_some() || err.is_some() {
        tokio::select! {
            biased;
            () = readable(out.as_ref()) => {}
            () = readable(err.as_ref()) => {}
        }
        // Nowhere to put it: leave it in the pipe.
        if file.wait_for(Option::is_some).await.is_err() {
            return;
        }
        for stream in [&mut out, &mut err] {
            let Some(source) = stream else { continue };
            let mut records = Vec::new();
            let ended = source.take(id, tee, &mut records);
            write_records(&mut file, &records).await;
            if ended {
                *stream = None;
            }
        }
    }
}

async fn readable(stream: Option<&Source>) {
    match stream {
        Some(source) => {
            let _ = source.end.wait_readable().await;
        }
        None => std::future::pending().await,
    }
}

impl Source {
    /// Reads what is there as records; true at the end.
    fn take(&mut self, id: &str, tee: &Tee, records: &mut Vec<u8>) -> bool {
        let mut buffer = vec![0u8; CHUNK];
        match self.end.read_now(&mut buffer) {
            Ok(None) => return false,
            Ok(Some(n @ 1..)) => {
                self.splitter.push(&buffer[..n], &timestamp(), records);
                tee.push(self.stream, &buffer[..n]);
                return false;
            }
            Ok(Some(0)) => {}
            Err(error) => tracing::warn!(container = id, %error, "output ended early"),
        }
        self.splitter.finish(&timestamp(), records);
        true
    }
}

/// Writes whole records. When the disk is full, it waits; a record that was cut off is finished in the same file.
async fn write_records(file: &mut watch::Receiver<File>, records: &[u8]) {
    let mut rest = records;
    while !rest.is_empty() {
        let Some(current) = file.borrow_and_update().clone() else {
            // Closed in between: the container is being removed, or its log opened again.
            if file.wait_for(Option::is_some).await.is_err() {
                return;
            }
            continue;
        };
        // The rest of a cut record belongs behind its beginning, whatever file came since.
        loop {
            match (&*current).write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    tracing::warn!(error = %e, "cannot write a log; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
            let at = records.len() - rest.len();
            if rest.is_empty() || (at == 0 || records[at - 1] == b'\n') {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    fn request(name: &str) -> SinkRequest {
        SinkRequest::Open { container: name.into() }
    }

    fn temp() -> std::fs::File {
        tempfile::tempfile().unwrap()
    }

    fn text(mut file: &std::fs::File) -> String {
        use std::io::Seek;
        let mut text = String::new();
        file.seek(io::SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_waits_for_its_file_and_moves_on_with_it() {
        let sinks = Sinks::default();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let end = End::new(read).unwrap();
        rustix::io::write(&write, b"one\ntwo").unwrap();
        let task = tokio::spawn({
            let sinks = sinks.clone();
            async move { carry(&sinks, "a", &Tee::default(), Some(end), None).await }
        });
        let (first, second) = (temp(), temp());
        let hand = |f: &std::fs::File| Some(f.as_fd().try_clone_to_owned().unwrap());
        sinks.carry_out(request("a"), hand(&first)).unwrap();
        while text(&first).is_empty() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sinks.carry_out(request("a"), hand(&second)).unwrap();
        rustix::io::write(&write, b" three\nend").unwrap();
        drop(write);
        task.await.unwrap();
        assert!(text(&first).ends_with(" stdout F one\n") && text(&first).lines().count() == 1, "{}", text(&first));
        let second = text(&second);
        assert!(second.contains(" stdout F two three\n") && second.ends_with(" stdout P end\n"), "{second}");
    }

    #[test]
    fn bad_requests_are_refused() {
        let sinks = Sinks::default();
        assert!(sinks.carry_out(request("a"), None).is_err());
        assert!(sinks.carry_out(request("../a"), Some(temp().into())).is_err());
        assert!(sinks.carry_out(SinkRequest::Close { container: "never".into() }, None).is_ok());
    }
}

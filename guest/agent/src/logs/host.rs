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
/// Pause after a failed accept, before the next attempt.
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
    let mut state = State::default();
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
            write_records(&mut file, &mut state, &records).await;
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

/// What became of a log so far.
#[derive(Debug, Default)]
struct State {
    /// The last write to this file stopped inside a record.
    torn: Option<Arc<std::fs::File>>,
    /// Bytes of records that were not written since the last one that was.
    lost: usize,
}

/// Writes whole records. What the disk does not take is lost, as with other runtimes: a program must not stand still because
/// a disk is full. The next record that is written comes after one that tells how much was lost.
async fn write_records(file: &mut watch::Receiver<File>, state: &mut State, records: &[u8]) {
    if records.is_empty() {
        return;
    }
    let current = loop {
        if let Some(current) = file.borrow_and_update().clone() {
            break current;
        }
        // Closed in between: the container is being removed, or its log opened again.
        if file.wait_for(Option::is_some).await.is_err() {
            return;
        }
    };
    let mut text = Vec::new();
    if state.torn.take_if(|torn| Arc::ptr_eq(torn, &current)).is_some() {
        text.push(b'\n');
    }
    if state.lost > 0 {
        let note = format!("cofferdam: {} bytes of the log were lost here: they could not be written", state.lost);
        let mut splitter = LineSplitter::new(Stream::Stderr);
        splitter.push(format!("{note}\n").as_bytes(), &timestamp(), &mut text);
    }
    let ahead = text.len();
    text.extend_from_slice(records);
    match write_all(&current, &text) {
        Ok(()) => *state = State::default(),
        Err((written, error)) => {
            if state.lost == 0 {
                tracing::warn!(%error, "cannot write a log; output is lost until it can be written again");
            }
            if written > 0 {
                state.torn = Some(current);
            }
            if written > ahead {
                state.lost = 0;
            }
            state.lost += text.len() - written.max(ahead);
        }
    }
}

/// How much was written, and why no more.
fn write_all(file: &std::fs::File, text: &[u8]) -> std::result::Result<(), (usize, io::Error)> {
    let mut written = 0;
    let mut file = file;
    while written < text.len() {
        match file.write(&text[written..]) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((written, e)),
        }
    }
    Ok(())
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

    /// A small file system for `/`, in a mount namespace of this thread's own; `None` where that is not allowed.
    #[allow(unsafe_code)]
    fn small_disk(bytes: u32) -> Option<tempfile::TempDir> {
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
        // SAFETY: a mount namespace shares neither memory nor descriptors with others.
        unsafe {
            rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS)
        }
        .ok()?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).ok()?;
        let dir = tempfile::tempdir().unwrap();
        let size = crate::sys::c_string(format!("size={bytes}")).unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(size.as_c_str())).ok()?;
        Some(dir)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_full_disk_costs_lines_and_stops_nobody() {
        let Some(disk) = small_disk(64 << 10) else {
            eprintln!("skipped: no file system can be mounted here");
            return;
        };
        let (fill, log) = (disk.path().join("fill"), disk.path().join("log"));
        let sinks = Sinks::default();
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        sinks.carry_out(request("a"), Some(file.into())).unwrap();
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let end = End::new(read).unwrap();
        let task = tokio::spawn(async move { carry(&sinks, "a", &Tee::default(), Some(end), None).await });
        let say = async |text: &str| {
            rustix::io::write(&write, text.as_bytes()).unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        say("first\n").await;
        let _ = std::fs::write(&fill, vec![0; 128 << 10]);
        // More than the pipe holds: a writer that waited for the disk would hang here.
        for n in 0..40 {
            say(&format!("{n} {}\n", "x".repeat(3000))).await;
        }
        std::fs::remove_file(&fill).unwrap();
        say("again\n").await;
        say("and again\n").await;
        drop(write);
        task.await.unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with(" stdout F first"), "{text}");
        let [.., note, again, last] = lines[..] else { panic!("{text}") };
        assert!(note.contains(" stderr F cofferdam: ") && note.contains(" bytes of the log were lost here"), "{note}");
        assert!(again.ends_with(" stdout F again") && last.ends_with(" stdout F and again"), "{again}\n{last}");
    }

    #[test]
    fn bad_requests_are_refused() {
        let sinks = Sinks::default();
        assert!(sinks.carry_out(request("a"), None).is_err());
        assert!(sinks.carry_out(request("../a"), Some(temp().into())).is_err());
        assert!(sinks.carry_out(SinkRequest::Close { container: "never".into() }, None).is_ok());
    }
}

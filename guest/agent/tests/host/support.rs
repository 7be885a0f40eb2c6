//! A host pod on this machine: the real agent as supervisor, and a client for it.
//!
//! What a machine cannot do, the tests say and skip; in the node VM they all run.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cofferdam_proto::agent::agent_client::AgentClient;
use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::exec_input::Kind as In;
use cofferdam_proto::agent::exec_output::Kind as Out;
use cofferdam_proto::agent::*;
use cofferdam_proto::packet;
use cofferdam_proto::sink::{SinkReply, SinkRequest};
use cofferdam_proto::supervisor::{LaunchConfig, PodUsers, Ready, UserRange};
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Programs of the test image, beside sh.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "id", "ls", "mount", "umount", "sleep", "grep", "env", "pwd", "readlink", "touch", "mkdir",
    "mknod", "true", "stat", "ps", "kill", "dd", "head", "yes", "seq", "tr", "wc", "hostname", "ln", "rm", "chroot",
    "stty", "tty", "nproc", "test", "mv", "unshare", "pgrep", "sort", "ip", "cut", "find", "printf", "chmod", "sync",
    "awk", "sed", "setsid", "ulimit",
];

/// Default capabilities of a container, as the daemon sends them.
pub const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Why this machine cannot run host pods, if it cannot.
pub fn unfit() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("there is no /bin/busybox (package busybox-static)".into());
    }
    if !cgroup_root().join("cgroup.procs").exists() {
        return Some("cgroup version 2 is not mounted".into());
    }
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.contains("\toverlay") {
        return Some("the kernel has no overlay file system loaded".into());
    }
    None
}

/// Skips a test on a machine that cannot run it.
macro_rules! need_host_pods {
    () => {
        if let Some(reason) = $crate::support::unfit() {
            eprintln!("skipped: this machine cannot run host pods: {reason}");
            return;
        }
    };
}
pub(crate) use need_host_pods;

/// Where cgroup v2 is.
pub fn cgroup_root() -> PathBuf {
    let usual = PathBuf::from("/sys/fs/cgroup");
    if usual.join("cgroup.controllers").exists() { usual } else { usual.join("unified") }
}

/// Whether limits of memory can be tested here.
pub fn has_controllers() -> bool {
    fs::read_to_string(cgroup_root().join("cgroup.controllers"))
        .is_ok_and(|c| c.contains("memory") && c.contains("pids"))
}

/// A root with busybox in it.
pub fn busybox(dir: &Path) {
    for sub in ["bin", "etc", "tmp", "home/www", "proc", "sys", "dev"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        fs::hard_link(dir.join("bin/busybox"), dir.join("bin").join(applet)).unwrap();
    }
    fs::write(dir.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nwww:x:33:33::/home/www:/bin/sh\n").unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nwww:x:33:\nstaff:x:50:www\n").unwrap();
    symlink("/tmp", dir.join("link")).unwrap();
}

static STARTING: Mutex<()> = Mutex::new(());
static PODS: AtomicU32 = AtomicU32::new(0);

fn starting() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One host pod.
pub struct Pod {
    pub dir: tempfile::TempDir,
    pub supervisor: u32,
    pub client: AgentClient<Channel>,
    pub cgroup: String,
    netns: Child,
    sink: PathBuf,
}

/// How a pod differs from the usual one.
#[derive(Default, Clone, Copy)]
pub struct Shape {
    pub node_pid: bool,
    pub node_ipc: bool,
    /// Users of its own.
    pub users: Option<UserRange>,
}

/// A process that holds a user namespace and those that belong to it, and what the supervisor is told of them.
struct Spaces {
    holder: Child,
    config: PodUsers,
    _open: Vec<fs::File>,
}

impl Spaces {
    fn new(range: UserRange) -> Self {
        let program = ["-U", "-n", "-i", "-u", "sleep", "100000"];
        let holder = Command::new("unshare").args(program).stdin(Stdio::null()).spawn().unwrap();
        let folder = PathBuf::from(format!("/proc/{}", holder.id()));
        let own = fs::read_link("/proc/self/ns/uts").unwrap();
        until("a user namespace", || fs::read_link(folder.join("ns/uts")).is_ok_and(|l| l != own));
        for map in ["uid_map", "gid_map"] {
            fs::write(folder.join(map), format!("0 {} {}", range.host_id, range.length)).unwrap();
        }
        let open: Vec<fs::File> =
            ["user", "ipc", "uts"].iter().map(|n| fs::File::open(folder.join("ns").join(n)).unwrap()).collect();
        let config = PodUsers { user_fd: pass(&open[0]), ipc_fd: pass(&open[1]), uts_fd: pass(&open[2]), range };
        Self { holder, config, _open: open }
    }
}

fn pass(fd: impl AsFd) -> i32 {
    rustix::io::fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    fd.as_fd().as_raw_fd()
}

fn listener(path: &Path, kind: SocketType) -> OwnedFd {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    socket
}

/// A process that holds a network namespace of its own.
fn network_namespace() -> Child {
    let child = Command::new("unshare").args(["-n", "sleep", "100000"]).stdin(Stdio::null()).spawn().unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = format!("/proc/{}/ns/net", child.id());
    until("a network namespace", || fs::read_link(&theirs).is_ok_and(|l| l != own));
    child
}

/// Waits for a condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..12_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{what} did not come");
}

impl Pod {
    pub async fn start() -> Self {
        Self::shaped(Shape::default()).await
    }

    pub async fn shaped(shape: Shape) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for sub in ["image", "state", "run", "logs"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        busybox(&dir.path().join("image"));
        let (ready, socket_path, sink, netns) = {
            // Descriptors are handed over by inheritance: no other child may start meanwhile.
            let _alone = starting();
            let users = shape.users.map(Spaces::new);
            let users_config = users.as_ref().map(|u| u.config);
            let (netns, _open) = match users {
                Some(users) => (users.holder, users._open),
                None => (network_namespace(), Vec::new()),
            };
            let socket_path = dir.path().join("agent.sock");
            let sink_path = dir.path().join("sink.sock");
            let socket = listener(&socket_path, SocketType::STREAM);
            let sink = listener(&sink_path, SocketType::SEQPACKET);
            let (ready_read, ready_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let (config_read, config_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            let net = fs::File::open(format!("/proc/{}/ns/net", netns.id())).unwrap();
            let config = LaunchConfig {
                api_version: cofferdam_proto::supervisor::API_VERSION,
                name: "test".into(),
                socket_fd: pass(&socket),
                sink_fd: pass(&sink),
                ready_fd: pass(&ready_write),
                netns_fd: Some(pass(&net)),
                node_pid: shape.node_pid,
                node_ipc: shape.node_ipc,
                node_uts: false,
                users: users_config,
                state_dir: dir.path().join("state").to_str().unwrap().into(),
                run_dir: dir.path().join("run").to_str().unwrap().into(),
            };
            serde_json::to_writer(fs::File::from(config_write), &config).unwrap();
            let status = Command::new(env!("CARGO_BIN_EXE_cofferdam-agent"))
                .args(["supervise", "--config-fd", &pass(&config_read).to_string()])
                .stdin(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "the supervisor did not start: {status}");
            drop(ready_write);
            let mut text = String::new();
            fs::File::from(ready_read).read_to_string(&mut text).unwrap();
            let ready: Ready = serde_json::from_str(&text).unwrap();
            (ready, socket_path, sink_path, netns)
        };
        let channel = Endpoint::from_static("http://agent")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = socket_path.clone();
                async move {
                    Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tokio::net::UnixStream::connect(path).await?))
                }
            }))
            .await
            .unwrap();
        let mut client = AgentClient::new(channel);
        let hello = client.hello(HelloRequest { api_version: API_VERSION }).await.unwrap().into_inner();
        assert_eq!(hello.mode, "host");
        let cgroup = format!("cofferdam-test-{}-{}", std::process::id(), PODS.fetch_add(1, Ordering::Relaxed));
        Self { dir, supervisor: ready.pid, client, cgroup, netns, sink }
    }

    /// A request for `script` in a shell.
    pub fn shell(&self, id: &str, script: &str) -> CreateContainerRequest {
        self.request(id, &["sh", "-c", script])
    }

    pub fn request(&self, id: &str, args: &[&str]) -> CreateContainerRequest {
        let names = || CAPABILITIES.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        CreateContainerRequest {
            id: id.into(),
            lower: vec![self.path("image")],
            cgroup_parent: format!("/{}", self.cgroup),
            process: Some(Process {
                args: args.iter().map(|a| (*a).to_owned()).collect(),
                cwd: "/".into(),
                capabilities: Some(Capabilities {
                    bounding: names(),
                    permitted: names(),
                    effective: names(),
                    ..Capabilities::default()
                }),
                seccomp: Some(Seccomp { kind: seccomp::Kind::RuntimeDefault.into(), profile: Vec::new() }),
                ..Process::default()
            }),
            ..CreateContainerRequest::default()
        }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().into()
    }

    /// Gives the container a log file, as the daemon does.
    pub fn open_log(&self, id: &str, name: &str) -> PathBuf {
        let path = self.dir.path().join("logs").join(name);
        let file = fs::File::options().create(true).append(true).open(&path).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.sink).unwrap()).unwrap();
        packet::send(&socket, &SinkRequest::Open { container: id.into() }, Some(file.as_fd())).unwrap();
        let reply: SinkReply = packet::recv(&socket).unwrap().unwrap().0;
        assert_eq!(reply.error, None);
        path
    }

    /// A listener in the pod's network, and its port.
    pub fn listen(&self, address: std::net::IpAddr) -> (TcpListener, u32) {
        let pid = self.netns.id().to_string();
        let up = ["-t", &pid, "-n", "/bin/busybox", "ip", "link", "set", "lo", "up"];
        assert!(Command::new("nsenter").args(up).status().unwrap().success());
        let net = fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        let bound = std::thread::spawn(move || {
            move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            TcpListener::bind((address, 0)).unwrap()
        });
        let listener = bound.join().unwrap();
        let port = listener.local_addr().unwrap().port().into();
        (listener, port)
    }

    /// Attaches: the way in, and the way out.
    pub async fn attach(
        &mut self,
        id: &str,
        stdin: bool,
    ) -> Result<(mpsc::Sender<AttachInput>, Streaming<AttachOutput>), tonic::Status> {
        let (send, receive) = mpsc::channel(8);
        let start = AttachStart { container_id: id.into(), stdin };
        send.send(AttachInput { kind: Some(attach_input::Kind::Start(start)) }).await.unwrap();
        let output = self.client.attach(ReceiverStream::new(receive)).await?.into_inner();
        Ok((send, output))
    }

    /// Connects to a port of the pod.
    pub async fn port_forward(
        &mut self,
        port: u32,
    ) -> Result<(mpsc::Sender<PortForwardInput>, Streaming<PortForwardOutput>), tonic::Status> {
        let (send, receive) = mpsc::channel(8);
        send.send(PortForwardInput { kind: Some(port_forward_input::Kind::Port(port)) }).await.unwrap();
        let output = self.client.port_forward(ReceiverStream::new(receive)).await?.into_inner();
        Ok((send, output))
    }

    /// Creates and starts.
    pub async fn run(&mut self, request: CreateContainerRequest) -> Result<(), tonic::Status> {
        let id = request.id.clone();
        self.client.create_container(request).await?;
        self.client.start_container(StartContainerRequest { id }).await?;
        Ok(())
    }

    /// Runs to the end; the exit code and the text of its log, without dates.
    pub async fn output(&mut self, request: CreateContainerRequest) -> (i32, String) {
        let id = request.id.clone();
        let log = self.open_log(&id, &id);
        self.run(request).await.unwrap();
        let state = self.ended(&id).await;
        (state.exit_code, plain(&log))
    }

    pub async fn state(&mut self, id: &str) -> Option<ContainerState> {
        let list = self.client.list_containers(ListContainersRequest {}).await.unwrap().into_inner().containers;
        list.into_iter().find(|c| c.id == id)
    }

    /// Waits for the end.
    pub async fn ended(&mut self, id: &str) -> ContainerState {
        let mut events = self.client.events(EventsRequest {}).await.unwrap().into_inner();
        loop {
            let state = events.message().await.unwrap().expect("events go on");
            if state.id == id && state.phase() == Phase::Exited {
                return state;
            }
        }
    }

    pub async fn remove(&mut self, id: &str) {
        self.client.remove_container(RemoveContainerRequest { id: id.into() }).await.unwrap();
    }

    /// Execs to the end.
    pub async fn exec(&mut self, start: ExecStart, stdin: Option<&str>) -> Result<Executed, tonic::Status> {
        let mut messages = vec![In::Start(start)];
        if let Some(text) = stdin {
            messages.extend([In::Stdin(text.as_bytes().to_vec()), In::StdinClosed(true)]);
        }
        let input = tokio_stream::iter(messages.into_iter().map(|kind| ExecInput { kind: Some(kind) }));
        let mut output = self.client.exec(input).await?.into_inner();
        let mut done = Executed::default();
        while let Some(message) = output.message().await? {
            match message.kind {
                Some(Out::Stdout(bytes)) => done.stdout.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Out::Stderr(bytes)) => done.stderr.push_str(&String::from_utf8_lossy(&bytes)),
                Some(Out::Exited(exited)) => {
                    done.code = exited.exit_code;
                    done.timed_out = exited.timed_out;
                }
                _ => {}
            }
        }
        Ok(done)
    }

    /// Shuts down and checks that nothing is left.
    pub async fn end(mut self) {
        self.client.shutdown(ShutdownRequest {}).await.unwrap();
        let proc = format!("/proc/{}", self.supervisor);
        until("the end of the supervisor", || !Path::new(&proc).exists() || is_zombie(&proc));
        assert_eq!(fs::read_dir(self.dir.path().join("state")).unwrap().count(), 0, "writable layers are left");
        assert_eq!(fs::read_dir(self.dir.path().join("run")).unwrap().count(), 0, "files of the pod are left");
        let cgroup = cgroup_root().join(&self.cgroup);
        let left: Vec<_> = fs::read_dir(&cgroup)
            .map(|d| d.flatten().filter(|e| e.path().is_dir()).map(|e| e.file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "cgroups are left: {left:?}");
    }
}

fn is_zombie(proc: &str) -> bool {
    fs::read_to_string(format!("{proc}/stat")).is_ok_and(|s| s.contains(") Z "))
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.netns.kill();
        let _ = self.netns.wait();
        if let Some(pid) = rustix::process::Pid::from_raw(self.supervisor as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let cgroup = cgroup_root().join(&self.cgroup);
        for _ in 0..200 {
            remove_cgroups(&cgroup);
            if !cgroup.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// What an exec said.
#[derive(Debug, Default)]
pub struct Executed {
    pub code: i32,
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
}

/// An exec of a shell script.
pub fn sh(id: &str, script: &str) -> ExecStart {
    ExecStart { container_id: id.into(), args: ["sh", "-c", script].map(str::to_owned).into(), ..ExecStart::default() }
}

/// Text of a log without dates and streams.
pub fn plain(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap();
    text.lines()
        .map(|line| {
            let mut fields = line.splitn(4, ' ');
            let (date, stream, tag) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            assert!(date.ends_with('Z') && matches!(stream, "stdout" | "stderr"), "{line}");
            let end = if tag == "F" { "\n" } else { "" };
            fields.next().unwrap_or("").to_owned() + end
        })
        .collect()
}

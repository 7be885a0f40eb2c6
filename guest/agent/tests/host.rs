//! Containers of a host pod, through the real agent. See `support` for what a machine needs.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::*;
use support::{Pod, Shape, has_controllers, need_host_pods, plain, sh, until};
use tonic::Code;

/// What is wrong with an image: links and where they lead, the working directory, and words of the refusal: none for "it may work",
/// `*` for any.
type Trap = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

type Change = fn(&mut CreateContainerRequest, &Pod);

fn process(r: &mut CreateContainerRequest) -> &mut Process {
    r.process.as_mut().unwrap()
}

fn bind(source: &str, destination: &str) -> Mount {
    Mount { destination: destination.into(), source: source.into(), r#type: "bind".into(), ..Mount::default() }
}

/// One row: what is asked for, a script, and what it prints.
#[tokio::test]
async fn containers_see_what_was_asked_for() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let configure = ConfigurePodRequest {
        hostname: "my-pod".into(),
        resolv_conf: "nameserver 192.0.2.1\n".into(),
        hosts: "192.0.2.2 me\n".into(),
        sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
        shm_size: 1 << 20,
        ..ConfigurePodRequest::default()
    };
    pod.client.configure_pod(configure.clone()).await.unwrap();
    pod.client.configure_pod(configure).await.unwrap();
    fs::create_dir(pod.dir.path().join("volume")).unwrap();
    fs::write(pod.dir.path().join("volume/file"), "content\n").unwrap();

    let none: Change = |_, _| {};
    let rows: &[(&str, Change, &str, i32, &str)] = &[
        ("exit code", none, "exit 7", 7, ""),
        ("killed by a signal", none, "sh -c 'kill -9 $$'; exit $?", 137, "Killed\n"),
        ("both streams", none, "echo a; echo b >&2", 0, "*"),
        ("pid 1 of its own", none, "echo $$; cat /proc/1/comm; :", 0, "1\nsh\n"),
        ("three descriptors", none, "ls /proc/self/fd | tr '\\n' ' '", 0, "0 1 2 3 "),
        ("no standard input", none, "cat; stat -L -c %t:%T /proc/self/fd/0", 0, "1:3\n"),
        ("host name", none, "hostname; echo $HOSTNAME; cat /etc/hostname", 0, "my-pod\nmy-pod\nmy-pod\n"),
        ("pod's files", none, "cat /etc/resolv.conf /etc/hosts", 0, "nameserver 192.0.2.1\n192.0.2.2 me\n"),
        ("sysctl", none, "cat /proc/sys/net/ipv4/ip_forward", 0, "1\n"),
        (
            "environment",
            |r, _| process(r).env = vec![b"A=b c".to_vec()],
            "echo $A $HOME; echo $PATH | cut -c1-10",
            0,
            "b c /root\n/usr/local\n",
        ),
        ("root", none, "id", 0, "uid=0(root) gid=0(root) groups=0(root)\n"),
        (
            "named user",
            |r, _| process(r).user = Some(User { name: "www".into(), ..User::default() }),
            "id; echo $HOME",
            0,
            "uid=33(www) gid=33(www) groups=33(www),50(staff)\n/home/www\n",
        ),
        (
            "a user opens its own output by name",
            |r, _| process(r).user = Some(User { uid: Some(5), ..User::default() }),
            "echo x > /dev/stdout; echo y > /proc/self/fd/2",
            0,
            "x\ny\n",
        ),
        (
            "numeric user with groups",
            |r, _| {
                process(r).user =
                    Some(User { uid: Some(1234), gid: Some(4321), supplemental_groups: vec![7], ..User::default() });
            },
            "id -u; id -g; id -G",
            0,
            "1234\n4321\n4321 7\n",
        ),
        (
            "a user other than root has no capabilities",
            |r, _| process(r).user = Some(User { uid: Some(5), ..User::default() }),
            "grep CapEff /proc/self/status",
            0,
            "CapEff:\t0000000000000000\n",
        ),
        (
            "capabilities",
            none,
            "grep -E 'Cap(Eff|Bnd|Inh)' /proc/self/status",
            0,
            "CapInh:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\n",
        ),
        (
            "ambient capabilities",
            |r, _| {
                let caps = process(r).capabilities.as_mut().unwrap();
                caps.inheritable = vec!["CAP_KILL".into()];
                caps.ambient = vec!["CAP_KILL".into()];
                process(r).user = Some(User { uid: Some(5), ..User::default() });
            },
            "grep CapEff /proc/self/status",
            0,
            "CapEff:\t0000000000000020\n",
        ),
        (
            "seccomp",
            none,
            "grep -E '^Seccomp:' /proc/self/status; unshare -m true",
            1,
            "Seccomp:\t2\nunshare: unshare(0x20000): Operation not permitted\n",
        ),
        ("unconfined", |r, _| process(r).seccomp = None, "grep -E '^Seccomp:' /proc/self/status", 0, "Seccomp:\t0\n"),
        (
            "profile",
            |r, _| {
                process(r).seccomp = Some(Seccomp {
            kind: seccomp::Kind::Profile.into(),
            profile: br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#.to_vec(),
        })
            },
            "mkdir /x",
            1,
            "mkdir: can't create directory '/x': No space left on device\n",
        ),
        (
            "no new privileges",
            |r, _| process(r).no_new_privileges = true,
            "grep NoNewPrivs /proc/self/status",
            0,
            "NoNewPrivs:\t1\n",
        ),
        (
            "rlimit",
            |r, _| process(r).rlimits = vec![Rlimit { r#type: "RLIMIT_NOFILE".into(), soft: 77, hard: 99 }],
            "ulimit -n; ulimit -Hn",
            0,
            "77\n99\n",
        ),
        ("oom score", |r, _| process(r).oom_score_adj = Some(321), "cat /proc/self/oom_score_adj", 0, "321\n"),
        ("umask", none, "umask", 0, "0022\n"),
        ("working directory", |r, _| process(r).cwd = "/made/for/it".into(), "pwd", 0, "/made/for/it\n"),
        (
            "writes stay in the container",
            none,
            "echo x > /new; cat /new; rm /etc/passwd; ls /etc/passwd",
            1,
            "x\nls: /etc/passwd: No such file or directory\n",
        ),
        (
            "read-only root",
            |r, _| r.readonly_rootfs = true,
            "touch /x; touch /dev/shm/y && echo shm",
            0,
            "touch: /x: Read-only file system\nshm\n",
        ),
        (
            "devices",
            none,
            "ls /dev | tr '\\n' ' '; echo x > /dev/null; head -c 2 /dev/zero | wc -c",
            0,
            "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 2\n",
        ),
        (
            "a device that is not allowed",
            none,
            "mknod /d b 253 0 && cat /d",
            1,
            "cat: can't open '/d': Operation not permitted\n",
        ),
        (
            "a device that was asked for",
            |r, _| {
                r.devices =
                    vec![Device { path: "/dev/there".into(), source: "/dev/kmsg".into(), permissions: "r".into() }];
                let caps = process(r).capabilities.as_mut().unwrap();
                for set in [&mut caps.bounding, &mut caps.permitted, &mut caps.effective] {
                    set.push("CAP_SYSLOG".into());
                }
            },
            "head -c 0 /dev/there && echo read; echo x > /dev/there",
            1,
            "read\nsh: can't create /dev/there: Operation not permitted\n",
        ),
        (
            "privileged",
            |r, _| {
                r.privileged = true;
                process(r).seccomp = None;
            },
            "test -e /dev/kmsg && echo devices; grep -c ' /sys sysfs rw' /proc/self/mounts",
            0,
            "devices\n1\n",
        ),
        (
            "mounts are read-only",
            none,
            "touch /sys/x; touch /sys/fs/cgroup/x; grep -c cgroup2 /proc/self/mounts",
            0,
            "touch: /sys/x: Read-only file system\ntouch: /sys/fs/cgroup/x: Read-only file system\n1\n",
        ),
        ("cgroup of its own", none, "cat /proc/self/cgroup | grep '^0::'", 0, "0::/\n"),
        ("shm", none, "grep '/dev/shm' /proc/mounts | grep -c size=1024k", 0, "1\n"),
        (
            "masked",
            |r, _| {
                r.masked_paths = vec!["/proc/uptime".into(), "/etc".into(), "/nothing".into()];
            },
            "cat /proc/uptime; ls /etc | wc -l; touch /etc/x",
            1,
            "0\ntouch: /etc/x: Read-only file system\n",
        ),
        (
            "read-only paths",
            |r, _| r.readonly_paths = vec!["/proc/sys".into(), "/bin".into()],
            "echo 0 > /proc/sys/net/ipv4/ip_forward; touch /bin/x",
            1,
            "sh: can't create /proc/sys/net/ipv4/ip_forward: Read-only file system\ntouch: /bin/x: Read-only file system\n",
        ),
        (
            "bind of a folder",
            |r, p| r.mounts = vec![bind(&p.path("volume"), "/new/volume")],
            "cat /new/volume/file; echo y > /new/volume/other",
            0,
            "content\n",
        ),
        (
            "bind of a file, read-only",
            |r, p| {
                r.mounts = vec![Mount { readonly: true, ..bind(&p.path("volume/file"), "/link/below/file") }];
            },
            "cat /tmp/below/file; echo x > /tmp/below/file",
            1,
            "content\nsh: can't create /tmp/below/file: Read-only file system\n",
        ),
        (
            "bind over the pod's file",
            |r, p| r.mounts = vec![bind(&p.path("volume/file"), "/etc/hosts")],
            "cat /etc/hosts",
            0,
            "content\n",
        ),
        (
            "tmpfs",
            |r, _| {
                r.mounts = vec![Mount {
                    destination: "/scratch".into(),
                    r#type: "tmpfs".into(),
                    options: ["noexec", "mode=1770", "size=4096"].map(str::to_owned).into(),
                    ..Mount::default()
                }]
            },
            "stat -c %a /scratch; head -c 9000 /dev/zero > /scratch/x 2>/dev/null; stat -c %s /scratch/x; grep scratch /proc/mounts | grep -c noexec",
            0,
            "1770\n4096\n1\n",
        ),
        (
            "zombies of its own are its business, not ours",
            none,
            "for i in 1 2 3; do (sh -c 'exit 0' &); done; echo ok",
            0,
            "ok\n",
        ),
    ];
    let mut wrong = Vec::new();
    for (n, (name, change, script, code, expected)) in rows.iter().enumerate() {
        let id = format!("row-{n}");
        // One stream, so that the order is certain.
        let mut request = pod.shell(&id, &format!("exec 2>&1; {script}"));
        change(&mut request, &pod);
        let (got, text) = pod.output(request).await;
        if got != *code || (text != *expected && *expected != "*") {
            wrong.push(format!("{name}: exit code {got}, not {code}; printed {text:?}, not {expected:?}"));
        }
        pod.remove(&id).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(fs::read_to_string(pod.dir.path().join("volume/other")).unwrap(), "y\n");
    let image = pod.dir.path().join("image");
    assert!(image.join("etc/passwd").exists() && !image.join("new").exists(), "a container changed the image");
    pod.end().await;
}

#[tokio::test]
async fn bad_requests_leave_nothing() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let rows: &[(&str, Change, Code, &str)] = &[
        ("no layer", |r, p| r.lower = vec![p.path("nowhere")], Code::InvalidArgument, "nowhere"),
        (
            "no such user",
            |r, _| process(r).user = Some(User { name: "ghost".into(), ..User::default() }),
            Code::InvalidArgument,
            "ghost",
        ),
        (
            "uid too large",
            |r, _| process(r).user = Some(User { name: "4294967296".into(), ..User::default() }),
            Code::InvalidArgument,
            "4294967296",
        ),
        (
            "no such source",
            |r, _| r.mounts = vec![bind("/no/such/source", "/x")],
            Code::InvalidArgument,
            "/no/such/source",
        ),
        (
            "folder over a file",
            |r, p| r.mounts = vec![bind(&p.path("image"), "/etc/passwd")],
            Code::InvalidArgument,
            "/etc/passwd",
        ),
        (
            "inside /proc",
            |r, p| r.mounts = vec![bind(&p.path("image/etc"), "/proc/sys")],
            Code::InvalidArgument,
            "/proc",
        ),
        (
            "over /proc/self",
            |r, p| r.mounts = vec![bind(&p.path("image/etc/passwd"), "/proc/self/attr/exec")],
            Code::InvalidArgument,
            "/proc",
        ),
        (
            "option of tmpfs",
            |r, _| {
                r.mounts = vec![Mount {
                    destination: "/x".into(),
                    r#type: "tmpfs".into(),
                    options: vec!["nonsense=1".into()],
                    ..Mount::default()
                }]
            },
            Code::InvalidArgument,
            "nonsense",
        ),
        (
            "capability",
            |r, _| process(r).capabilities.as_mut().unwrap().bounding.push("CAP_NONSENSE".into()),
            Code::InvalidArgument,
            "CAP_NONSENSE",
        ),
        (
            "device",
            |r, _| {
                r.devices = vec![Device { path: "/etc/passwd".into(), permissions: "r".into(), ..Device::default() }]
            },
            Code::InvalidArgument,
            "/etc/passwd",
        ),
        (
            "node's processes",
            |r, _| r.namespaces = Some(Namespaces { pid: PidMode::Node.into(), ..Namespaces::default() }),
            Code::FailedPrecondition,
            "node",
        ),
        (
            "target",
            |r, _| {
                r.namespaces = Some(Namespaces {
                    pid: PidMode::Target.into(),
                    pid_target: "ghost".into(),
                    ..Namespaces::default()
                })
            },
            Code::NotFound,
            "ghost",
        ),
        ("cwd is a file", |r, _| process(r).cwd = "/etc/passwd".into(), Code::InvalidArgument, "/etc/passwd"),
        ("cgroup that climbs", |r, _| r.cgroup_parent = "/../x".into(), Code::InvalidArgument, "cgroup"),
    ];
    for (name, change, code, words) in rows {
        let mut request = pod.shell("bad", "true");
        change(&mut request, &pod);
        let status = pod.client.create_container(request).await.expect_err(name);
        assert_eq!(status.code(), *code, "{name}: {status}");
        assert!(status.message().contains(words), "{name}: {status}");
        assert!(pod.state("bad").await.is_none(), "{name}: the container is listed");
        assert_eq!(fs::read_dir(pod.dir.path().join("state")).unwrap().count(), 0, "{name}: a layer is left");
        assert!(!support::cgroup_root().join(&pod.cgroup).join("bad").exists(), "{name}: a cgroup is left");
    }
    pod.end().await;
}

#[tokio::test]
async fn phases_and_their_errors() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let start = |id: &str| StartContainerRequest { id: id.into() };
    assert_eq!(pod.client.start_container(start("none")).await.unwrap_err().code(), Code::NotFound);

    let created = pod.client.create_container(pod.shell("a", "exec sleep 100000")).await.unwrap().into_inner();
    assert_eq!(created.user.unwrap().groups, [0]);
    assert_eq!(pod.state("a").await.unwrap().phase(), Phase::Created);
    assert_eq!(pod.client.create_container(pod.shell("a", "true")).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(pod.exec(sh("a", "true"), None).await.unwrap_err().code(), Code::FailedPrecondition);
    pod.client.start_container(start("a")).await.unwrap();
    assert_eq!(pod.state("a").await.unwrap().phase(), Phase::Running);
    assert_eq!(pod.client.start_container(start("a")).await.unwrap_err().code(), Code::FailedPrecondition);
    let signal = |signal, all| SignalContainerRequest { id: "a".into(), signal, all };
    assert_eq!(pod.client.signal_container(signal(99, false)).await.unwrap_err().code(), Code::InvalidArgument);
    pod.client.signal_container(signal(9, false)).await.unwrap();
    let ended = pod.ended("a").await;
    assert_eq!((ended.exit_code, ended.oom_killed), (137, false));
    pod.client.signal_container(signal(9, false)).await.unwrap();
    pod.client.signal_container(signal(15, true)).await.unwrap();

    for (id, args, words) in [
        ("m", &["no-such-command"][..], "not found"),
        ("n", &["/no/such/program"][..], "not found"),
        ("o", &["/etc/passwd"][..], "permission denied"),
    ] {
        pod.client.create_container(pod.request(id, args)).await.unwrap();
        let status = pod.client.start_container(start(id)).await.expect_err(id);
        assert!(status.message().contains(args[0]) && status.message().contains(words), "{status}");
        let state = pod.state(id).await.unwrap();
        assert_eq!((state.phase(), state.exit_code), (Phase::Exited, 128), "{id}");
        assert!(state.message.contains(args[0]), "{id}: {state:?}");
    }
    // Removed while CREATED and while RUNNING.
    pod.client.create_container(pod.shell("c", "true")).await.unwrap();
    pod.remove("c").await;
    pod.run(pod.shell("d", "trap '' TERM; while :; do sleep 1; done")).await.unwrap();
    pod.remove("d").await;
    assert!(pod.state("c").await.is_none() && pod.state("d").await.is_none());
    pod.end().await;
}

#[tokio::test]
async fn execs() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request = pod.shell("a", "exec sleep 100000");
    process(&mut request).env = vec![b"WHO=me".to_vec()];
    process(&mut request).cwd = "/tmp".into();
    process(&mut request).user = Some(User { name: "www".into(), ..User::default() });
    pod.run(request).await.unwrap();

    let done = pod
        .exec(
            sh(
                "a",
                "echo $WHO $HOME; pwd; id -u; grep -E '^(Seccomp|CapBnd):' /proc/self/status; echo err >&2; exit 3",
            ),
            None,
        )
        .await
        .unwrap();
    assert_eq!(done.stdout, "me /home/www\n/tmp\n33\nCapBnd:\t00000000a80425fb\nSeccomp:\t2\n");
    assert_eq!((done.code, done.stderr.as_str()), (3, "err\n"));

    let done = pod.exec(ExecStart { stdin: true, ..sh("a", "wc -c") }, Some("12345")).await.unwrap();
    assert_eq!(done.stdout.trim(), "5");

    let done = pod.exec(sh("a", "head -c 3000000 /dev/zero"), None).await.unwrap();
    assert_eq!((done.code, done.stdout.len()), (0, 3_000_000));

    let done = pod.exec(sh("a", "ls /proc/self/fd | tr '\\n' ' '; ps -o comm | grep -c sleep"), None).await.unwrap();
    assert_eq!(done.stdout, "0 1 2 3 1\n", "descriptors, and the container's processes");

    for (args, words) in [(&["no-such-command"][..], "not found"), (&["/tmp"][..], "permission denied")] {
        let start = ExecStart {
            container_id: "a".into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            ..ExecStart::default()
        };
        let status = pod.exec(start, None).await.unwrap_err();
        assert!(status.message().contains(words) && status.message().contains(args[0]), "{status}");
    }
    // What is left in the background does not hold the call, and lives on.
    let done = pod.exec(sh("a", "sleep 4243 & echo started"), None).await.unwrap();
    assert_eq!(done.stdout, "started\n");
    let done = pod.exec(sh("a", "ps -o args | grep -c '^sleep 4243'"), None).await.unwrap();
    assert_eq!(done.stdout.trim(), "1");

    // A terminal.
    let done = pod
        .exec(ExecStart { terminal: true, ..sh("a", "tty; test -t 0 && test -t 2 && echo terminal") }, None)
        .await
        .unwrap();
    assert_eq!(done.stdout, "/dev/pts/0\r\nterminal\r\n");

    // Time-out and hang-up kill what was forked, even in a session of its own.
    let script = "setsid sleep 4242 & sleep 4242";
    let done = pod.exec(ExecStart { timeout_ms: 300, ..sh("a", script) }, None).await.unwrap();
    assert!(done.timed_out && done.code == 137, "{done:?}");
    let left = pod.exec(sh("a", "ps -o args | grep -c '^sleep 4242'"), None).await.unwrap();
    assert_eq!(left.stdout.trim(), "0", "processes of a timed-out exec are left");

    let start = ExecInput { kind: Some(exec_input::Kind::Start(sh("a", script))) };
    let mut output = pod.client.exec(tokio_stream::iter([start])).await.unwrap().into_inner();
    output.message().await.unwrap();
    drop(output);
    for _ in 0..200 {
        let left = pod.exec(sh("a", "ps -o args | grep -c '^sleep 4242'"), None).await.unwrap();
        if left.stdout.trim() == "0" {
            let execs = fs::read_dir(support::cgroup_root().join(&pod.cgroup).join("a")).unwrap();
            let execs = execs.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("exec-")).count();
            assert!(execs <= 2, "{execs} cgroups of execs are left; one has a process, one may just be going");
            pod.end().await;
            return;
        }
    }
    panic!("processes of an exec whose caller hung up are left");
}

#[tokio::test]
async fn terminal_container() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request =
        pod.shell("t", "tty; test -t 0 && test -t 1 && test -t 2 && echo yes; stat -c %t:%T /dev/console; echo $TERM");
    process(&mut request).terminal = true;
    let (code, text) = pod.output(request).await;
    assert_eq!((code, text.as_str()), (0, "/dev/pts/0\nyes\n88:0\nxterm\n"));
    pod.end().await;
}

#[tokio::test]
async fn output_without_a_reader_waits() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("w", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; printf end"))
        .await
        .unwrap();
    // The pipe holds 64 KiB, so without a log it cannot end.
    assert_eq!(pod.state("w").await.unwrap().phase(), Phase::Running);
    let first = pod.open_log("w", "first");
    until("the first lines", || fs::metadata(&first).unwrap().len() > 0);
    let second = pod.open_log("w", "second");
    assert_eq!(pod.ended("w").await.exit_code, 0);
    let text = plain(&first) + &plain(&second);
    let expected: String = (0..20000).map(|n| format!("line {n}\n")).chain(["end".to_owned()]).collect();
    assert!(text == expected, "{} bytes instead of {}", text.len(), expected.len());
    pod.end().await;
}

#[tokio::test]
async fn many_layers_and_their_whiteouts() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut lower = Vec::new();
    for n in 0..120 {
        let dir = pod.dir.path().join(format!("layer-{n}"));
        fs::create_dir_all(dir.join("stack")).unwrap();
        fs::write(dir.join("stack").join(n.to_string()), "").unwrap();
        fs::write(dir.join("top"), format!("{n}\n")).unwrap();
        lower.push(dir);
    }
    // Topmost: hides a file, replaces a folder, and says what the root looks like.
    let whiteout = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, lower[0].join("link"), whiteout, rustix::fs::Mode::empty(), 0).unwrap();
    fs::create_dir(lower[0].join("home")).unwrap();
    rustix::fs::setxattr(lower[0].join("home"), "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    fs::set_permissions(&lower[0], fs::Permissions::from_mode(0o711)).unwrap();
    let mut request = pod.shell("l", "ls /stack | wc -l; cat /top; ls /link 2>&1; ls /home; stat -c %a /");
    request.lower = lower.iter().map(|d| d.to_str().unwrap().to_owned()).chain([pod.path("image")]).collect();
    let (_, text) = pod.output(request).await;
    assert_eq!(text, "120\n0\nls: /link: No such file or directory\n711\n");
    pod.end().await;
}

#[tokio::test]
async fn pid_namespaces() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let with = |mut r: CreateContainerRequest, pid: PidMode, target: &str| {
        r.namespaces = Some(Namespaces { pid: pid.into(), pid_target: target.into(), ..Namespaces::default() });
        r
    };
    pod.run(with(pod.shell("a", "sleep 4001 & exec sleep 4002"), PidMode::Pod, "")).await.unwrap();
    let count = "ps -o args | grep -c 'sleep 400[12]'; ps -o comm | grep -c pause";
    let (_, text) = pod.output(with(pod.shell("b", count), PidMode::Pod, "")).await;
    assert_eq!(text, "2\n1\n", "a container in the pod's namespace");
    let (_, text) = pod.output(with(pod.shell("c", count), PidMode::Container, "")).await;
    assert_eq!(text, "0\n0\n", "a container in its own namespace");
    pod.run(pod.shell("d", "exec sleep 4003")).await.unwrap();
    let (_, text) = pod.output(with(pod.shell("e", "ps -o args | grep -c '^sleep 4003'"), PidMode::Target, "d")).await;
    assert_eq!(text, "1\n", "a container in another one's namespace");
    // The end of its init ends the rest, though the namespace lives on.
    pod.client.signal_container(SignalContainerRequest { id: "a".into(), signal: 9, all: false }).await.unwrap();
    pod.ended("a").await;
    let (_, text) = pod.output(with(pod.shell("f", "ps -o args | grep -c 'sleep 400[12]'"), PidMode::Pod, "")).await;
    assert_eq!(text, "0\n");
    // Shared memory is the pod's.
    pod.output(pod.shell("g", "echo shared > /dev/shm/x")).await;
    let (_, text) = pod.output(pod.shell("h", "cat /dev/shm/x")).await;
    assert_eq!(text, "shared\n");
    pod.end().await;
}

#[tokio::test]
async fn namespaces_of_the_node() {
    need_host_pods!();
    let mut pod = Pod::shaped(Shape { node_pid: true, node_ipc: true }).await;
    let mut request = pod.shell("n", "test -d /proc/$PID && echo there; grep -c ' /dev/shm ' /proc/mounts");
    process(&mut request).env = vec![format!("PID={}", std::process::id()).into_bytes()];
    request.namespaces = Some(Namespaces { pid: PidMode::Node.into(), ipc_node: true, ..Namespaces::default() });
    let (_, text) = pod.output(request).await;
    assert_eq!(text, "there\n1\n");
    pod.end().await;
}

/// Images that lay traps where the agent mounts and writes.
#[tokio::test]
async fn evil_images_reach_nothing_of_the_node() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let node = pod.dir.path().join("node");
    fs::create_dir(&node).unwrap();
    fs::write(node.join("file"), "of the node").unwrap();
    let target = node.to_str().unwrap().to_owned();
    let rows: &[Trap] = &[
        ("linked /proc", &[("proc", "/etc")], "/", "/proc"),
        ("linked /dev", &[("dev", "NODE")], "/", "/dev"),
        ("linked /sys", &[("sys", "../../..")], "/", "/sys"),
        ("linked /etc", &[("etc", "NODE")], "/", ""),
        ("linked /etc/passwd", &[("etc/passwd", "NODE/file")], "/", ""),
        ("linked working directory", &[("w", "NODE")], "/w/deep", ""),
        ("working directory through a descriptor", &[], "/proc/self/fd/3", "*"),
        ("linked mount point", &[("mnt", "NODE")], "/", ""),
    ];
    for (name, links, cwd, refused) in rows {
        let layer = tempfile::tempdir_in(pod.dir.path()).unwrap();
        for (from, to) in *links {
            let from = layer.path().join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(to.replace("NODE", &target), from).unwrap();
        }
        let mut request = pod.shell("evil", "exec true");
        request.lower = vec![layer.path().to_str().unwrap().into(), pod.path("image")];
        request.mounts = vec![bind(&pod.path("image/etc/group"), "/mnt/group")];
        process(&mut request).cwd = (*cwd).into();
        let result = pod.run(request).await;
        match (*refused, result) {
            ("", result) => {
                // A link that leads nowhere inside the root may be refused, never followed outside.
                if let Err(status) = result {
                    assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
                }
            }
            (words, result) => {
                let status = result.expect_err(name);
                assert!(words == "*" || status.message().contains(words), "{name}: {status}");
            }
        }
        pod.remove("evil").await;
        assert_eq!(fs::read_to_string(node.join("file")).unwrap(), "of the node", "{name}");
        assert_eq!(fs::read_dir(&node).unwrap().count(), 1, "{name}: something was made on the node");
    }
    pod.end().await;
}

#[tokio::test]
async fn the_program_cannot_be_overwritten() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let exe = fs::read_link(format!("/proc/{}/exe", pod.supervisor)).unwrap();
    assert!(exe.to_string_lossy().contains("memfd:cofferdam-agent"), "{}", exe.display());
    let written = fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", pod.supervisor));
    assert!(written.and_then(|f| f.set_len(0)).is_err(), "the supervisor's program can be changed");
    // From inside, with all capabilities, while execs come and go.
    let mut request = pod.shell(
        "w",
        "while :; do for p in /proc/[0-9]*; do echo x 2>/dev/null >> $p/exe && echo wrote $p; done; done 2>/dev/null",
    );
    request.privileged = true;
    process(&mut request).seccomp = None;
    let log = pod.open_log("w", "w");
    pod.run(request).await.unwrap();
    for _ in 0..30 {
        pod.exec(sh("w", "true"), None).await.unwrap();
    }
    let before = fs::metadata(env!("CARGO_BIN_EXE_cofferdam-agent")).unwrap();
    assert!(!plain(&log).contains("wrote"), "{}", plain(&log));
    assert_eq!(before.len(), fs::metadata(format!("/proc/{}/exe", pod.supervisor)).unwrap().size());
    pod.end().await;
}

#[tokio::test]
async fn limits_and_stats() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("s", "head -c 3000000 /dev/zero > /big; exec sleep 100000")).await.unwrap();
    for _ in 0..1000 {
        if pod.exec(sh("s", "ps -o comm | grep -c sleep"), None).await.unwrap().stdout.trim() == "1" {
            break;
        }
    }
    let stats = pod.client.container_stats(ContainerStatsRequest { id: "s".into() }).await.unwrap().into_inner();
    assert!(stats.writable_bytes >= 3_000_000 && stats.writable_inodes >= 1, "{stats:?}");
    assert!(stats.cpu_usage_nanos > 0 && stats.pids >= 1, "{stats:?}");
    if !has_controllers() {
        let mut request = pod.shell("m", "true");
        request.resources = Some(Resources { memory_limit_bytes: 1 << 25, ..Resources::default() });
        let status = pod.client.create_container(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        eprintln!("limits are skipped: this machine's cgroup v2 has no memory and pids controllers");
        pod.end().await;
        return;
    }
    let mut request = pod.shell("m", "dd if=/dev/zero of=/dev/null bs=64M count=4; echo survived");
    request.resources =
        Some(Resources { memory_limit_bytes: 32 << 20, memory_swap_bytes: 32 << 20, ..Resources::default() });
    pod.run(request).await.unwrap();
    pod.open_log("m", "m");
    assert!(pod.ended("m").await.oom_killed);
    let mut request = pod.shell(
        "p",
        "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.high",
    );
    request.resources = Some(Resources {
        pids_limit: 17,
        cpu_shares: 1024,
        cpu_quota_us: 50_000,
        unified: [("memory.high".to_owned(), "33554432".to_owned()), ("no.such".to_owned(), "1".to_owned())].into(),
        ..Resources::default()
    });
    let (_, text) = pod.output(request).await;
    assert_eq!(text, "17\n100\n50000 100000\n33554432\n");
    pod.end().await;
}

#[tokio::test]
async fn events_tell_of_every_change() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut events = pod.client.events(EventsRequest {}).await.unwrap().into_inner();
    pod.open_log("e", "e");
    pod.run(pod.shell("e", "exit 5")).await.unwrap();
    let mut phases = Vec::new();
    while phases.last() != Some(&Phase::Exited) {
        phases.push(events.message().await.unwrap().unwrap().phase());
    }
    pod.remove("e").await;
    phases.push(events.message().await.unwrap().unwrap().phase());
    assert_eq!(phases, [Phase::Created, Phase::Running, Phase::Exited, Phase::Removed]);
    pod.end().await;
}

/// The supervisor dies: so does everything of the pod.
#[tokio::test]
async fn nothing_outlives_the_supervisor() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("a", "sleep 4900 & exec sleep 4901")).await.unwrap();
    let procs = support::cgroup_root().join(&pod.cgroup).join("a/cgroup.procs");
    let pids = || fs::read_to_string(&procs).unwrap().lines().count();
    until("the container's processes", || pids() == 2);
    let supervisor = rustix::process::Pid::from_raw(pod.supervisor as i32).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    until("the end of the container's processes", || pids() == 0);
    assert!(Path::new(&procs).exists());
}

/// Failures and execs give back all that they took.
#[tokio::test]
async fn nothing_leaks() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("a", "exec sleep 100000")).await.unwrap();
    let supervisor = pod.supervisor;
    let cgroup = support::cgroup_root().join(&pod.cgroup);
    let count = move || {
        let entries = |path: &Path| fs::read_dir(path).map(Iterator::count).unwrap_or(0);
        let proc = PathBuf::from(format!("/proc/{supervisor}"));
        let mounts = fs::read_to_string(proc.join("mountinfo")).unwrap().lines().count();
        let children = fs::read_to_string(proc.join(format!("task/{supervisor}/children"))).unwrap();
        let cgroups = walk(&cgroup);
        [entries(&proc.join("fd")), entries(&proc.join("task")), mounts, children.split_whitespace().count(), cgroups]
    };
    let mut before = None;
    for round in 0..60 {
        let missing = ExecStart { args: vec!["no-such".into()], ..sh("a", "") };
        pod.exec(missing, None).await.unwrap_err();
        pod.exec(ExecStart { terminal: true, ..sh("a", "true") }, None).await.unwrap();
        let mut bad = pod.shell("bad", "true");
        process(&mut bad).user = Some(User { name: "ghost".into(), ..User::default() });
        pod.client.create_container(bad).await.unwrap_err();
        pod.client.create_container(pod.request("nothing", &["no-such"])).await.unwrap();
        pod.client.start_container(StartContainerRequest { id: "nothing".into() }).await.unwrap_err();
        pod.remove("nothing").await;
        if round == 5 {
            before = Some(count());
        }
    }
    let before = before.unwrap();
    until("descriptors, threads, mounts, children and cgroups to be as before", || {
        count().iter().zip(before).all(|(now, then)| *now <= then)
    });
    pod.end().await;
}

fn walk(dir: &Path) -> usize {
    let dirs = fs::read_dir(dir).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
    dirs.map(|e| 1 + walk(&e.path())).sum()
}

/// A container exchanges a folder of a shared volume for a link to the node while others mount below it.
#[tokio::test]
async fn a_raced_volume_reaches_nothing_of_the_node() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    for name in ["node", "volume"] {
        fs::create_dir(pod.dir.path().join(name)).unwrap();
    }
    let node = pod.path("node");
    let race = format!(
        "cd /v; while :; do mkdir d; rm -rf d; ln -s {node} d; rm d; ln -s ../../../..{node} d; rm d; done 2>/dev/null"
    );
    let mut racer = pod.shell("racer", &race);
    racer.mounts = vec![bind(&pod.path("volume"), "/v")];
    pod.run(racer).await.unwrap();
    let (mut made, mut refused) = (0, 0);
    for _ in 0..150 {
        let mut request = pod.shell("victim", "true");
        process(&mut request).cwd = "/v/d/cwd".into();
        request.mounts = vec![
            bind(&pod.path("volume"), "/v"),
            bind(&pod.path("image/etc"), "/v/d/deep/folder"),
            bind(&pod.path("image/etc/group"), "/v/d/file"),
        ];
        request.masked_paths = vec!["/v/d/masked".into()];
        match pod.client.create_container(request).await {
            Ok(_) => made += 1,
            Err(_) => refused += 1,
        }
        pod.remove("victim").await;
        assert_eq!(fs::read_dir(&node).unwrap().count(), 0, "something was made on the node");
    }
    eprintln!("{made} containers made, {refused} refused");
    pod.end().await;
}

//! Tables: what is asked for, and what a container then sees.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::*;
use tonic::Code;

use crate::support::{self, Pod, need_host_pods};
use crate::{bind, process};

type Change = fn(&mut CreateContainerRequest, &Pod);

/// An image of two layers for volumes, of which the upper one replaces a file and deletes another; and a folder with links in it.
fn layers(pod: &Pod) {
    let dir = pod.dir.path();
    for made in ["low/etc", "low/bin", "up/etc", "deep/a/open"] {
        fs::create_dir_all(dir.join(made)).unwrap();
    }
    fs::write(dir.join("low/etc/text"), "lower\n").unwrap();
    fs::write(dir.join("low/etc/deleted"), "").unwrap();
    fs::write(dir.join("up/etc/text"), "upper\n").unwrap();
    fs::copy("/bin/busybox", dir.join("low/bin/echo")).unwrap();
    symlink("/etc", dir.join("up/link")).unwrap();
    symlink("../../../../../../../../etc/machine-id", dir.join("up/escape")).unwrap();
    symlink("/etc", dir.join("deep/link")).unwrap();
    fs::write(dir.join("deep/file"), "").unwrap();
}

fn image(pod: &Pod, sub_path: &str) -> Mount {
    Mount {
        destination: "/v".into(),
        r#type: "image".into(),
        lower: vec![pod.path("up"), pod.path("low")],
        sub_path: sub_path.into(),
        readonly: true,
        ..Mount::default()
    }
}

fn memory(destination: &str, sub_path: &str) -> Mount {
    Mount {
        destination: destination.into(),
        r#type: "memory".into(),
        memory: "0-42".into(),
        options: ["size=8192", "mode=2770", "uid=5", "gid=6"].map(str::to_owned).into(),
        sub_path: sub_path.into(),
        sub_uid: 7,
        sub_gid: 8,
        sub_mode: 0o700,
        ..Mount::default()
    }
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
    layers(&pod);

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
            "what is below a read-only folder and stays writable",
            |r, p| {
                let writable_below = ["a/open", "gone", "file/x", "link"].map(str::to_owned).into();
                r.mounts = vec![Mount {
                    readonly: true,
                    options: vec!["noexec".into()],
                    writable_below,
                    ..bind(&p.path("deep"), "/v")
                }];
            },
            "touch /v/a/open/x && echo open; touch /v/x /v/a/x /v/outside/x; grep ' /v' /proc/mounts | grep -c noexec",
            0,
            "open\ntouch: /v/x: Read-only file system\ntouch: /v/a/x: Read-only file system\n\
             touch: /v/outside/x: No such file or directory\n2\n",
        ),
        (
            "image volume",
            |r, p| r.mounts = vec![image(p, "")],
            "ls /v; cat /v/etc/text; touch /v/x; /v/bin/echo runs; grep ' /v ' /proc/mounts | grep -c 'overlay ro'",
            0,
            "bin\nescape\netc\nlink\nupper\ntouch: /v/x: Read-only file system\nruns\n1\n",
        ),
        (
            "image volume with a path and options",
            |r, p| {
                r.mounts = vec![Mount { options: vec!["noexec".into()], ..image(p, "bin") }, {
                    Mount { destination: "/text".into(), ..image(p, "link/text") }
                }]
            },
            "ls /v; cat /text; /v/echo x; echo x > /text",
            1,
            "echo\nupper\nsh: /v/echo: Permission denied\nsh: can't create /text: Read-only file system\n",
        ),
        (
            "memory volume of the pod",
            |r, _| r.mounts = vec![memory("/m", "")],
            "stat -c %a:%u:%g /m; head -c 9000 /dev/zero > /m/x 2>/dev/null; stat -c %s /m/x; echo -n kept > /m/x",
            0,
            "2770:5:6\n8192\n",
        ),
        (
            "the same one, and a folder in it",
            |r, _| {
                r.mounts = vec![Mount { readonly: true, ..memory("/m", "") }, memory("/sub", "a/b")];
            },
            "cat /m/x; touch /sub/y; ls /m/a/b; stat -c %a:%u:%g /m/a/b; touch /m/x",
            1,
            "kepty\n700:7:8\ntouch: /m/x: Read-only file system\n",
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
            "a path that the image volume has not",
            |r, p| {
                layers(p);
                r.mounts = vec![image(p, "etc/missing")];
            },
            Code::InvalidArgument,
            "etc/missing",
        ),
        (
            "a path that a link leads out of the image volume",
            |r, p| r.mounts = vec![image(p, "escape")],
            Code::InvalidArgument,
            "escape",
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

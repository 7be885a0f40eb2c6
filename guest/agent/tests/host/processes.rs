//! Execs, terminals, output and namespaces.

use std::fs;

use cofferdam_proto::agent::container_state::Phase;
use cofferdam_proto::agent::namespaces::Pid as PidMode;
use cofferdam_proto::agent::*;

use crate::support::{Pod, Shape, need_host_pods, plain, sh, until};
use crate::{bind, process};

#[tokio::test]
async fn execs() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request = pod.shell("a", "exec sleep 100000");
    process(&mut request).env = vec![b"WHO=me".to_vec(), b"TERM=dumb".to_vec()];
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
    let started = "sleep 4243 & until ps -o args | grep -q '^sleep 4243'; do :; done; echo started";
    let done = pod.exec(sh("a", started), None).await.unwrap();
    assert_eq!(done.stdout, "started\n");
    let done = pod.exec(sh("a", "ps -o args | grep -c '^sleep 4243'"), None).await.unwrap();
    assert_eq!(done.stdout.trim(), "1");

    // A terminal.
    let done = pod
        .exec(ExecStart { terminal: true, ..sh("a", "tty; test -t 0 && test -t 2 && echo terminal") }, None)
        .await
        .unwrap();
    assert_eq!(done.stdout, "/dev/pts/0\r\nterminal\r\n");
    let done = pod.exec(ExecStart { terminal: true, ..sh("a", "echo $TERM") }, None).await.unwrap();
    assert_eq!(done.stdout, "xterm\r\n", "the image's TERM is not about the caller's terminal");
    assert_eq!(pod.exec(sh("a", "echo $TERM"), None).await.unwrap().stdout, "dumb\n");

    // Time-out and hang-up kill what was forked, even in a session of its own.
    let script = "setsid sleep 4242 & sleep 4242";
    let done = pod.exec(ExecStart { timeout_ms: 300, ..sh("a", script) }, None).await.unwrap();
    assert!(done.timed_out && done.code == 137, "{done:?}");
    let left = pod.exec(sh("a", "ps -o args | grep -c '^sleep 4242'"), None).await.unwrap();
    assert_eq!(left.stdout.trim(), "0", "processes of a timed-out exec are left");

    // The caller hangs up at once, while the exec starts more and more.
    let busy = "i=0; while [ $i -lt 100 ]; do setsid sleep 4242 & sleep 4242 & i=$((i+1)); done; wait";
    for script in std::iter::once(script).chain([busy; 10]) {
        let start = ExecInput { kind: Some(exec_input::Kind::Start(sh("a", script))) };
        let mut output = pod.client.exec(tokio_stream::iter([start])).await.unwrap().into_inner();
        output.message().await.unwrap();
        drop(output);
        let began = std::time::Instant::now();
        loop {
            let left = pod.exec(sh("a", "ps -o args | grep '424[2]'"), None).await.unwrap().stdout;
            if left.is_empty() {
                break;
            }
            assert!(began.elapsed().as_secs() < 60, "left of an exec whose caller hung up: {left}");
        }
    }
    pod.end().await;
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
async fn pid_namespaces() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let with = |mut r: CreateContainerRequest, pid: PidMode, target: &str| {
        r.namespaces = Some(Namespaces { pid: pid.into(), pid_target: target.into(), ..Namespaces::default() });
        r
    };
    pod.run(with(pod.shell("a", "sleep 4001 & exec sleep 4002"), PidMode::Pod, "")).await.unwrap();
    let count = "ps -o args | grep -c 'sleep 400[12]'; ps -o comm | grep -c pause";
    // A started container may not have come to its programs yet.
    let soon = |wanted: &str, count: &str| {
        format!("for n in $(seq 600); do [ \"$({count})\" = {wanted} ] && break; sleep 0.1; done; {count}")
    };
    let both = format!("{}; ps -o comm | grep -c pause", soon("2", "ps -o args | grep -c '^sleep 400[12]'"));
    let (_, text) = pod.output(with(pod.shell("b", &both), PidMode::Pod, "")).await;
    assert_eq!(text, "2\n1\n", "a container in the pod's namespace");
    let (_, text) = pod.output(with(pod.shell("c", count), PidMode::Container, "")).await;
    assert_eq!(text, "0\n0\n", "a container in its own namespace");
    pod.run(pod.shell("d", "exec sleep 4003")).await.unwrap();
    let (_, text) =
        pod.output(with(pod.shell("e", &soon("1", "ps -o args | grep -c '^sleep 4003'")), PidMode::Target, "d")).await;
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
    let mut pod = Pod::shaped(Shape { node_pid: true, node_ipc: true, ..Shape::default() }).await;
    let mut request = pod.shell("n", "test -d /proc/$PID && echo there; grep -c ' /dev/shm ' /proc/mounts");
    process(&mut request).env = vec![format!("PID={}", std::process::id()).into_bytes()];
    request.namespaces = Some(Namespaces { pid: PidMode::Node.into(), ipc_node: true, ..Namespaces::default() });
    let (_, text) = pod.output(request).await;
    assert_eq!(text, "there\n1\n");
    pod.end().await;
}

/// Mounts that the node and containers make in a shared volume travel as the pod asked.
#[tokio::test]
async fn mounts_travel_as_asked() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let volume = pod.path("volume");
    fs::create_dir(&volume).unwrap();
    let node =
        |args: &[&str]| assert!(std::process::Command::new(args[0]).args(&args[1..]).status().unwrap().success());
    node(&["mount", "-t", "tmpfs", "tmpfs", &volume]);
    node(&["mount", "--make-shared", &volume]);
    for sub in ["in", "out"] {
        fs::create_dir(format!("{volume}/{sub}")).unwrap();
    }
    for (id, propagation) in [("slave", "slave"), ("private", ""), ("shared", "shared")] {
        let mut request = pod.shell(id, "exec sleep 100000");
        request.privileged = true;
        let caps = process(&mut request).capabilities.as_mut().unwrap();
        for set in [&mut caps.bounding, &mut caps.permitted, &mut caps.effective] {
            set.push("CAP_SYS_ADMIN".into());
        }
        process(&mut request).seccomp = None;
        request.mounts = vec![Mount { propagation: propagation.into(), recursive: true, ..bind(&volume, "/v") }];
        pod.run(request).await.unwrap();
    }
    node(&["mount", "-t", "tmpfs", "tmpfs", &format!("{volume}/in")]);
    fs::write(format!("{volume}/in/x"), "").unwrap();
    for (id, seen) in [("slave", "1"), ("shared", "1"), ("private", "0")] {
        let done = pod.exec(sh(id, "ls /v/in | wc -l"), None).await.unwrap();
        assert_eq!(done.stdout.trim(), seen, "what the node mounted, in {id}");
    }
    for (id, seen) in [("slave", false), ("private", false), ("shared", true)] {
        let done = pod.exec(sh(id, "mount -t tmpfs t /v/out && touch /v/out/y"), None).await.unwrap();
        assert_eq!(done.code, 0, "{id}: {done:?}");
        assert_eq!(std::path::Path::new(&format!("{volume}/out/y")).exists(), seen, "what {id} mounted, on the node");
    }
    pod.end().await;
    node(&["umount", "-R", &volume]);
}

//! What images and containers try.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use cofferdam_proto::agent::*;
use tonic::Code;

use crate::support::{self, Pod, need_host_pods, plain, sh, until};
use crate::{bind, process};

/// What is wrong with an image: links and where they lead, the working directory, and words of the refusal: none for "it may work",
/// `*` for any.
type Trap = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);

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

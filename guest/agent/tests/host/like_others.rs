//! What users know from other runtimes: volumes of images, links that lead nowhere, limits, users, 32-bit programs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use cofferdam_proto::agent::*;

use crate::support::{self, Pod, need_host_pods, sh, until};
use crate::{bind, process};

#[tokio::test]
async fn volumes_of_the_image_are_writable_and_the_container_s_own() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let data = pod.dir.path().join("image/data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("seed"), "seed\n").unwrap();
    chown(data.join("seed"), Some(33), Some(50)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("/data", pod.dir.path().join("image/linked")).unwrap();
    let declared = ["/data", "/missing/deep", "/link/covered", "/data/sub/file"].map(str::to_owned);
    let script = "touch /x 2>&1; cat /data/seed; stat -c %u:%g:%a /data /data/seed /missing/deep; \
        echo more >> /data/seed; touch /missing/deep/y; ls /link/covered; cat /data/sub/group | head -n 1";
    for id in ["first", "second"] {
        let mut request = pod.shell(id, script);
        request.readonly_rootfs = true;
        request.image_volumes = declared[..3].to_vec();
        request.mounts =
            vec![bind(&pod.path("image/data"), "/link/covered"), bind(&pod.path("image/etc/group"), "/data/sub/group")];
        let (code, text) = pod.output(request).await;
        let expected = "touch: /x: Read-only file system\nseed\n0:0:1777\n33:50:644\n0:0:755\nseed\nsub\nroot:x:0:\n";
        assert_eq!((code, text.as_str()), (0, expected), "{id}");
    }
    assert_eq!(fs::read_to_string(data.join("seed")).unwrap(), "seed\n", "the image was changed");
    // A file of the image is no volume.
    let mut request = pod.shell("file", "true");
    request.image_volumes = vec!["/data/seed".into()];
    let error = pod.client.create_container(request).await.unwrap_err();
    assert!(error.message().contains("/data/seed as a volume, which is not a directory"), "{error}");
    pod.end().await;
}

#[tokio::test]
async fn a_mount_over_a_dangling_link_goes_where_it_leads() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let configure = ConfigurePodRequest { resolv_conf: "nameserver 192.0.2.1\n".into(), ..Default::default() };
    pod.client.configure_pod(configure).await.unwrap();
    let image = pod.dir.path().join("image");
    symlink("../run/systemd/resolve/stub-resolv.conf", image.join("etc/resolv.conf")).unwrap();
    let volume = pod.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    symlink("/run/not/there/file", volume.join("to-file")).unwrap();
    symlink("../run/not/there/folder", volume.join("to-folder")).unwrap();
    symlink("/run/elsewhere", volume.join("middle")).unwrap();
    let script = "cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf; head -n 1 /run/not/there/file; \
        head -n 1 /v/to-folder/group; head -n 1 /run/elsewhere/deep/group; pwd";
    let mut request = pod.shell("d", script);
    process(&mut request).cwd = "/v/middle/work".into();
    request.mounts = vec![
        bind(&pod.path("volume"), "/v"),
        bind(&pod.path("image/etc/group"), "/v/to-file"),
        bind(&pod.path("image/etc"), "/v/to-folder"),
        bind(&pod.path("image/etc/group"), "/v/middle/deep/group"),
    ];
    let (code, text) = pod.output(request).await;
    let line = "nameserver 192.0.2.1\n";
    let expected = format!("{line}{line}root:x:0:\nroot:x:0:\nroot:x:0:\n/run/elsewhere/work\n");
    assert_eq!((code, text), (0, expected));
    assert_eq!(fs::read_dir(&volume).unwrap().count(), 3, "the volume was changed");
    pod.end().await;
}

#[tokio::test]
async fn an_exec_is_in_the_container_s_cgroup() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request = pod.shell("a", "exec sleep 100000");
    if support::has_controllers() {
        request.resources = Some(Resources { memory_limit_bytes: 64 << 20, pids_limit: 100, ..Resources::default() });
    }
    pod.run(request).await.unwrap();
    let done = pod.exec(sh("a", "cat /proc/self/cgroup | grep ^0::"), None).await.unwrap();
    assert_eq!(done.stdout, "0::/\n");
    if support::has_controllers() {
        let script = "p=$(sed -n 's/^0:://p' /proc/self/cgroup); cat /sys/fs/cgroup${p%/}/memory.max";
        let done = pod.exec(sh("a", script), None).await.unwrap();
        assert_eq!(done.stdout, format!("{}\n", 64 << 20));
    }
    pod.end().await;
}

/// Systemd or docker in a container moves all processes into cgroups below and hands controllers down; no process can be
/// in the container's own cgroup then.
#[tokio::test]
async fn an_exec_works_where_the_container_made_cgroups_of_its_own() {
    need_host_pods!();
    if !support::has_controllers() {
        eprintln!("skipped: this machine hands out no controllers");
        return;
    }
    let mut pod = Pod::start().await;
    pod.run(pod.shell("a", "exec sleep 100000")).await.unwrap();
    let cgroup = support::cgroup_root().join(&pod.cgroup).join("a");
    fs::create_dir(cgroup.join("init")).unwrap();
    for pid in fs::read_to_string(cgroup.join("cgroup.procs")).unwrap().lines() {
        fs::write(cgroup.join("init/cgroup.procs"), pid).unwrap();
    }
    fs::write(cgroup.join("cgroup.subtree_control"), "+memory +pids").unwrap();
    let done = pod.exec(sh("a", "grep ^0:: /proc/self/cgroup"), None).await.unwrap();
    assert_eq!(done.stdout, "0::/init\n");
    pod.end().await;
}

#[tokio::test]
async fn a_program_started_by_nohup_outlives_a_hung_up_exec() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.run(pod.shell("a", "exec sleep 100000")).await.unwrap();
    let script = "sleep 4245 & (trap '' HUP; echo go; exec sleep 4244) & sleep 4246";
    let start = ExecInput { kind: Some(exec_input::Kind::Start(sh("a", script))) };
    let mut output = pod.client.exec(tokio_stream::iter([start])).await.unwrap().into_inner();
    while let Some(message) = output.message().await.unwrap() {
        if matches!(message.kind, Some(exec_output::Kind::Stdout(_))) {
            break;
        }
    }
    drop(output);
    let began = std::time::Instant::now();
    while began.elapsed().as_secs() < 60 {
        let left = pod.exec(sh("a", "ps -o args | grep '^sleep 424' | sort"), None).await.unwrap();
        if left.stdout == "sleep 4244\n" {
            pod.end().await;
            return;
        }
    }
    panic!("not just the program that ignores SIGHUP is left");
}

#[tokio::test]
async fn a_program_ignores_no_signal() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    // Without a shell, which has its own mind about SIGQUIT.
    let (_, text) = pod.output(pod.request("a", &["grep", "SigIgn", "/proc/self/status"])).await;
    assert_eq!(text, "SigIgn:\t0000000000000000\n");
    pod.end().await;
}

#[tokio::test]
async fn a_privileged_container_sees_all_cgroups() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let parent = pod.cgroup.clone();
    let mut request =
        pod.shell("p", "grep ^0:: /proc/self/cgroup; test -w /sys/fs/cgroup/cgroup.procs && echo writable");
    request.privileged = true;
    let (_, text) = pod.output(request).await;
    assert!(text.contains(&format!("/{parent}/p\n")) && text.ends_with("writable\n"), "{text}");
    let (_, text) = pod.output(pod.shell("q", "grep ^0:: /proc/self/cgroup")).await;
    assert_eq!(text, "0::/\n");
    pod.end().await;
}

#[tokio::test]
async fn users_are_the_image_s_and_homes_what_the_container_sees() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let volume = pod.dir.path().join("etc");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("passwd"), "www:x:77:77::/elsewhere:/bin/sh\nother:x:33:33::/seen:/bin/sh\n").unwrap();
    let mut request = pod.shell("u", "id -u; echo $HOME; sleep 100000");
    request.mounts = vec![bind(&pod.path("etc"), "/etc")];
    process(&mut request).user = Some(User { name: "www".into(), ..User::default() });
    let log = pod.open_log("u", "u");
    pod.run(request).await.unwrap();
    until("output", || support::plain(&log).lines().count() == 2);
    assert_eq!(support::plain(&log), "33\n/seen\n");
    fs::write(volume.join("passwd"), "other:x:33:33::/later:/bin/sh\n").unwrap();
    let done = pod.exec(sh("u", "echo $HOME"), None).await.unwrap();
    assert_eq!(done.stdout, "/later\n");
    // No entry: as runc, not as root's usual home. An empty HOME counts as none.
    let mut request = pod.shell("n", "echo $HOME");
    process(&mut request).env = vec![b"HOME=".to_vec()];
    process(&mut request).user = Some(User { uid: Some(4000), ..User::default() });
    assert_eq!(pod.output(request).await.1, "/\n");
    pod.end().await;
}

/// A program of 32 bits that writes a line and ends: write(1, text), exit(0).
fn program_of_32_bits() -> Vec<u8> {
    let (base, text) = (0x0804_8000u32, b"thirty-two\n");
    let code = |at: u32| {
        let mut code = vec![0xb8, 4, 0, 0, 0, 0xbb, 1, 0, 0, 0, 0xb9];
        code.extend(at.to_le_bytes());
        code.push(0xba);
        code.extend((text.len() as u32).to_le_bytes());
        code.extend([0xcd, 0x80, 0xb8, 1, 0, 0, 0, 0x31, 0xdb, 0xcd, 0x80]);
        code
    };
    let length = code(0).len() as u32;
    let size = 84 + length + text.len() as u32;
    let mut elf = b"\x7fELF\x01\x01\x01".to_vec();
    elf.extend([0; 9]);
    elf.extend([2u16, 3].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([1u32, base + 84, 52, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([52u16, 32, 1, 40, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([1u32, 0, base, base, size, size, 5, 4096].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(code(base + 84 + length));
    elf.extend(text);
    elf
}

#[tokio::test]
async fn a_program_of_32_bits_runs_under_the_default_profile() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let path = pod.dir.path().join("image/bin/i386");
    fs::write(&path, program_of_32_bits()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    if std::process::Command::new(&path).output().map(|o| o.stdout).unwrap_or_default() != b"thirty-two\n" {
        eprintln!("skipped: this machine runs no programs of 32 bits");
        return;
    }
    assert_eq!(pod.output(pod.request("p", &["i386"])).await, (0, "thirty-two\n".into()));
    pod.end().await;
}

#[tokio::test]
async fn a_pod_without_a_name_has_its_node_s() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    pod.client.configure_pod(ConfigurePodRequest::default()).await.unwrap();
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(pod.output(pod.shell("h", "cat /etc/hostname")).await, (0, name));
    pod.end().await;
}

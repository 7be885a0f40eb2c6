//! Pods with users of their own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use cofferdam_proto::agent::*;
use cofferdam_proto::supervisor::UserRange;
use tonic::Code;

use crate::support::{Pod, Shape, need_host_pods};
use crate::{bind, process};

const RANGE: UserRange = UserRange { host_id: 200_000, length: 65_536 };

/// Whether files below the tests' folder can be shown with other owners; an overlay, as some containers have it, cannot.
fn maps_owners() -> bool {
    let text =
        std::process::Command::new("stat").args(["-f", "-c", "%T", env!("CARGO_TARGET_TMPDIR")]).output().unwrap();
    let kind = String::from_utf8_lossy(&text.stdout).trim().to_owned();
    let can = ["ext2/ext3", "xfs", "btrfs"].contains(&kind.as_str());
    if !can {
        eprintln!("skipped: {kind} cannot map owners");
    }
    can
}

async fn pod() -> Pod {
    Pod::shaped(Shape { users: Some(RANGE), ..Shape::default() }).await
}

#[tokio::test]
async fn root_is_an_ordinary_user_of_the_node() {
    need_host_pods!();
    if !maps_owners() {
        return;
    }
    let mut pod = pod().await;
    let configure = ConfigurePodRequest {
        hostname: "mapped".into(),
        hosts: "192.0.2.2 me\n".into(),
        sysctls: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
        ..ConfigurePodRequest::default()
    };
    pod.client.configure_pod(configure).await.unwrap();
    for name in ["mapped", "plain"] {
        let volume = pod.dir.path().join(name);
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "content\n").unwrap();
        fs::set_permissions(volume.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    chown(pod.dir.path().join("mapped/file"), Some(7), Some(8)).unwrap();

    type Change = fn(&mut CreateContainerRequest, &Pod);
    let none: Change = |_, _| {};
    let mapped: Change = |r, pod| {
        r.mounts = vec![bind(&pod.path("mapped"), "/mapped"), bind(&pod.path("plain"), "/plain")];
        r.mounts[0].options.push("idmap".into());
    };
    let admin: Change = |r, _| {
        let caps = process(r).capabilities.as_mut().unwrap();
        for set in [&mut caps.bounding, &mut caps.permitted, &mut caps.effective] {
            set.push("CAP_SYS_ADMIN".into());
            set.push("CAP_NET_ADMIN".into());
        }
        process(r).seccomp = None;
        r.masked_paths = vec!["/proc/kcore".into()];
        r.readonly_paths = vec!["/proc/sys".into()];
    };
    let net: Change = |r, _| {
        let caps = process(r).capabilities.as_mut().unwrap();
        for set in [&mut caps.bounding, &mut caps.permitted, &mut caps.effective] {
            set.push("CAP_NET_ADMIN".into());
        }
    };
    let rows: &[(&str, Change, &str, i32, &str)] = &[
        (
            "map",
            none,
            "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map",
            0,
            " 0 200000 65536\n 0 200000 65536\n",
        ),
        ("root", none, "id", 0, "uid=0(root) gid=0(root) groups=0(root)\n"),
        ("image's files are root's", none, "stat -c %u:%g /bin/sh /etc /etc/passwd", 0, "0:0\n0:0\n0:0\n"),
        (
            "root's own",
            none,
            "stat -c %u:%g / /dev /dev/null /dev/shm /etc/hosts /etc/hostname",
            0,
            "0:0\n0:0\n0:0\n0:0\n0:0\n0:0\n",
        ),
        (
            "writes",
            none,
            "echo x > /new; mkdir /d; stat -c %u:%g /new /d; echo y >> /etc/passwd; rm /etc/group; ls /etc",
            0,
            "0:0\n0:0\nhostname\nhosts\npasswd\n",
        ),
        (
            "other users",
            |r, _| process(r).user = Some(User { name: "www".into(), ..User::default() }),
            "id -u; id -G; touch /dev/shm/x && stat -c %u /dev/shm/x; echo z > /dev/stdout",
            0,
            "33\n33 50\n33\nz\n",
        ),
        (
            "made working directory",
            |r, _| process(r).cwd = "/made/here".into(),
            "pwd; stat -c %u:%g . ..",
            0,
            "/made/here\n0:0\n0:0\n",
        ),
        (
            "volumes",
            mapped,
            "stat -c %u:%g /mapped/file /plain/file; cat /mapped/file; cat /plain/file 2>&1; touch /mapped/made",
            0,
            "*",
        ),
        ("devices", none, "echo x > /dev/null && head -c 1 /dev/zero | wc -c", 0, "1\n"),
        ("device nodes cannot be used", none, "mknod /tmp/kmsg c 1 11 2>&1; true", 0, "*"),
        (
            "network sysctls are the pod's",
            net,
            "cat /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward",
            0,
            "1\n0\n",
        ),
        ("node's sysctls are not", none, "echo x > /proc/sys/kernel/core_pattern", 1, "*"),
        ("ports", admin, "ip link set lo up && ip link add d0 type dummy; true", 0, "*"),
        ("mounts of its own", admin, "mount -t tmpfs x /tmp && stat -f -c %T /tmp", 0, "tmpfs\n"),
        ("masks stay", admin, "umount /proc/kcore 2>/dev/null || echo stays", 0, "stays\n"),
        ("read-only paths stay", admin, "mount -o remount,bind,rw /proc/sys 2>/dev/null || echo stays", 0, "stays\n"),
        ("host name", admin, "hostname other && hostname", 0, "other\n"),
    ];
    for (number, (name, change, script, code, expected)) in rows.iter().enumerate() {
        let mut request = pod.shell(&format!("c{number}"), script);
        change(&mut request, &pod);
        let (got, output) = pod.output(request).await;
        assert_eq!(got, *code, "{name}: {output}");
        assert!(*expected == "*" || output == *expected, "{name}: {output:?} is not {expected:?}");
        if *name == "volumes" {
            assert!(output.starts_with("7:8\n65534:65534\n") && output.contains("denied"), "{output:?}");
            let made = fs::metadata(pod.dir.path().join("mapped/made"));
            assert_eq!(
                made.map(|m| (m.uid(), m.gid())).unwrap(),
                (0, 0),
                "what root makes in a mapped volume is root's there"
            );
        }
    }
    pod.end().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    need_host_pods!();
    if !maps_owners() {
        return;
    }
    let mut users = pod().await;
    let mut request = users.shell("c", "true");
    process(&mut request).user = Some(User { uid: Some(65_536), ..User::default() });
    let error = users.client.create_container(request).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("65536"), "{error}");
    let mut request = users.shell("c", "true");
    request.mounts = vec![Mount { propagation: "shared".into(), ..bind("/", "/mnt") }];
    let error = users.client.create_container(request).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("bidirectional"), "{error}");
    // A file system that cannot: /proc has no owners to map.
    let mut request = users.shell("c", "true");
    request.mounts = vec![bind("/proc", "/mnt")];
    request.mounts[0].options.push("idmap".into());
    let error = users.client.create_container(request).await.unwrap_err();
    assert!(error.message().contains("map the owners of volume /mnt"), "{error}");
    users.end().await;

    let mut plain = Pod::start().await;
    let mut request = plain.shell("c", "true");
    request.mounts = vec![bind("/tmp", "/mnt")];
    request.mounts[0].options.push("idmap".into());
    let error = plain.client.create_container(request).await.unwrap_err();
    assert!(error.code() == Code::InvalidArgument && error.message().contains("users of the pod's own"), "{error}");
    plain.end().await;
}

use std::os::unix::fs::PermissionsExt;

use rustix::mount::{MountPropagationFlags, MoveMountFlags, mount_change, move_mount};

use super::*;
use crate::testing::{Node, new_id, on_a_node};

mod pod;

use pod::TestPod;

#[test]
fn what_is_exported_is_there_read_only_if_so_and_goes_away() {
    on_a_node(|node| async move {
        for pod in [TestPod::new(&node), TestPod::old(&node)] {
            exports_come_and_go(&node, pod);
        }
    });
}

fn exports_come_and_go(node: &Node, pod: TestPod) {
    let dirs = &pod.dirs;
    let source = node.folder.path().join("volume with space");
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("file"), "text").unwrap();
    // A mount below the source is exported with it.
    rustix::mount::mount("tmpfs", source.join("sub"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();

    let (ro, rro, rw) = (
        Access { read_only: true, ..Access::default() },
        Access { read_only: true, recursive: true, ..Access::default() },
        Access::default(),
    );
    let container = new_id();
    let other = new_id();
    let seen = |guest: String| pod.seen(&guest);
    let path = |exported: Exported| seen(exported.path);
    let read_only = path(export(dirs, &container, &source, rro, None).unwrap());
    let writable = path(export(dirs, &container, &source, rw, None).unwrap());
    let file = path(export(dirs, &container, &source.join("file"), ro, None).unwrap());
    let layer = export_layer(dirs, &container, &source, None).unwrap();
    assert_eq!(layer, format!("{GUEST_SHARE}/{container}/layer0"));
    assert_eq!(export_layer(dirs, &container, &source, None).unwrap(), format!("{GUEST_SHARE}/{container}/layer1"));
    let layer = seen(layer);
    let below = |access| {
        let exported = export(dirs, &container, &source, access, None).unwrap();
        let [submount] = &exported.submounts[..] else { panic!("{exported:?}") };
        assert_eq!((submount.below.to_str(), submount.read_only), (Some("sub"), access.recursive));
        seen(submount.path.clone())
    };
    // Read-only, but not recursively: the mount below stays as it is.
    let above = path(export(dirs, &container, &source, ro, None).unwrap());
    assert_eq!(below(ro), below(rw), "and is the same for all");
    // Another container that sees the same sees the same mounts.
    assert_eq!(path(export(dirs, &other, &source, rw, None).unwrap()), writable);
    assert_eq!(path(export(dirs, &other, &source.join("file"), ro, None).unwrap()), file);
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    let refused = |path: PathBuf| {
        let error = fs::write(&path, "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{}: {error}", path.display());
    };
    refused(read_only.join("new"));
    refused(read_only.join("sub/new"));
    refused(below(rro).join("new"));
    refused(above.join("new"));
    refused(file.clone());
    refused(layer.join("new"));
    refused(pod.share.join("new"));
    refused(pod.share.join(&container).join("new"));
    fs::write(below(rw).join("new"), "x").unwrap();
    assert!(source.join("sub/new").exists() && !writable.join("sub/new").exists());
    fs::write(writable.join("top"), "x").unwrap();
    // The monitor's descriptor sees what was mounted after it was opened.
    let name = writable.strip_prefix(&pod.share).unwrap().join("top");
    rustix::fs::openat(&pod.root, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    // What is mounted on the node later does not get in.
    fs::create_dir(source.join("late")).unwrap();
    rustix::mount::mount("tmpfs", source.join("late"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    fs::write(source.join("late/secret"), "x").unwrap();
    assert!(!writable.join("late/secret").exists());
    // A container that comes after it sees it.
    let after = export(dirs, &other, &source, rw, None).unwrap();
    assert_eq!(after.submounts.len(), 2);
    assert!(after.submounts.iter().any(|submount| seen(submount.path.clone()).join("secret").exists()));
    assert_eq!(path(after), writable);

    assert!(export(dirs, &container, Path::new("/nowhere"), ro, None).is_err());
    assert!(export(dirs, "../up", &source, ro, None).is_err());
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dirs.run.clone()), 0o700);

    unexport(dirs, &container).unwrap();
    unexport(dirs, &container).unwrap();
    assert!(!dirs.tree().join(&container).exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), "text", "another container has it still");
    unexport(dirs, &other).unwrap();
    assert!(!file.exists());
    assert!(writable.join("top").exists(), "folders stay as long as the pod");
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "text");

    export(dirs, &container, &source, ro, None).unwrap();
    pod.remove();
    assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "text");
    unmount_below(&source).unwrap();
    fs::remove_dir_all(&source).unwrap();
}

#[test]
fn what_is_mounted_on_the_node_later_comes_in_where_it_is_asked_for() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let container = new_id();
        let source = node.folder.path().join("shared");
        fs::create_dir_all(source.join("late")).unwrap();
        rustix::mount::mount_bind(&source, &source).unwrap();
        mount_change(&source, MountPropagationFlags::SHARED).unwrap();
        let follow = Access { follow: true, ..Access::default() };
        let seen = |access| {
            let exported = export(dirs, &container, &source, access, None).unwrap();
            pod.seen(&exported.path)
        };
        let (slave, private) = (seen(follow), seen(Access::default()));
        let read_only = seen(Access { read_only: true, ..follow });
        assert!(slave.to_str().unwrap().contains("-rw-s"), "the file server keeps it apart: {}", slave.display());

        rustix::mount::mount("tmpfs", source.join("late"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::write(source.join("late/file"), "x").unwrap();
        assert!(slave.join("late/file").exists() && read_only.join("late/file").exists());
        assert!(!private.join("late/file").exists());
        // And nothing goes the other way.
        fs::create_dir(slave.join("own")).unwrap();
        let other = node.folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "x").unwrap();
        let tree = copy(&path_fd(&other).unwrap(), Access::default(), None).unwrap();
        let name = slave.strip_prefix(&pod.share).unwrap().join("own");
        Place::of(dirs).unwrap().attach(&tree, &name).unwrap();
        assert!(slave.join("own/file").exists() && !source.join("own/file").exists());
        unmount(source.join("late"), UnmountFlags::DETACH).unwrap();
        assert!(!slave.join("late/file").exists());
        fs::remove_dir(source.join("late")).unwrap();
        pod.remove();
        unmount(&source, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn owners_are_mapped_where_it_is_asked_for() {
    on_a_node(|node| async move {
        use std::os::unix::fs::{MetadataExt, chown};

        if let Err(why) = users::try_out(node.folder.path()) {
            return eprintln!("skipped: {why}");
        }
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let own = users::mapping(crate::spec::UserRange { host_id: 200_000, length: 1000 }).unwrap();
        let source = node.folder.path().join("owned");
        fs::create_dir_all(source.join("below")).unwrap();
        rustix::mount::mount("tmpfs", source.join("below"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        for (name, owner) in [("root", 0), ("user", 7), ("below/user", 7), ("stranger", 1000)] {
            fs::write(source.join(name), "x").unwrap();
            chown(source.join(name), Some(owner), Some(owner)).unwrap();
        }
        let container = new_id();
        let seen = |guest: &str| pod.seen(guest);
        let paths = |access| {
            let exported = export(dirs, &container, &source, access, Some(&own)).unwrap();
            (seen(&exported.path), seen(&exported.submounts[0].path))
        };
        let (mapped, below) = paths(Access { mapped: true, ..Access::default() });
        let (plain, _) = paths(Access::default());
        assert_ne!(mapped, plain);
        // What follows says that it is one of several views of the same files, which the file server keeps apart.
        assert!(mapped.to_str().unwrap().ends_with("-rw-p1"), "{}", mapped.display());
        assert!(below.to_str().unwrap().ends_with("-rw-p1"), "{}", below.display());
        let layer = seen(&export_layer(dirs, &container, &source.join("below"), Some(&own)).unwrap());
        let owners = |path: PathBuf| fs::metadata(&path).map(|m| (m.uid(), m.gid())).unwrap();
        for (name, expected) in [("root", 200_000), ("user", 200_007), ("stranger", 65_534)] {
            assert_eq!(owners(mapped.join(name)), (expected, expected), "{name}");
        }
        assert_eq!(owners(below.join("user")), (200_007, 200_007));
        assert_eq!(owners(plain.join("user")), (7, 7));
        assert_eq!(owners(layer.join("user")), (200_007, 200_007));
        // And back, which is how a volume's files get their owners.
        chown(mapped.join("root"), Some(200_009), Some(200_010)).unwrap();
        assert_eq!(owners(source.join("root")), (9, 10));
        assert!(fs::write(layer.join("new"), "x").is_err(), "a layer is read-only, mapped or not");

        // A file system that cannot show owners mapped.
        rustix::mount::mount("ramfs", source.join("below"), "ramfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let access = Access { mapped: true, ..Access::default() };
        let error = export(dirs, &container, &source, access, Some(&own)).unwrap_err();
        assert!(matches!(&error, SandboxError::Invalid(text) if text.contains("owned")), "{error}");
        for _ in 0..2 {
            unmount(source.join("below"), UnmountFlags::DETACH).unwrap();
        }
        pod.remove();
    });
}

#[test]
fn mounts_below_are_exports_of_their_own_and_the_node_keeps_its_way() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let container = new_id();
        // What lies on a shared mount cannot be moved.
        let around = node.folder.path().join("around");
        fs::create_dir(&around).unwrap();
        rustix::mount::mount_bind(&around, &around).unwrap();
        mount_change(&around, MountPropagationFlags::PRIVATE).unwrap();
        let source = around.join("volume");
        let tmpfs = |name: &str, flags| {
            fs::create_dir_all(source.join(name)).unwrap();
            rustix::mount::mount("tmpfs", source.join(name), "tmpfs", flags, None).unwrap();
        };
        let none = rustix::mount::MountFlags::empty();
        tmpfs("a/closed", rustix::mount::MountFlags::RDONLY);
        tmpfs("over", none);
        tmpfs("over/covered", none);
        // Over what is there already: the topmost counts, and what lies in the lower one is out of sight.
        tmpfs("over", none);
        fs::write(source.join("over/topmost"), "x").unwrap();
        // A mount on a younger one.
        tmpfs("old", none);
        tmpfs("new", none);
        fs::create_dir(source.join("new/old")).unwrap();
        let (from, to) = (path_fd(&source.join("old")).unwrap(), source.join("new/old"));
        move_mount(&from, "", rustix::fs::CWD, &to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
        drop(from);
        fs::write(source.join("file"), "").unwrap();
        fs::write(source.join("other"), "other").unwrap();
        rustix::mount::mount_bind(source.join("other"), source.join("file")).unwrap();
        fs::write(source.join("null"), "").unwrap();
        rustix::mount::mount_bind("/dev/null", source.join("null")).unwrap();

        let exported =
            export(dirs, &container, &source, Access { read_only: true, ..Access::default() }, None).unwrap();
        assert!(exported.writable_below.is_empty());
        let seen = |guest: &str| pod.seen(guest);
        let find = |name: &str| {
            let place = exported.submounts.iter().position(|submount| submount.below == Path::new(name));
            let place = place.unwrap_or_else(|| panic!("no {name} in {exported:?}"));
            (place, exported.submounts[place].read_only, seen(&exported.submounts[place].path))
        };
        assert_eq!(exported.submounts.len(), 5, "{exported:?}");
        assert!(find("a/closed").1 && !find("over").1 && !find("file").1);
        assert!(find("over").2.join("topmost").exists());
        assert!(find("new").0 < find("new/old").0);
        fs::write(find("file").2, "written").unwrap();
        assert_eq!(fs::read_to_string(source.join("other")).unwrap(), "written");
        let refused = fs::write(seen(&exported.path).join("new/x"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "what is below is not in it");

        // As long as the exports live, the node can unmount and remove everything.
        for name in ["null", "file", "new/old", "new", "over", "over/covered", "over", "a/closed"] {
            // What other tests fork holds this one's files for a moment.
            let mut tries = 0;
            while let Err(error) = unmount(source.join(name), UnmountFlags::empty()) {
                tries += 1;
                assert!(error == rustix::io::Errno::BUSY && tries < 1000, "{name}: {error}");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        fs::remove_dir(source.join("over")).unwrap();
        fs::remove_dir_all(&source).unwrap();
        assert!(find("over").2.join("topmost").exists(), "and the container keeps what it has");
        unmount(&around, UnmountFlags::DETACH).unwrap();
        pod.remove();
    });
}

#[test]
fn too_many_mounts_below_are_refused() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let source = node.folder.path().join("volume");
        for number in 0..1025 {
            let place = source.join(number.to_string());
            fs::create_dir_all(&place).unwrap();
            rustix::mount::mount_bind(&place, &place).unwrap();
        }
        let export = || export(dirs, &new_id(), &source, Access::default(), None);
        let error = export().unwrap_err();
        assert!(matches!(&error, SandboxError::Invalid(text) if text.contains("more than 1024 mounts")), "{error}");
        unmount(source.join("0"), UnmountFlags::empty()).unwrap();
        assert_eq!(export().unwrap().submounts.len(), 1024);
        unmount_below(&source).unwrap();
        pod.remove();
    });
}

#[test]
fn no_share_is_in_a_volume() {
    on_a_node(|node| async move {
        for pod in [TestPod::new(&node), TestPod::old(&node)] {
            let (dirs, container) = (&pod.dirs, new_id());
            let export = |source: &Path| export(dirs, &container, source, Access::default(), None);
            export(node.folder.path()).unwrap();
            let run = export(&dirs.run).unwrap();
            assert!(run.submounts.is_empty(), "{run:?}");
            let run = pod.seen(&run.path);
            assert!(pod.share.join("volumes").exists() && run.join("tree/volumes").exists());
            assert!(!run.join("share/volumes").exists());
            pod.remove();
        }
    });
}

#[test]
fn a_share_is_mounted_for_its_monitor_alone() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let (dirs, container) = (&pod.dirs, new_id());
        fs::write(dirs.run.join("secret"), "x").unwrap();
        let volume = node.folder.path().join("volume");
        fs::create_dir(&volume).unwrap();
        let before = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let exported = export(dirs, &container, &volume, Access::default(), None).unwrap();
        assert!(pod.seen(&exported.path).exists());
        assert_eq!(fs::read_to_string("/proc/thread-self/mounts").unwrap(), before);
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pod.monitor.as_ref().unwrap().0)).unwrap();
        let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        let exported = exported.path.strip_prefix(GUEST_SHARE).unwrap();
        assert_eq!(points, ["/", exported], "nothing else is in reach, {mounts}");
        // What the monitor has of the node leads up to nothing.
        let up = rustix::fs::openat(&pod.root, "../../secret", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        assert!(up.is_err() && !pod.share.join("../secret").exists());

        // A process that did not enter the namespace: nothing is mounted on the node for its sake.
        let own = crate::process::identify(std::process::id()).unwrap().record;
        crate::dirs::write(&dirs.process(), &own).unwrap();
        let error = export(dirs, &container, &node.folder.path().join("net.d"), Access::default(), None).unwrap_err();
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(why.contains("another root"), "{error}: {why}");
        // One that has ended: there is nothing to take back, and nothing can be added.
        let ended = crate::dirs::ProcessRecord { start_time: own.start_time + 1, ..own };
        crate::dirs::write(&dirs.process(), &ended).unwrap();
        assert!(export(dirs, &container, &volume, Access::default(), None).is_err());
        unexport(dirs, &container).unwrap();
        pod.remove();
    });
}

#[test]
fn sockets_pipes_and_devices_are_refused() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let folder = node.folder.path().join("things");
        fs::create_dir(&folder).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let container = new_id();
        let rows = [("socket", "is a unix socket"), ("pipe", "is a named pipe"), ("/dev/null", "is a device")];
        for (path, why) in rows {
            let error = export(dirs, &container, &folder.join(path), Access::default(), None).unwrap_err();
            assert!(
                matches!(&error, SandboxError::Invalid(text) if text.contains(why) && text.contains("\"host\"")),
                "{error}"
            );
        }
        export(dirs, &container, &folder, Access::default(), None).unwrap();
        pod.remove();
    });
}

#[test]
fn file_systems_of_the_kernel_s_own_are_not_exported() {
    on_a_node(|node| async move {
        let pod = TestPod::new(&node);
        let dirs = &pod.dirs;
        let container = new_id();
        let export = |source: &Path| export(dirs, &container, source, Access::default(), None);
        for (path, name) in [("/proc", "proc"), ("/proc/self/status", "proc"), ("/proc/self/ns/net", "nsfs")] {
            let error = export(&fs::canonicalize(path).unwrap_or_else(|_| path.into())).unwrap_err();
            let wanted = format!("lies on {name},");
            assert!(
                matches!(&error, SandboxError::Invalid(text) if text.contains(&wanted) && text.contains("\"host\"")),
                "{error}"
            );
        }
        // Below a volume it is left out, with all that lies on it; the rest is there.
        let source = node.folder.path().join("volume");
        for name in ["proc", "kept"] {
            fs::create_dir_all(source.join(name)).unwrap();
        }
        rustix::mount::mount_bind("/proc", source.join("proc")).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", source.join("proc/sys"), "tmpfs", none, None).unwrap();
        rustix::mount::mount("tmpfs", source.join("kept"), "tmpfs", none, None).unwrap();
        let exported = export(&source).unwrap();
        let below: Vec<&Path> = exported.submounts.iter().map(|submount| &*submount.below).collect();
        assert_eq!(below, [Path::new("kept")]);
        unmount_below(&source).unwrap();
        pod.remove();
    });
}

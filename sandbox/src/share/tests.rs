use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::testing::{new_id, on_a_node};

#[test]
fn what_is_exported_is_there_read_only_if_so_and_goes_away() {
    on_a_node(|node| async move {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        let root = create(&dirs).unwrap();
        let source = node.folder.path().join("volume with space");
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("file"), "text").unwrap();
        // A mount below the source comes along, and is read-only too.
        rustix::mount::mount("tmpfs", source.join("sub"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();

        let (ro, rro, rw) = (
            Access { read_only: true, ..Access::default() },
            Access { read_only: true, recursive: true, ..Access::default() },
            Access::default(),
        );
        let container = new_id();
        let other = new_id();
        let seen = |guest: String| PathBuf::from(guest.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1));
        let path = |exported: Exported| seen(exported.path);
        let read_only = path(export(&dirs, &container, &source, rro, None).unwrap());
        let writable = path(export(&dirs, &container, &source, rw, None).unwrap());
        let file = path(export(&dirs, &container, &source.join("file"), ro, None).unwrap());
        let layer = export_layer(&dirs, &container, &source, None).unwrap();
        assert_eq!(layer, format!("{GUEST_SHARE}/{container}/layer0"));
        assert_eq!(
            export_layer(&dirs, &container, &source, None).unwrap(),
            format!("{GUEST_SHARE}/{container}/layer1")
        );
        let layer = seen(layer);
        // Read-only, but not recursively: the mount below stays as it is, and the agent is told of it.
        let above = export(&dirs, &container, &source, ro, None).unwrap();
        assert_eq!(above.writable_below, [PathBuf::from("sub")]);
        let above = path(above);
        // Another container that sees the same sees the same mounts.
        assert_eq!(path(export(&dirs, &other, &source, rw, None).unwrap()), writable);
        assert_eq!(path(export(&dirs, &other, &source.join("file"), ro, None).unwrap()), file);
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let refused = |path: PathBuf| {
            let error = fs::write(&path, "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{}: {error}", path.display());
        };
        refused(read_only.join("new"));
        refused(read_only.join("sub/new"));
        refused(above.join("new"));
        fs::write(above.join("sub/new"), "x").unwrap();
        refused(file.clone());
        refused(layer.join("new"));
        refused(dirs.share().join("new"));
        refused(dirs.share().join(&container).join("new"));
        fs::write(writable.join("sub/new"), "x").unwrap();
        // The monitor's descriptor sees what was mounted after it was opened.
        let name = writable.strip_prefix(dirs.share()).unwrap().join("sub/new");
        rustix::fs::openat(&root, &name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        // What is mounted on the node later does not get in.
        fs::create_dir(source.join("late")).unwrap();
        rustix::mount::mount("tmpfs", source.join("late"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::write(source.join("late/secret"), "x").unwrap();
        assert!(!writable.join("late/secret").exists());
        // A container that comes after it sees it.
        let after = path(export(&dirs, &other, &source, rw, None).unwrap());
        assert!(after != writable && after.join("late/secret").exists());

        assert!(export(&dirs, &container, Path::new("/nowhere"), ro, None).is_err());
        assert!(export(&dirs, "../up", &source, ro, None).is_err());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(dirs.run.clone()), 0o700);

        unexport(&dirs, &container).unwrap();
        unexport(&dirs, &container).unwrap();
        assert!(!dirs.tree().join(&container).exists());
        assert_eq!(fs::read_to_string(&file).unwrap(), "text", "another container has it still");
        unexport(&dirs, &other).unwrap();
        assert!(!file.exists());
        assert!(writable.join("sub/new").exists(), "folders stay as long as the pod");
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "text");

        export(&dirs, &container, &source, ro, None).unwrap();
        unmount_below(&dirs.run).unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        assert!(!mounts.contains(dirs.run.to_str().unwrap()), "{mounts}");
        crate::dirs::delete(&dirs.run).unwrap();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "text");
    });
}

#[test]
fn what_is_mounted_on_the_node_later_comes_in_where_it_is_asked_for() {
    on_a_node(|node| async move {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        create(&dirs).unwrap();
        let container = new_id();
        let source = node.folder.path().join("shared");
        fs::create_dir_all(source.join("late")).unwrap();
        rustix::mount::mount_bind(&source, &source).unwrap();
        mount_change(&source, MountPropagationFlags::SHARED).unwrap();
        let follow = Access { follow: true, ..Access::default() };
        let seen = |access| {
            let exported = export(&dirs, &container, &source, access, None).unwrap();
            PathBuf::from(exported.path.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1))
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
        rustix::mount::mount("tmpfs", slave.join("own"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::write(slave.join("own/file"), "x").unwrap();
        assert!(!source.join("own/file").exists());
        unmount(source.join("late"), UnmountFlags::DETACH).unwrap();
        assert!(!slave.join("late/file").exists());
        unmount_below(&dirs.run).unwrap();
        crate::dirs::delete(&dirs.run).unwrap();
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
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        create(&dirs).unwrap();
        let own = users::mapping(crate::spec::UserRange { host_id: 200_000, length: 1000 }).unwrap();
        let source = node.folder.path().join("owned");
        fs::create_dir_all(source.join("below")).unwrap();
        rustix::mount::mount("tmpfs", source.join("below"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        for (name, owner) in [("root", 0), ("user", 7), ("below/user", 7), ("stranger", 1000)] {
            fs::write(source.join(name), "x").unwrap();
            chown(source.join(name), Some(owner), Some(owner)).unwrap();
        }
        let container = new_id();
        let seen = |guest: &str| PathBuf::from(guest.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1));
        let path = |access| seen(&export(&dirs, &container, &source, access, Some(&own)).unwrap().path);
        let mapped = path(Access { mapped: true, ..Access::default() });
        let plain = path(Access::default());
        assert_ne!(mapped, plain);
        // What follows says that it is one of several views of the same files, which the file server keeps apart.
        assert!(mapped.to_str().unwrap().contains("-rw-p"), "{}", mapped.display());
        let layer = seen(&export_layer(&dirs, &container, &source.join("below"), Some(&own)).unwrap());
        let owners = |path: PathBuf| fs::metadata(&path).map(|m| (m.uid(), m.gid())).unwrap();
        for (name, expected) in [("root", 200_000), ("user", 200_007), ("below/user", 200_007), ("stranger", 65_534)] {
            assert_eq!(owners(mapped.join(name)), (expected, expected), "{name}");
        }
        assert_eq!(owners(plain.join("user")), (7, 7));
        assert_eq!(owners(layer.join("user")), (200_007, 200_007));
        // And back, which is how a volume's files get their owners.
        chown(mapped.join("root"), Some(200_009), Some(200_010)).unwrap();
        assert_eq!(owners(source.join("root")), (9, 10));
        assert!(fs::write(layer.join("new"), "x").is_err(), "a layer is read-only, mapped or not");

        rustix::mount::mount("proc", source.join("below"), "proc", rustix::mount::MountFlags::empty(), None).unwrap();
        let access = Access { mapped: true, ..Access::default() };
        let error = export(&dirs, &container, &source, access, Some(&own)).unwrap_err();
        assert!(matches!(&error, SandboxError::Invalid(text) if text.contains("owned")), "{error}");
        for _ in 0..2 {
            unmount(source.join("below"), UnmountFlags::DETACH).unwrap();
        }
        unmount_below(&dirs.run).unwrap();
        crate::dirs::delete(&dirs.run).unwrap();
    });
}

#[test]
fn no_share_is_in_a_volume() {
    on_a_node(|node| async move {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        create(&dirs).unwrap();
        let container = new_id();
        let export = |source: &Path| export(&dirs, &container, source, Access::default(), None);
        export(node.folder.path()).unwrap();
        let run = export(&dirs.run).unwrap();
        let run = PathBuf::from(run.path.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1));
        assert!(dirs.share().join("volumes").exists() && !run.join("share/volumes").exists());
        unmount_below(&dirs.run).unwrap();
        crate::dirs::delete(&dirs.run).unwrap();
    });
}

#[test]
fn sockets_pipes_and_devices_are_refused() {
    on_a_node(|node| async move {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        create(&dirs).unwrap();
        let folder = node.folder.path().join("things");
        fs::create_dir(&folder).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, folder.join("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let container = new_id();
        let rows = [("socket", "is a unix socket"), ("pipe", "is a named pipe"), ("/dev/null", "is a device")];
        for (path, why) in rows {
            let error = export(&dirs, &container, &folder.join(path), Access::default(), None).unwrap_err();
            assert!(
                matches!(&error, SandboxError::Invalid(text) if text.contains(why) && text.contains("\"host\"")),
                "{error}"
            );
        }
        export(&dirs, &container, &folder, Access::default(), None).unwrap();
        unmount_below(&dirs.run).unwrap();
        crate::dirs::delete(&dirs.run).unwrap();
    });
}

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
            Access { read_only: true, recursive: true, follow: false },
            Access::default(),
        );
        let container = new_id();
        let other = new_id();
        let seen = |guest: String| PathBuf::from(guest.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1));
        let path = |exported: Exported| seen(exported.path);
        let read_only = path(export(&dirs, &container, &source, rro).unwrap());
        let writable = path(export(&dirs, &container, &source, rw).unwrap());
        let file = path(export(&dirs, &container, &source.join("file"), ro).unwrap());
        let layer = export_layer(&dirs, &container, &source).unwrap();
        assert_eq!(layer, format!("{GUEST_SHARE}/{container}/layer0"));
        assert_eq!(export_layer(&dirs, &container, &source).unwrap(), format!("{GUEST_SHARE}/{container}/layer1"));
        let layer = seen(layer);
        // Read-only, but not recursively: the mount below stays as it is, and the agent is told of it.
        let above = export(&dirs, &container, &source, ro).unwrap();
        assert_eq!(above.writable_below, [PathBuf::from("sub")]);
        let above = path(above);
        // Another container that sees the same sees the same mounts.
        assert_eq!(path(export(&dirs, &other, &source, rw).unwrap()), writable);
        assert_eq!(path(export(&dirs, &other, &source.join("file"), ro).unwrap()), file);
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
        let after = path(export(&dirs, &other, &source, rw).unwrap());
        assert!(after != writable && after.join("late/secret").exists());

        assert!(export(&dirs, &container, Path::new("/nowhere"), ro).is_err());
        assert!(export(&dirs, "../up", &source, ro).is_err());
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

        export(&dirs, &container, &source, ro).unwrap();
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
            let exported = export(&dirs, &container, &source, access).unwrap();
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
fn no_share_is_in_a_volume() {
    on_a_node(|node| async move {
        let dirs = Dirs::of(&node.config, &new_id()).unwrap();
        make_private(&dirs.run).unwrap();
        create(&dirs).unwrap();
        let container = new_id();
        let export = |source: &Path| export(&dirs, &container, source, Access::default());
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
            let error = export(&dirs, &container, &folder.join(path), Access::default()).unwrap_err();
            assert!(
                matches!(&error, SandboxError::Invalid(text) if text.contains(why) && text.contains("\"host\"")),
                "{error}"
            );
        }
        export(&dirs, &container, &folder, Access::default()).unwrap();
        unmount_below(&dirs.run).unwrap();
        crate::dirs::delete(&dirs.run).unwrap();
    });
}

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

        let container = new_id();
        let other = new_id();
        let path = |guest: String| PathBuf::from(guest.replacen(GUEST_SHARE, dirs.share().to_str().unwrap(), 1));
        let read_only = path(export(&dirs, &container, &source, true).unwrap());
        let writable = path(export(&dirs, &container, &source, false).unwrap());
        let file = path(export(&dirs, &container, &source.join("file"), true).unwrap());
        let layer = export_layer(&dirs, &container, &source).unwrap();
        assert_eq!(layer, format!("{GUEST_SHARE}/{container}/layer0"));
        assert_eq!(export_layer(&dirs, &container, &source).unwrap(), format!("{GUEST_SHARE}/{container}/layer1"));
        let layer = path(layer);
        // Another container that sees the same sees the same mounts.
        assert_eq!(path(export(&dirs, &other, &source, false).unwrap()), writable);
        assert_eq!(path(export(&dirs, &other, &source.join("file"), true).unwrap()), file);
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        let refused = |path: PathBuf| {
            let error = fs::write(&path, "x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{}: {error}", path.display());
        };
        refused(read_only.join("new"));
        refused(read_only.join("sub/new"));
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

        assert!(export(&dirs, &container, Path::new("/nowhere"), true).is_err());
        assert!(export(&dirs, "../up", &source, true).is_err());
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

        export(&dirs, &container, &source, true).unwrap();
        unmount_below(&dirs.run).unwrap();
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
        assert!(!mounts.contains(dirs.run.to_str().unwrap()), "{mounts}");
        crate::dirs::delete(&dirs.run).unwrap();
        assert_eq!(fs::read_to_string(source.join("file")).unwrap(), "text");
    });
}

#[test]
fn escapes_of_mountinfo_are_undone() {
    assert_eq!(unescape(r"/a\040b\134c\9"), r"/a b\c\9");
}

mod acl;
mod caching;
mod client;
mod hanging;
mod nothing;
mod unnamed;
mod unshared;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use libc::{
    E2BIG, EBADF, EINVAL, ENFILE, ENOENT, ENOTDIR, ENOTTY, EPERM, EROFS, EXDEV, O_CREAT, O_RDONLY, O_RDWR, O_TRUNC,
    O_WRONLY,
};
use proptest::prelude::*;

use super::state::{FsState, STATE_VERSION};
use super::*;
use crate::devices::virtio::saved::DeviceState;
use crate::devices::virtio::test_guest::{DATA, Guest, any_attack};
use crate::devices::virtio::{VIRTIO_F_VERSION_1, VirtioDevice};
use client::{Client, REQUESTS, ROOT, fields, mount, name, number, op, snapshot};

const FATTR_MODE: u32 = 1;
const FATTR_UID: u32 = 2;
const FATTR_SIZE: u32 = 8;
const FATTR_MTIME: u32 = 32;
const KILL_SUIDGID: u32 = 4;

/// THREATS row 11: whatever a guest says on the queue, what is read-only stays as it is.
#[test]
fn a_hostile_client_changes_nothing_that_is_read_only() {
    let Some(mut client) = Client::new() else { return };
    let before = snapshot(client.dir.path());
    let volume = client.find("volume");
    for export in ["layer0", "config"] {
        let (top, file, dir) =
            (client.find(export), client.find(&format!("{export}/file")), client.find(&format!("{export}/dir")));
        let refused = [
            (op::CREATE, top, [fields(&[(O_CREAT | O_WRONLY) as u32, 0o644, 0, 0]), name("new")].concat()),
            (op::CREATE, top, [fields(&[(O_CREAT | O_RDWR) as u32, 0o644, 0, 0]), name("file")].concat()),
            (op::TMPFILE, top, [fields(&[O_RDWR as u32, 0o644, 0, 0]), name("/")].concat()),
            (op::MKDIR, top, [fields(&[0o755, 0]), name("new")].concat()),
            (op::MKNOD, top, [fields(&[libc::S_IFREG | 0o644, 0, 0, 0]), name("new")].concat()),
            (op::SYMLINK, top, [name("new"), name("/etc/passwd")].concat()),
            (op::LINK, top, [&file.to_le_bytes()[..], &name("new")].concat()),
            (op::UNLINK, top, name("file")),
            (op::RMDIR, top, name("dir")),
            (op::RENAME, top, [&dir.to_le_bytes()[..], &name("file"), &name("new")].concat()),
            (op::RENAME2, top, [&top.to_le_bytes()[..], &fields(&[2, 0]), &name("file"), &name("dir")].concat()),
            (op::OPEN, file, fields(&[O_RDWR as u32, 0])),
            (op::OPEN, file, fields(&[O_WRONLY as u32, 0])),
            (op::OPEN, file, fields(&[(O_RDONLY | O_TRUNC) as u32, 0])),
            (op::SETXATTR, file, [fields(&[1, 0, 0, 0]), name("user.x"), b"v".to_vec()].concat()),
            (op::REMOVEXATTR, file, name("user.x")),
        ];
        for (opcode, node, body) in refused {
            let error = client.call(opcode, node, &body).unwrap_err();
            assert_eq!(error, EROFS, "opcode {opcode} on {export}");
        }
        for (valid, value) in [(FATTR_MODE, 0o777), (FATTR_UID, 5), (FATTR_SIZE, 0), (FATTR_MTIME, 1)] {
            assert_eq!(client.set(file, valid, value), Err(EROFS));
        }
        // Out of the read-only mount, or through an open file that was only opened to be read.
        let out = [&volume.to_le_bytes()[..], &name("file"), &name("stolen")].concat();
        assert!(matches!(client.call(op::RENAME, top, &out), Err(EROFS | EXDEV)));
        let link = [&file.to_le_bytes()[..], &name("stolen")].concat();
        assert!(client.call(op::LINK, volume, &link).is_err());
        let handle = client.open(op::OPEN, file, O_RDONLY).unwrap();
        assert_eq!(client.write(file, handle, b"overwritten", 0), Err(EBADF));
        let allocate = [&handle.to_le_bytes()[..], &fields(&[0, 0, 1 << 20, 0, 0, 0])].concat();
        assert_eq!(client.call(op::FALLOCATE, file, &allocate), Err(EBADF));
    }
    // The share's own directory is nobody's to change, though its mount is writable.
    let mkdir = [fields(&[0o755, 0]), name("new")].concat();
    assert_eq!(client.call(op::MKDIR, ROOT, &mkdir), Err(EROFS));
    assert_eq!(client.call(op::RMDIR, ROOT, &name("config")), Err(EROFS));
    assert_eq!(client.set(ROOT, FATTR_MODE, 0o777), Err(EROFS));
    assert_eq!(snapshot(client.dir.path()), before);
}

#[test]
fn nothing_outside_can_be_named() {
    let Some(mut client) = Client::new() else { return };
    let before = snapshot(client.dir.path());
    let volume = client.find("volume");
    let dir = client.find("volume/dir");
    for (node, bad) in [(ROOT, ".."), (volume, ".."), (dir, ".."), (volume, "."), (volume, ""), (volume, "dir/x")] {
        assert_eq!(client.call(op::LOOKUP, node, &name(bad)), Err(EINVAL), "{bad:?}");
        for opcode in [op::UNLINK, op::RMDIR] {
            assert!(client.call(opcode, node, &name(bad)).is_err());
        }
    }
    for (old, new) in [("../secret", "x"), ("file", "../x"), ("..", "x")] {
        let rename = [&volume.to_le_bytes()[..], &name(old), &name(new)].concat();
        assert_eq!(client.call(op::RENAME, volume, &rename), Err(EINVAL));
    }
    // A symlink is data: it is read, not followed.
    let link = client.find("volume/link");
    assert_eq!(client.call(op::READLINK, link, &[]).unwrap(), b"../secret");
    assert_eq!(client.open(op::OPEN, link, O_RDONLY), Err(EBADF));
    assert_eq!(client.call(op::LOOKUP, link, &name("file")), Err(ENOTDIR));
    assert_eq!(client.open(op::OPENDIR, link, O_RDONLY), Err(EBADF));
    let create = [fields(&[(O_CREAT | O_WRONLY) as u32, 0o644, 0, 0]), name("link")].concat();
    assert_eq!(client.call(op::CREATE, volume, &create).map(drop), Err(EBADF), "created through a symlink");
    // Nodes and handles that are not, or not any more, or of another file.
    let file = client.find("volume/file");
    let handle = client.open(op::OPEN, file, O_RDWR).unwrap();
    for (node, handle) in [(999, handle), (dir, handle), (file, handle + 1), (file, 0)] {
        assert_eq!(client.read(node, handle, 10), Err(EBADF));
    }
    assert_eq!(client.call(op::GETATTR, u64::MAX - 1, &fields(&[0; 4])), Err(EBADF));
    assert_eq!(client.call(op::IOCTL, file, &[&handle.to_le_bytes()[..], &fields(&[0; 6])].concat()), Err(ENOTTY));
    assert!(client.call(op::SETUPMAPPING, file, &[0; 40]).is_err());
    assert_eq!(snapshot(client.dir.path()), before);
}

#[test]
fn a_volume_is_written_as_the_guests_user() {
    let Some(mut client) = Client::new() else { return };
    let volume = client.find("volume");
    std::fs::set_permissions(client.path("volume"), std::fs::Permissions::from_mode(0o2770)).unwrap();
    client.uid = 1000;
    let create = [fields(&[(O_CREAT | O_RDWR) as u32, 0o4666, 0o022, 0]), name("new")].concat();
    let reply = client.call(op::CREATE, volume, &create).unwrap();
    let (node, handle) = (number(&reply), number(&reply[128..]));
    assert_eq!(client.write(node, handle, b"hello", 0).unwrap()[0], 5);
    let stat = client.path("volume/new").metadata().unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (1000, 0, 0o4644), "the group is the directory's");
    assert_eq!(client.write(node, handle, b"H", KILL_SUIDGID).unwrap()[0], 1);
    assert_eq!(client.path("volume/new").metadata().unwrap().mode() & 0o7777, 0o644);
    assert_eq!(client.read(node, handle, 100).unwrap(), b"Hello");
    client.call(op::MKDIR, volume, &[fields(&[0o755, 0]), name("sub")].concat()).unwrap();
    client.call(op::SYMLINK, volume, &[name("sym"), name("anywhere")].concat()).unwrap();
    client.call(op::LINK, volume, &[&node.to_le_bytes()[..], &name("hard")].concat()).unwrap();
    client.call(op::MKNOD, volume, &[fields(&[libc::S_IFIFO | 0o600, 0, 0, 0]), name("fifo")].concat()).unwrap();
    let rename = [&volume.to_le_bytes()[..], &name("new"), &name("renamed")].concat();
    client.call(op::RENAME, volume, &rename).unwrap();
    for made in ["sub", "sym", "renamed", "hard", "fifo"] {
        assert_eq!(client.path("volume").join(made).symlink_metadata().unwrap().uid(), 1000, "{made}");
    }
    assert!(client.path("volume/fifo").metadata().unwrap().file_type().is_fifo());
    let fifo = client.find("volume/fifo");
    assert_eq!(client.open(op::OPEN, fifo, O_RDONLY), Err(EBADF), "a pipe would block");
    client.set(node, FATTR_SIZE, 2).unwrap();
    client.set(node, FATTR_MODE, 0o600).unwrap();
    assert_eq!(std::fs::read(client.path("volume/renamed")).unwrap(), b"He");
    // As oneself again: what the server made for the user did not stick to its thread.
    client.uid = 0;
    client.call(op::MKDIR, volume, &[fields(&[0o755, 0]), name("roots")].concat()).unwrap();
    assert_eq!(client.path("volume/roots").metadata().unwrap().uid(), 0);
}

#[test]
fn devices_and_the_kernels_own_attributes_are_not_made() {
    let Some(mut client) = Client::new() else { return };
    let volume = client.find("volume");
    let file = client.find("volume/file");
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFLNK, libc::S_IFDIR] {
        let body = [fields(&[kind | 0o666, 0x103, 0, 0]), name("device")].concat();
        assert_eq!(client.call(op::MKNOD, volume, &body), Err(EPERM));
    }
    let whiteout = [&volume.to_le_bytes()[..], &fields(&[4, 0]), &name("file"), &name("other")].concat();
    assert_eq!(client.call(op::RENAME2, volume, &whiteout), Err(EINVAL));
    for attribute in ["trusted.overlay.opaque", "security.selinux", "security.evm", "system.other"] {
        let body = [fields(&[1, 0, 0, 0]), name(attribute), b"y".to_vec()].concat();
        assert_eq!(client.call(op::SETXATTR, file, &body), Err(EPERM), "{attribute}");
    }
    let body = [fields(&[3, 0, 0, 0]), name("user.overlay.origin"), b"abc".to_vec()].concat();
    client.call(op::SETXATTR, file, &body).unwrap();
    let get = |size| [fields(&[size, 0]), name("user.overlay.origin")].concat();
    assert_eq!(client.call(op::GETXATTR, file, &get(100)).unwrap(), b"abc");
    assert_eq!(client.call(op::GETXATTR, file, &get(0)).unwrap()[0], 3);
    assert!(client.call(op::GETXATTR, file, &get(2)).is_err());
    assert_eq!(client.call(op::GETXATTR, file, &get(u32::MAX)).unwrap(), b"abc");
}

#[test]
fn exports_come_and_go_while_it_runs() {
    let Some(mut client) = Client::new() else { return };
    assert_eq!(client.call(op::LOOKUP, ROOT, &name("late")), Err(ENOENT));
    mount(client.dir.path(), "volume", "late", true);
    let late = client.find("late/file");
    assert_eq!(client.open(op::OPEN, late, O_RDWR), Err(EROFS));
    assert_eq!(
        client.find("volume/file"),
        late,
        "one file in two mounts of a volume is one, for its sockets and locks"
    );
    client.open(op::OPEN, late, O_RDWR).unwrap();
    assert_eq!(client.find("late/file"), late);
    client.open(op::OPEN, late, O_RDWR).unwrap();
    mount(client.dir.path(), "volume", "layer1", false);
    let layered = client.find("layer1/file");
    assert_ne!(layered, late, "a layer is apart");
    assert_eq!(client.open(op::OPEN, layered, O_RDWR), Err(EROFS), "and never written, whatever its mount says");
    let from = client.find("late");
    let (layer, to) = (client.find("layer0/file"), client.find("config"));
    let link = [&layer.to_le_bytes()[..], &name("x")].concat();
    assert!(matches!(client.call(op::LINK, to, &link), Err(EROFS | EXDEV)));
    // Names of the share are asked for each time; a layer is believed for long.
    let valid = |entry: Vec<u8>| (number(&entry[16..]), number(&entry[24..]));
    assert_eq!(valid(client.call(op::LOOKUP, ROOT, &name("late")).unwrap()), (0, 1));
    assert_eq!(valid(client.call(op::LOOKUP, from, &name("file")).unwrap()), (1, 1));
    let layer = client.find("layer0");
    assert_eq!(valid(client.call(op::LOOKUP, layer, &name("file")).unwrap()), (86_400, 86_400));
    let detach = rustix::mount::UnmountFlags::DETACH;
    rustix::mount::unmount(client.path("share/late"), detach).unwrap();
    mount(client.dir.path(), "config", "late", true);
    assert_ne!(client.find("late/file"), late, "another mount, another file");
}

/// A read-only export with a writable mount below it, and one into which mounts of the node come while it runs.
#[test]
fn mounts_below_an_export_keep_their_own_access() {
    let Some(mut client) = Client::new() else { return };
    let [plain, below, follows] = ["1-2-ro", "1-2-ro-p7", "1-2-rw-s7"];
    mount(client.dir.path(), "config", plain, true);
    mount(client.dir.path(), "config", below, true);
    mount(client.dir.path(), "volume", &format!("{below}/dir"), false);
    let create = || [fields(&[(O_CREAT | O_WRONLY) as u32, 0o644, 0, 0]), name("new")].concat();
    let (top, sub) = (client.find(below), client.find(&format!("{below}/dir")));
    assert_eq!(client.call(op::CREATE, top, &create()), Err(EROFS));
    client.call(op::CREATE, sub, &create()).unwrap();
    assert!(client.path("volume/new").exists() && !client.path("config/dir/new").exists());
    let out = [&sub.to_le_bytes()[..], &name("file"), &name("moved")].concat();
    assert!(matches!(client.call(op::RENAME, top, &out), Err(EROFS | EXDEV)));
    // What is known of the one says nothing of the other.
    assert_ne!(client.find(plain), top);
    let other = client.find(&format!("{plain}/dir"));
    assert_eq!(client.call(op::LOOKUP, other, &name("new")), Err(ENOENT));
    assert_eq!(client.call(op::CREATE, other, &create()), Err(EROFS));

    mount(client.dir.path(), "config", follows, false);
    let folder = client.find(&format!("{follows}/dir"));
    assert_eq!(client.call(op::LOOKUP, folder, &name("file")), Err(ENOENT));
    mount(client.dir.path(), "volume", &format!("{follows}/dir"), false);
    let top = client.find(follows);
    let reply = client.call(op::LOOKUP, top, &name("dir")).unwrap();
    assert_eq!((number(&reply[16..]), number(&reply[24..])), (0, 0), "nothing of it is believed for any time");
    assert_ne!(number(&reply), folder);
    client.find(&format!("{follows}/dir/file"));
    for mounted in [format!("{below}/dir"), format!("{follows}/dir"), plain.into(), below.into(), follows.into()] {
        let path = client.path("share").join(mounted);
        rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn what_the_guest_forgets_is_closed() {
    let Some(mut client) = Client::new() else { return };
    let file = client.find("volume/file");
    assert_eq!(client.find("volume/file"), file);
    let handle = client.open(op::OPEN, file, O_RDONLY).unwrap();
    let volume = client.find("volume");
    assert_eq!(client.fs.share.counts(), (2, 1));
    let release = [&handle.to_le_bytes()[..], &fields(&[0; 4])].concat();
    client.call(op::RELEASE, file, &release).unwrap();
    assert_eq!(client.call(op::RELEASE, file, &release), Err(EBADF));
    for (node, count) in [(file, 1_u64), (file, 1), (volume, 3), (999, 1), (ROOT, u64::MAX)] {
        assert_eq!(client.raw(48, op::FORGET, node, &count.to_le_bytes()), None);
    }
    assert_eq!(client.fs.share.counts(), (0, 0));
    assert_eq!(client.call(op::GETATTR, file, &fields(&[0; 4])), Err(EBADF));
    assert_ne!(client.find("volume/file"), file, "a number is used once");
    // Listing with attributes counts as telling, and only for what the reply holds.
    let volume = client.find("volume");
    let directory = client.open(op::OPENDIR, volume, O_RDONLY).unwrap();
    let list = |size: u32| [&directory.to_le_bytes()[..], &fields(&[0, 0, size, 0, 0, 0, 0, 0])].concat();
    let (known, _) = client.fs.share.counts();
    assert_eq!(client.call(op::READDIRPLUS, volume, &list(200)).unwrap().len() / 152, 1);
    assert!(client.fs.share.counts().0 <= known + 1);
    assert!(client.call(op::READDIR, volume, &list(4096)).unwrap().len() > 100);
    client.fs.share.clear();
    assert_eq!(client.fs.share.counts(), (0, 0));
}

/// User or group -1 means "as it is" to the kernel: whoever acts for it would lose capabilities and not get them back.
#[test]
fn nobody_acts_for_a_user_that_is_none() {
    let Some(mut client) = Client::new() else { return };
    let volume = client.find("volume");
    client.uid = u32::MAX;
    let create = [fields(&[(O_CREAT | O_RDWR) as u32, 0o644, 0, 0]), name("new")].concat();
    assert_eq!(client.call(op::CREATE, volume, &create), Err(EINVAL));
    client.uid = 0;
    let file = client.find("volume/file");
    client.set(file, FATTR_UID, 5).expect("the thread may change owners still");
}

/// Files that the guest knows and files that it has open share one bound, and count until they are closed.
#[test]
fn a_guest_holds_only_so_many_descriptors() {
    let Some(mut client) = Client::new() else { return };
    client.fs.share.limit(20);
    let (volume, file) = (client.find("volume"), client.find("volume/file"));
    let handles: Vec<u64> = std::iter::from_fn(|| client.open(op::OPEN, file, O_RDONLY).ok()).take(50).collect();
    assert_eq!((handles.len(), client.fs.share.held()), (18, 20));
    assert_eq!(client.open(op::OPEN, file, O_RDONLY), Err(ENFILE));
    assert_eq!(client.call(op::LOOKUP, volume, &name("dir")), Err(ENFILE));
    assert_eq!(client.find("volume/file"), file, "what is known is found");
    let create = [fields(&[(O_CREAT | O_RDWR) as u32, 0o644, 0, 0]), name("new")].concat();
    assert_eq!(client.call(op::CREATE, volume, &create), Err(ENFILE));
    let release = [&handles[0].to_le_bytes()[..], &fields(&[0; 4])].concat();
    client.call(op::RELEASE, file, &release).unwrap();
    client.call(op::LOOKUP, volume, &name("dir")).unwrap();
    client.fs.share.clear();
    assert_eq!(client.fs.share.held(), 0);
}

/// What this file server does not answer is refused before anything of it is decoded, and nothing that is decoded is
/// longer than a write can be: a guest cannot make the monitor allocate what a request says.
#[test]
fn requests_are_bounded_before_they_are_decoded() {
    let Some(mut client) = Client::new() else { return };
    let file = client.find("volume/file");
    let handle = client.open(op::OPEN, file, O_RDWR).unwrap();
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = peak();
    // One descriptor over 2.5 MiB of untouched memory, read 25 times over.
    let ioctl = [&handle.to_le_bytes()[..], &fields(&[0, 0, 0, 0, 60 << 20, 0])].concat();
    assert_eq!(client.long(op::IOCTL, file, &ioctl, 25), (ENOTTY, 16));
    let write = [&handle.to_le_bytes()[..], &fields(&[0, 0, 60 << 20, 0, 0, 0, 0, 0])].concat();
    assert_eq!(client.long(op::WRITE, file, &write, 25), (E2BIG, 16));
    assert!(peak() < before + (16 << 10), "{} KiB before, {} after", before, peak());
    for opcode in [0, 19, 25, 31, 37, 39, 40, 41, 47, 48, 49, 50, 52, 4096, u32::MAX] {
        assert!(client.call(opcode, file, &[0; 64]).is_err(), "{opcode}");
    }
    assert_eq!(client.read(file, handle, 100).unwrap(), b"content");
}

#[test]
fn a_second_start_is_a_new_one() {
    let Some(mut client) = Client::new() else { return };
    client.find("volume/file");
    client.fs.reset();
    client.fs.reset();
    assert_eq!(client.fs.share.counts(), (0, 0));
    let active = client.guest.activation(VIRTIO_F_VERSION_1);
    client.fs.activate(active).unwrap();
}

/// What the guest asks for while the device is paused is done afterwards, and what it knows stays.
#[test]
fn a_pause_loses_no_request_and_no_file() {
    let Some(mut client) = Client::new() else { return };
    let file = client.find("volume/file");
    for _ in 0..3 {
        let before = client.guest.used_count(REQUESTS);
        let active = client.fs.pause().unwrap();
        assert!(client.fs.pause().is_none());
        client.post(0, op::GETATTR, file, &fields(&[0; 4]));
        assert_eq!(client.guest.used_count(REQUESTS), before);
        client.fs.activate(active).unwrap();
        client.guest.wait_used(REQUESTS, before + 1);
        assert!(client.call(op::GETATTR, file, &fields(&[0; 4])).is_ok());
    }
}

#[test]
fn only_a_guest_that_knows_no_file_is_saved() {
    let Some(mut client) = Client::new() else { return };
    let state = client.fs.save().unwrap();
    assert!(matches!(&state, DeviceState::Fs(state) if state.extended), "what was agreed on is kept");
    let volume = client.find("volume");
    assert_eq!(client.fs.save().unwrap_err().to_string(), "device fs has files that its guest knows");
    assert_eq!(client.raw(48, op::FORGET, volume, &1_u64.to_le_bytes()), None);
    client.fs.save().unwrap();
    let directory = client.open(op::OPENDIR, ROOT, O_RDONLY).unwrap();
    assert!(client.fs.save().is_err(), "an open directory: {directory}");

    // A clone's server does without FUSE_INIT, which its guest has behind it.
    let mut clone = Client::new().unwrap();
    clone.fs.reset();
    clone.fs.restore(&state).unwrap();
    assert!(clone.fs.share.sets_attributes_extended());
    clone.restart();
    assert!(clone.fs.restore(&DeviceState::Empty).is_err());
}

#[test]
fn state_and_configuration() {
    let state = FsState { version: STATE_VERSION, tag: "cofferdam".into(), features: 1, extended: false };
    assert_eq!(&state.config()[..10], b"cofferdam\0");
    assert_eq!(state.config()[TAG..], [1, 0, 0, 0]);
    let text = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<FsState>(&text).unwrap(), state);
    let root = || std::fs::File::open("/").unwrap().into();
    assert!(Fs::new("", root()).is_err() && Fs::new(&"x".repeat(37), root()).is_err());
    assert!(Fs::new("x", tempfile::tempfile().unwrap().into()).is_err(), "a file is no share");
}

fn any_request() -> impl Strategy<Value = (u32, u32, u64, Vec<u8>)> {
    let names = prop::sample::select(vec![
        "file",
        "dir",
        "link",
        "..",
        ".",
        "",
        "x",
        "/",
        "../secret",
        "layer0",
        "volume",
        ".nothing",
    ]);
    let word = prop_oneof![8 => 0..8_u32, 2 => any::<u32>(), 1 => Just(0x8_0000)];
    let body = (prop::collection::vec(word, 0..24), prop::collection::vec(names, 0..3)).prop_map(|(words, names)| {
        let mut body = fields(&words);
        names.iter().for_each(|text| body.extend(name(text)));
        body
    });
    let opcode = prop_oneof![20 => 0..56_u32, 1 => any::<u32>()];
    let length = prop_oneof![6 => Just(0_u32), 1 => any::<u32>(), 1 => 0..64_u32];
    (length, opcode, prop_oneof![10 => 0..12_u64, 1 => Just(u64::MAX), 1 => any::<u64>()], body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Nonsense with a grain of sense: the server lives, and only the volume may have changed.
    #[test]
    fn no_requests_break_it(requests in prop::collection::vec(any_request(), 1..80)) {
        let Some(mut client) = Client::new() else { return Ok(()) };
        let outside = ["layer", "config", "secret"].map(|name| snapshot(&client.path(name)));
        for path in ["layer0/file", "layer0/dir", "config/file", "config/link", "volume/file", "volume/dir"] {
            client.find(path);
        }
        for (length, opcode, node, body) in requests {
            let length = if length == 0 { 40 + body.len() as u32 } else { length };
            let _ = client.raw(length, opcode, node, &body);
        }
        prop_assert_eq!(["layer", "config", "secret"].map(|name| snapshot(&client.path(name))), outside);
        client.call(op::INIT, 0, &fields(&[7, 31, 0x2_0000, 0])).unwrap();
        client.find("layer0/file");
    }

    #[test]
    fn no_chain_breaks_it(attacks in prop::collection::vec((any_attack(), 0..2_usize), 1..5)) {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        let mut fs = Fs::new("test", root.into()).unwrap();
        let mut guest = Guest::new(&QUEUE_SIZES);
        fs.activate(guest.activation(VIRTIO_F_VERSION_1)).unwrap();
        for (attack, queue) in attacks {
            attack.strike(&mut guest, queue);
        }
        // A proper request after it is served still, unless the rings themselves are broken now.
        guest.write(DATA, &[0; 40]);
        fs.reset();
        prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

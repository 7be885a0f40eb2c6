//! What changes nothing may be done anywhere in a volume; what would, may not.

use libc::{EBADF, EINVAL, ENOENT, ENOTDIR, EROFS};

use super::client::{Client, ROOT, fields, name, number, op, snapshot};
use super::{FATTR_MODE, FATTR_UID};

/// The folder's number, and a fresh one of what is in it.
fn look(client: &mut Client) -> (u64, u64) {
    let folder = number(&client.call(op::LOOKUP, ROOT, &name(".nothing")).unwrap());
    let link = client.call(op::LOOKUP, folder, &name("link")).unwrap();
    // The entry is looked up each time, the attributes stay: a symlink.
    assert_eq!((number(&link[16..]), number(&link[24..])), (0, 86_400));
    assert_eq!(u32::from_le_bytes(link[100..104].try_into().unwrap()) & libc::S_IFMT, libc::S_IFLNK);
    (folder, number(&link))
}

fn rename(client: &mut Client, from: u64, old: &str, to: u64, new: &str) -> Result<(), i32> {
    let body = [&to.to_le_bytes()[..], &name(old), &name(new)].concat();
    client.call(op::RENAME, from, &body).map(drop)
}

#[test]
fn nothing_is_renamed_over_names_of_volumes() {
    let Some(mut client) = Client::new() else { return };
    let before = snapshot(client.dir.path());
    let (folder, first) = look(&mut client);
    let (again, second) = look(&mut client);
    assert_eq!(folder, again);
    assert_ne!(first, second, "one file renamed over itself would be told to nobody");
    for export in ["config", "volume"] {
        let volume = client.find(export);
        for target in ["file", "link", "dir", "new"] {
            assert_eq!(rename(&mut client, folder, "link", volume, target), Ok(()), "{export}/{target}");
        }
        assert_eq!(rename(&mut client, folder, "other", volume, "file"), Err(ENOENT));
        assert_eq!(rename(&mut client, folder, "link", volume, ".."), Err(EINVAL));
        assert_eq!(rename(&mut client, volume, "file", folder, "link"), Err(EBADF), "nothing goes in");
        let exchange = [&volume.to_le_bytes()[..], &fields(&[2, 0]), &name("link"), &name("file")].concat();
        assert_eq!(client.call(op::RENAME2, folder, &exchange), Err(EBADF));
    }
    let layer = client.find("layer0");
    assert_eq!(rename(&mut client, folder, "link", layer, "file"), Err(EROFS), "a layer is no volume");
    assert_eq!(rename(&mut client, folder, "link", ROOT, "config"), Err(EROFS));
    // There is no more to it: neither can be read, opened, changed or removed.
    for node in [folder, first] {
        for (opcode, body) in [
            (op::OPENDIR, fields(&[0, 0])),
            (op::OPEN, fields(&[0, 0])),
            (op::READLINK, Vec::new()),
            (op::UNLINK, name("link")),
            (op::MKDIR, [fields(&[0o755, 0]), name("x")].concat()),
        ] {
            assert_eq!(client.call(opcode, node, &body), Err(EBADF), "opcode {opcode}");
        }
        assert_eq!(client.set(node, FATTR_MODE, 0o700), Err(EBADF));
    }
    assert!(client.call(op::GETATTR, folder, &fields(&[0; 4])).is_ok());
    assert_eq!(client.raw(48, op::FORGET, folder, &1_u64.to_le_bytes()), None);
    assert_eq!(snapshot(client.dir.path()), before);
}

#[test]
fn a_mode_that_a_file_has_may_be_set_where_nothing_may_change() {
    let Some(mut client) = Client::new() else { return };
    let before = snapshot(client.dir.path());
    let file = client.find("config/file");
    client.set(file, FATTR_MODE, 0o644).unwrap();
    assert_eq!(client.set(file, FATTR_MODE, 0o600), Err(EROFS));
    assert_eq!(client.set(file, FATTR_MODE | FATTR_UID, 0o644), Err(EROFS), "only the mode");
    let layer = client.find("layer0/file");
    assert_eq!(client.set(layer, FATTR_MODE, 0o644), Err(EROFS));
    assert_eq!(snapshot(client.dir.path()), before);
    // Also when the file is gone, and its attributes tell so.
    std::fs::remove_file(client.path("config/file")).unwrap();
    let attributes = client.set(file, FATTR_MODE, 0o644).unwrap();
    assert_eq!(attributes[16 + 64..][..4], [0; 4], "links");
}

#[test]
fn what_is_gone_from_a_read_only_volume_is_said_to_be_gone() {
    let Some(mut client) = Client::new() else { return };
    let (config, dir) = (client.find("config"), client.find("config/dir"));
    assert_eq!(client.call(op::UNLINK, config, &name("file")), Err(EROFS));
    assert_eq!(client.call(op::UNLINK, config, &name("other")), Err(ENOENT));
    assert_eq!(client.call(op::RMDIR, config, &name("other")), Err(ENOENT));
    std::fs::remove_dir(client.path("config/dir")).unwrap();
    assert_eq!(client.call(op::UNLINK, dir, &name("file")), Err(ENOENT));
    let file = client.find("config/file");
    assert!(matches!(client.call(op::UNLINK, file, &name("file")), Err(ENOTDIR | EROFS)));
    assert!(client.path("config/file").exists());
}

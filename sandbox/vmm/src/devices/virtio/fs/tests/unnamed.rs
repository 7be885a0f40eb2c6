//! Files without a name.

use std::os::unix::fs::MetadataExt;

use libc::{EBADF, EINVAL, ENFILE, ENOENT, ENOTDIR, O_EXCL, O_RDONLY, O_RDWR};

use super::client::{Client, fields, name, number, op};

/// Where the link count is in the reply.
const LINKS: usize = 104;
const HANDLE: usize = 128;

fn request(flags: i32) -> Vec<u8> {
    [fields(&[flags as u32, 0o4666, 0o022, 0]), name("/")].concat()
}

fn link(node: u64, to: &str) -> Vec<u8> {
    [&node.to_le_bytes()[..], &name(to)].concat()
}

#[test]
fn a_file_without_a_name_gets_one() {
    let Some(mut client) = Client::new() else { return };
    let (volume, dir) = (client.find("volume"), client.find("volume/dir"));
    client.uid = 1000;
    let reply = client.call(op::TMPFILE, volume, &request(O_RDWR)).unwrap();
    let (node, handle) = (number(&reply), number(&reply[HANDLE..]));
    assert_eq!((reply.len(), reply[LINKS]), (144, 0));
    assert_eq!(client.write(node, handle, b"hello", 0).unwrap()[0], 5);
    assert_eq!(std::fs::read_dir(client.path("volume")).unwrap().count(), 3, "it has no name");
    let again = client.open(op::OPEN, node, O_RDONLY).unwrap();
    assert_eq!(client.read(node, again, 100).unwrap(), b"hello");
    client.uid = 0;
    let reply = client.call(op::LINK, dir, &link(node, "named")).unwrap();
    assert_eq!((number(&reply), reply[LINKS]), (node, 1), "the same file");
    assert_eq!(client.find("volume/dir/named"), node);
    let path = client.path("volume/dir/named");
    let stat = path.metadata().unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777, stat.nlink()), (1000, 1000, 0o4644, 1));
    client.write(node, handle, b"H", 0).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"Hello");
}

#[test]
fn what_a_file_without_a_name_is_not_for() {
    let Some(mut client) = Client::new() else { return };
    let (volume, file) = (client.find("volume"), client.find("volume/file"));
    assert_eq!(client.call(op::TMPFILE, volume, &request(O_RDONLY)), Err(EINVAL));
    assert_eq!(client.call(op::TMPFILE, file, &request(O_RDWR)), Err(ENOTDIR));
    assert_eq!(client.call(op::TMPFILE, 999, &request(O_RDWR)), Err(EBADF));
    assert_eq!(client.call(op::TMPFILE, volume, &[0; 15]), Err(EINVAL));
    let reply = client.call(op::TMPFILE, volume, &request(O_RDWR | O_EXCL)).unwrap();
    assert_eq!(client.call(op::LINK, volume, &link(number(&reply), "named")), Err(ENOENT));
}

#[test]
fn a_file_without_a_name_counts_until_it_is_forgotten_and_closed() {
    let Some(mut client) = Client::new() else { return };
    client.fs.share.limit(20);
    let volume = client.find("volume");
    let made: Vec<_> =
        std::iter::from_fn(|| client.call(op::TMPFILE, volume, &request(O_RDWR)).ok()).take(50).collect();
    assert_eq!((made.len(), client.fs.share.held()), (9, 19), "one more may be known, but not open too");
    assert_eq!(client.call(op::TMPFILE, volume, &request(O_RDWR)), Err(ENFILE));
    let create = [fields(&[O_RDWR as u32, 0o644, 0, 0]), name("new")].concat();
    assert_eq!(client.call(op::CREATE, volume, &create), Err(ENFILE));
    assert_eq!(client.fs.share.counts(), (10, 9), "the guest knows no file that it was not told of");
    for reply in &made {
        let (node, handle) = (number(reply), number(&reply[HANDLE..]));
        let release = [&handle.to_le_bytes()[..], &fields(&[0; 4])].concat();
        client.call(op::RELEASE, node, &release).unwrap();
        assert_eq!(client.raw(48, op::FORGET, node, &1_u64.to_le_bytes()), None);
    }
    assert_eq!((client.fs.share.counts(), client.fs.share.held()), ((1, 0), 1));
}

//! ACLs of files on volumes.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use libc::{EINVAL, ENODATA, EOPNOTSUPP, O_CREAT, O_RDWR};
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::process::umask;

use super::client::{Client, ROOT, Reply, fields, name, number, op};

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const KILL_SGID: u32 = 1;
/// Where the mode is in a reply.
const MODE: usize = 100;

/// `user::rwx, user:1234:rwx, group::r-x, mask::<mask>, other::---`, as setfacl(1) writes it.
fn acl(mask: u32) -> Vec<u8> {
    let entries = [(1, 7, u32::MAX), (2, 7, 1234), (4, 5, u32::MAX), (16, mask, u32::MAX), (32, 0, u32::MAX)];
    let entries = entries.iter().flat_map(|(tag, may, id)| [tag | may << 16, *id]);
    fields(&std::iter::once(2).chain(entries).collect::<Vec<u32>>())
}

fn set(client: &mut Client, node: u64, attribute: &str, value: &[u8], flags: u32) -> Reply {
    let body = [fields(&[value.len() as u32, 0, flags, 0]), name(attribute), value.to_vec()].concat();
    client.call(op::SETXATTR, node, &body)
}

fn get(client: &mut Client, node: u64, attribute: &str) -> Reply {
    client.call(op::GETXATTR, node, &[fields(&[4096, 0]), name(attribute)].concat())
}

#[test]
fn an_acl_is_set_read_listed_and_removed() {
    let Some(mut client) = Client::new() else { return };
    let (file, dir) = (client.find("volume/file"), client.find("volume/dir"));
    assert_eq!(get(&mut client, file, ACCESS), Err(ENODATA));
    set(&mut client, file, ACCESS, &acl(6), 0).unwrap();
    set(&mut client, dir, DEFAULT, &acl(7), 0).unwrap();
    assert_eq!(get(&mut client, file, ACCESS).unwrap(), acl(6));
    assert_eq!(get(&mut client, dir, DEFAULT).unwrap(), acl(7));
    assert_eq!(client.path("volume/file").metadata().unwrap().mode() & 0o777, 0o760, "the mask is the group's part");
    let list = client.call(op::LISTXATTR, file, &fields(&[4096, 0])).unwrap();
    assert!(list.split(|byte| *byte == 0).any(|listed| listed == ACCESS.as_bytes()));
    // chmod changes the mask.
    client.set(file, super::FATTR_MODE, 0o740).unwrap();
    assert_eq!(get(&mut client, file, ACCESS).unwrap(), acl(4));
    for (node, attribute) in [(file, ACCESS), (dir, DEFAULT)] {
        client.call(op::REMOVEXATTR, node, &name(attribute)).unwrap();
        assert_eq!(get(&mut client, node, attribute), Err(ENODATA));
    }
    assert_eq!(set(&mut client, file, ACCESS, &acl(7)[..30], 0), Err(EINVAL));
}

#[test]
fn an_acl_takes_the_set_group_bit_when_the_guest_says_so() {
    let Some(mut client) = Client::new() else { return };
    let (path, file) = (client.path("volume/file"), client.find("volume/file"));
    std::os::unix::fs::chown(&path, Some(1000), Some(5)).unwrap();
    let mode = || path.metadata().unwrap().mode() & 0o7777;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2775)).unwrap();
    client.uid = 1000;
    set(&mut client, file, ACCESS, &acl(7), 0).unwrap();
    assert_eq!(mode(), 0o2770);
    set(&mut client, file, ACCESS, &acl(7), KILL_SGID).unwrap();
    assert_eq!(mode(), 0o770);
    // What the server gave up for that it has again.
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o2775)).unwrap();
    set(&mut client, file, ACCESS, &acl(7), 0).unwrap();
    assert_eq!(mode(), 0o2770);
}

/// What a file is: its mode, its ACL and what it gives on.
type Made = (u32, Option<Vec<u8>>, Option<Vec<u8>>);

/// Makes a file, a folder and a file without a name in `dir` on the node.
fn made_on_the_node(dir: PathBuf, mode: u32) -> [Made; 3] {
    let raw = Mode::from_raw_mode(mode);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join("file"), flags | OFlags::CREATE, raw).unwrap();
    rustix::fs::mkdir(dir.join("dir"), raw).unwrap();
    let folder = rustix::fs::open(dir.join("dir"), OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let unnamed = rustix::fs::open(&dir, flags | OFlags::TMPFILE, raw).unwrap();
    [file, folder, unnamed].map(|file: OwnedFd| {
        let mode = rustix::fs::fstat(&file).unwrap().st_mode;
        let [access, default] = [ACCESS, DEFAULT].map(|attribute| {
            let mut value = vec![0; 4096];
            let length = rustix::fs::fgetxattr(&file, attribute, &mut value[..]).ok()?;
            value.truncate(length);
            Some(value)
        });
        (mode, access, default)
    })
}

/// The same in the folder `dir` of a volume.
fn made_by_a_guest(client: &mut Client, dir: &str, mode: u32, umask: u32) -> [Made; 3] {
    let dir = client.find(dir);
    let flags = (O_RDWR | O_CREAT) as u32;
    let requests = [
        (op::CREATE, [fields(&[flags, mode, umask, 0]), name("file")].concat()),
        (op::MKDIR, [fields(&[mode, umask]), name("dir")].concat()),
        (op::TMPFILE, [fields(&[O_RDWR as u32, mode, umask, 0]), name("/")].concat()),
    ];
    requests.map(|(opcode, body)| {
        let reply = client.call(opcode, dir, &body).unwrap();
        let mode = u32::from_le_bytes(std::array::from_fn(|at| reply[MODE + at]));
        let [access, default] = [ACCESS, DEFAULT].map(|attribute| get(client, number(&reply), attribute).ok());
        (mode, access, default)
    })
}

#[test]
fn what_is_made_is_as_on_the_node_with_a_default_acl_and_without() {
    let Some(mut client) = Client::new() else { return };
    for (number, (with_acl, mode, mask)) in
        [false, true].iter().flat_map(|acl| [(*acl, 0o666, 0o022), (*acl, 0o777, 0o077), (*acl, 0o640, 0)]).enumerate()
    {
        let [here, there] = ["here", "there"].map(|which| format!("volume/{which}{number}"));
        for dir in [&here, &there] {
            let path = client.path(dir);
            std::fs::create_dir(&path).unwrap();
            if with_acl {
                rustix::fs::setxattr(&path, DEFAULT, &acl(7), XattrFlags::empty()).unwrap();
            }
        }
        let before = umask(Mode::from_raw_mode(mask)); // of this thread only
        let expected = made_on_the_node(client.path(&there), mode);
        umask(before);
        assert_eq!(made_by_a_guest(&mut client, &here, mode, mask), expected, "{mode:o} {mask:o}, ACL: {with_acl}");
        assert_eq!(expected[0].1.is_some(), with_acl);
    }
}

#[test]
fn a_file_system_without_acls_has_none() {
    let Some(mut client) = Client::new() else { return };
    let target = client.path("share/late");
    std::fs::create_dir(&target).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &target, "ramfs", flags, None).unwrap();
    let late = client.find("late");
    assert_eq!(get(&mut client, late, ACCESS), Err(ENODATA), "or the guest's kernel would let nobody in");
    assert_eq!(set(&mut client, late, ACCESS, &acl(7), 0), Err(EOPNOTSUPP));
    assert_eq!(client.call(op::REMOVEXATTR, late, &name(ACCESS)), Err(EOPNOTSUPP));
    let user = [fields(&[4096, 0]), name("user.x")].concat();
    assert_eq!(client.call(op::GETXATTR, late, &user), Err(EOPNOTSUPP));
}

/// A kernel that does not know the longer form of the request is answered in the shorter one.
#[test]
fn attributes_are_set_in_both_forms() {
    let Some(mut client) = Client::new() else { return };
    let short = [fields(&[1, 0]), name("user.x"), b"v".to_vec()].concat();
    let file = client.find("volume/file");
    assert_eq!(client.call(op::SETXATTR, file, &short), Err(EINVAL));
    for wrong in [fields(&[1, 0, 0]), fields(&[2, 0, 0, 0, 0]), [fields(&[1, 0, 0, 0]), b"user.x".to_vec()].concat()] {
        assert_eq!(client.call(op::SETXATTR, file, &wrong), Err(EINVAL));
    }
    client.call(op::INIT, ROOT, &fields(&[7, 31, 0x2_0000, 1])).unwrap();
    let file = client.find("volume/file");
    client.call(op::SETXATTR, file, &short).unwrap();
    assert_eq!(get(&mut client, file, "user.x").unwrap(), b"v");
}

//! FUSE requests to the file server over a directory that is there, with volumes below it as a pod
//! has them. Nothing outside of the volume that may be written must change.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use cofferdam_vmm::fuzzing::Fuse;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::mount::{mount_bind, mount_change, mount_remount, unmount};
use rustix::thread::UnshareFlags;

use super::{Target, target};
use crate::scratch;
use crate::words::Words;

pub(super) const FUSE: Target = target("fuse", fuse, seeds);

/// Requests of one input at most.
const MOST: usize = 64;
/// Requests that the file server knows, most often those that change something; then one of another
/// number.
const OPCODES: [u32; 43] = [
    1, 1, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 26, 27, 28, 29, 30, 35, 36,
    38, 39, 42, 43, 44, 45, 46, 51, 47, 48, 50, 4096,
];
const NAMES: [&[u8]; 16] = [
    b"volume",
    b"layer0",
    b"config",
    b"file",
    b"dir",
    b"link",
    b"new",
    b"..",
    b".",
    b"",
    b"a/b",
    b"../secret",
    b".nothing",
    b"user.x",
    b"system.posix_acl_access",
    b"security.capability",
];
/// Linux's own: version 7.31, everything that it can.
const INIT: [u32; 4] = [7, 31, 0x2_0000, !(1 << 30)];

/// The directories that a server's root is made of.
///
/// ```text
/// secret           not shared
/// share/layer0     read-only mount of layer
/// share/volume     mount of volume
/// ```
pub(super) struct Share {
    dir: tempfile::TempDir,
}

impl Share {
    /// Makes them; `None` where this process may not mount.
    pub(super) fn new() -> Option<Self> {
        if !scratch::is_root() {
            return None;
        }
        let dir = scratch::dir().expect("a directory");
        let share = Self { dir };
        for volume in ["layer", "volume"] {
            fs::create_dir_all(share.at(volume).join("dir")).expect("a directory");
            fs::write(share.at(volume).join("file"), "content").expect("a file");
            symlink("../secret", share.at(volume).join("link")).expect("a link");
        }
        fs::write(share.at("secret"), "secret").expect("a file");
        for mount in ["layer0", "volume"] {
            fs::create_dir_all(share.at("share").join(mount)).expect("a directory");
        }
        mount_bind(share.at("layer"), share.at("share/layer0")).expect("a mount");
        mount_remount(share.at("share/layer0"), MountFlags::BIND | MountFlags::RDONLY, "").expect("a mount");
        mount_bind(share.at("volume"), share.at("share/volume")).expect("a mount");
        Some(share)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self) -> OwnedFd {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(self.at("share"), flags, Mode::empty()).expect("the root")
    }

    /// Has `serve` serve the root, and looks whether more changed than may.
    pub(super) fn before_and_after(self, serve: impl FnOnce(OwnedFd)) {
        let seen = || {
            let mut seen = scratch::snapshot(self.dir.path(), &self.at("share")).expect("what is there");
            seen.retain(|path, _| !path.starts_with(self.at("volume")));
            let mut names: Vec<_> = fs::read_dir(self.at("share")).expect("it is there").flatten().collect();
            names.sort_by_key(fs::DirEntry::file_name);
            seen.insert(self.at("share"), format!("{names:?}"));
            seen
        };
        let before = seen();
        serve(self.root());
        let after = seen();
        assert!(before == after, "something outside of the volume changed: {before:#?}\nis now {after:#?}");
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for mount in ["share/layer0", "share/volume"] {
            let _ = unmount(self.at(mount), UnmountFlags::DETACH);
        }
    }
}

/// A server changes its thread's working directory and umask, and the mounts are nobody else's.
pub(super) fn in_own_thread(body: impl FnOnce() + Send) {
    #![allow(unsafe_code, reason = "unshare(2)")]
    let whole = || {
        // SAFETY: no memory is shared or unshared; this thread has no working directory, umask or
        // mounts in common with others afterwards.
        let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) };
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        if unshared.is_ok() && mount_change("/", private).is_ok() {
            body();
        }
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(whole).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn fuse(bytes: &[u8]) {
    in_own_thread(|| {
        let Some(share) = Share::new() else { return };
        share.before_and_after(|root| {
            let mut server = Fuse::new(root).expect("a file server");
            let mut words = Words::new(bytes);
            if words.byte() != 0 {
                let body = INIT.map(u32::to_le_bytes).concat();
                server.request(&whole(26, 1, 1, [0, 0], &body), 4096);
            }
            for number in 0..MOST as u64 {
                if !words.more() {
                    break;
                }
                let request = request(&mut words, number);
                let room = words.one_of(&[4096, 65_536, 16, 0, 15, 104, 144]);
                let reply = server.request(&request, room);
                check(&request, &reply);
            }
        });
    });
}

/// A reply is whole, and of its request.
fn check(request: &[u8], reply: &[u8]) {
    let word = |at: usize| reply.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    let Some(length) = word(0) else {
        assert!(reply.is_empty(), "a reply of {} bytes", reply.len());
        return;
    };
    assert_eq!(length as usize, reply.len(), "a reply says another length than it has");
    assert_eq!(reply.get(8..16), request.get(8..16), "a reply to another request");
    let error = word(4).unwrap_or(0).cast_signed();
    assert!((-4095..=0).contains(&error), "error {error}");
}

/// One request: `u32 length | u32 opcode | u64 number | u64 node`, `u32 uid | u32 gid | u32 pid | u32`
/// and a body of pieces that requests are made of.
pub(super) fn request(words: &mut Words<'_>, number: u64) -> Vec<u8> {
    let opcode = words.one_of(&OPCODES);
    // Numbers of nodes and handles go up from 1.
    let node = match words.byte() {
        255 => words.long(),
        node => u64::from(node % 12),
    };
    let who = words.one_of(&[[0_u32, 0], [1000, 1000], [u32::MAX, u32::MAX]]);
    let mut body = Vec::new();
    for _ in 0..words.byte() % 16 {
        match words.byte() % 8 {
            0 | 1 => body.extend(u64::from(words.byte() % 12).to_le_bytes()),
            2 => body.extend(u32::from(words.half()).to_le_bytes()),
            3 => body.extend(words.word().to_le_bytes()),
            4 | 5 => body.extend([words.one_of(&NAMES), &[0]].concat()),
            6 => body.extend(vec![0; usize::from(words.byte() % 64)]),
            _ => body.extend(words.piece()),
        }
    }
    let mut request = whole(opcode, number, node, who, &body);
    if words.byte() == 255 {
        let length = words.word();
        request[..4].copy_from_slice(&length.to_le_bytes());
        request.truncate(usize::from(words.half()));
    }
    request
}

fn whole(opcode: u32, number: u64, node: u64, [uid, gid]: [u32; 2], body: &[u8]) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let length = 40 + body.len() as u32;
    let ids = [number.to_le_bytes(), node.to_le_bytes()].concat();
    [words(&[length, opcode]), ids, words(&[uid, gid, 1, 0]), body.to_vec()].concat()
}

/// A lookup of the volume, and of what is in it; a file is made, written, read and removed.
fn seeds() -> Vec<Vec<u8>> {
    let lookup = |node: u8, name: u8| vec![0, node, 0, 1, 4, name, 0, 0];
    let create = vec![29, 2, 0, 4, 2, 0x42, 0, 2, 0xa4, 1, 6, 8, 4, 6, 0, 0];
    let write = vec![16, 3, 0, 4, 0, 1, 6, 8, 2, 5, 0, 6, 20, 0, 0];
    let remove = vec![10, 2, 0, 1, 4, 6, 0, 0];
    let readdir = vec![25, 2, 0, 2, 2, 0, 0, 2, 0, 0, 0, 0];
    vec![
        [vec![1], lookup(1, 0), lookup(2, 3), create, write, remove].concat(),
        [vec![1], lookup(1, 1), lookup(2, 3), lookup(2, 5), lookup(1, 7), readdir].concat(),
        (0..=255).collect(),
    ]
}

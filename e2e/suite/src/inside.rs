//! What a test does inside a container that busybox cannot: the suite's own program runs there,
//! from a volume of the node's /usr.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, XattrFlags, linkat, openat, setxattr, stat};

use crate::failure::{Doing, Outcome, ensure};

/// A volume of the node's /usr is mounted here.
pub(crate) const NODE_USR: &str = "/node-usr";

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Work {
    /// Makes a file without a name in a folder, writes it and gives it the name `named`.
    UnnamedFile {
        /// The folder.
        folder: PathBuf,
    },
    /// Lets the user with id 1234 read a file by an ACL, and reads the ACL back.
    Acl {
        /// The file.
        file: PathBuf,
    },
}

/// The words that run `work` in a container that has the volume: by the node's own loader, since
/// the image has none.
pub(crate) fn command(work: &str) -> String {
    format!(
        "{NODE_USR}/lib64/ld-linux-x86-64.so.2 --library-path {NODE_USR}/lib/x86_64-linux-gnu \
         {NODE_USR}/local/bin/cofferdam-e2e inside {work}"
    )
}

/// Does it.
pub(crate) fn run(work: &Work) -> Outcome {
    match work {
        Work::UnnamedFile { folder } => unnamed_file(folder),
        Work::Acl { file } => acl(file),
    }
}

fn unnamed_file(folder: &Path) -> Outcome {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(CWD, folder, flags, Mode::from_raw_mode(0o640)).doing("make a file without a name")?;
    let mut file = std::fs::File::from(file);
    file.write_all(b"whole").doing("write to it")?;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, link, CWD, folder.join("named"), AtFlags::SYMLINK_FOLLOW).doing("give it a name")
}

/// An ACL as Linux keeps it in an attribute: version 2, then tag, permissions and id of each entry.
fn attribute(entries: [(u16, u16, u32); 5]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn acl(file: &Path) -> Outcome {
    const NONE: u32 = u32::MAX;
    // The owner reads and writes, user 1234 reads, the group and others do neither.
    let wanted = attribute([(1, 6, NONE), (2, 4, 1234), (4, 0, NONE), (0x10, 4, NONE), (0x20, 0, NONE)]);
    let name = "system.posix_acl_access";
    setxattr(file, name, &wanted, XattrFlags::empty()).doing("set an ACL")?;
    let mut got = vec![0u8; 256];
    let length = rustix::fs::getxattr(file, name, &mut got[..]).doing("read an ACL")?;
    ensure!(got[..length] == wanted[..], "the ACL reads {:?}, not {wanted:?}", &got[..length]);
    let mode = stat(file).doing("look at the file")?.st_mode & 0o777;
    ensure!(mode == 0o640, "the file's mode is {mode:o}: the mask does not show as the group's permissions");
    Ok(())
}

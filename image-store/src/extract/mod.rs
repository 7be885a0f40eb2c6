//! A layer's tar stream, turned into a directory in overlayfs form.
//!
//! The kernel follows no symbolic link here: every parent directory is opened from the root's
//! descriptor with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`, and every last component is
//! handled by `*at` calls that do not follow. Where the path of an entry goes through a link of the
//! layer, [`follow`] works out first where that leads inside the root; links of lower layers are
//! followed when the layer is completed ([`relocate`]). The directory is private (below a 0700
//! directory) until it is complete.

mod attributes;
mod follow;
mod header;
mod links;
mod lower;
mod maker;
mod name;
mod pax;
mod reader;
mod relocate;
mod root;
mod sparse;
mod stack;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

pub(crate) use self::attributes::keeps_xattr;
use self::attributes::{Attributes, DEFAULT_ACL};
use self::follow::Bounds;
use self::links::Linked;
pub use self::lower::complete;
pub(crate) use self::lower::{attributes_but, copy_up};
use self::name::{join, split};
use self::reader::{Entry, lossy};
pub(crate) use self::reader::{Kind, TarReader};
use self::root::Root;
use crate::config::Limits;

/// Names that the extractor remembers (directories' times, implied parents), in bytes: far beyond
/// real layers, and a bound on memory.
const MAX_REMEMBERED: usize = 64 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";

/// Why a layer could not be extracted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The layer is not what the specifications allow.
    #[error("{entry}: {reason}")]
    Malformed {
        /// The entry's name, made printable.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// Beyond a limit.
    #[error("{entry}: more than {limit}")]
    TooLarge {
        /// The entry's name, made printable.
        entry: String,
        /// The limit and its unit.
        limit: String,
    },
    /// The operating system refused.
    #[error("{entry}: {operation}")]
    Io {
        /// The entry's name, made printable.
        entry: String,
        /// What was being done.
        operation: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The stream broke: decompression or download.
    #[error("reading the layer")]
    Read(#[source] io::Error),
}

impl ExtractError {
    fn malformed(entry: &str, reason: &str) -> Self {
        Self::Malformed { entry: entry.to_owned(), reason: reason.to_owned() }
    }

    fn too_large(entry: &str, limit: String) -> Self {
        Self::TooLarge { entry: entry.to_owned(), limit }
    }
}

/// What a layer became.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extracted {
    /// Bytes on disk, in whole blocks.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directories that the layer did not list but that its entries are in, parents first; the root
    /// is empty. Their owner and mode are to be taken from the layers below.
    pub implied: Vec<Vec<u8>>,
    /// Hard links whose target is not in this layer: (name, target).
    pub missing_targets: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whiteouts that were made. Those that hide nothing of the layers below are to be taken away.
    pub whiteouts: Vec<Vec<u8>>,
    /// The root is opaque: nothing of the layers below shows. Overlayfs has no mark for that; stack
    /// this layer as the lowest.
    pub hides_below: bool,
    /// It has whiteouts or opaque marks, so that it is another tree at the bottom than above other
    /// layers.
    pub marks: bool,
    /// Directories of it were moved through symbolic links of the layers below, so that it is
    /// another tree above other layers.
    pub relocated: bool,
}

/// Extracts the tar stream into the directory `root`, and gives back the stream to be read to its
/// end.
///
/// `lowest`: there is no layer below, so that whiteouts and opaque marks mean nothing and are left
/// out (a whiteout in a directory that overlayfs does not merge would show up in its listing).
pub fn extract<R: Read>(
    stream: R,
    root: OwnedFd,
    lowest: bool,
    limits: &Limits,
) -> Result<(Extracted, R), ExtractError> {
    let mut tar = TarReader::new(stream, limits);
    let mut extractor = Extractor {
        root: Root::new(root, Bounds::new(limits.path_depth)),
        limits,
        lowest,
        sum: 0,
        remembered: 0,
        dir_times: BTreeMap::new(),
        dir_acls: BTreeMap::new(),
        implied: BTreeSet::from([Vec::new()]),
        done: Extracted::default(),
    };
    while let Some(entry) = tar.next()? {
        extractor.entry(&mut tar, entry)?;
    }
    Ok((extractor.finish()?, tar.into_inner()))
}

struct Extractor<'a> {
    root: Root,
    limits: &'a Limits,
    lowest: bool,
    /// Sum of the files' sizes.
    sum: u64,
    remembered: usize,
    /// Set at the end, since every entry below a directory changes its time.
    dir_times: BTreeMap<Vec<u8>, (i64, u32)>,
    /// Set at the end, since files that are made in a directory would inherit its list.
    dir_acls: BTreeMap<Vec<u8>, Vec<u8>>,
    implied: BTreeSet<Vec<u8>>,
    done: Extracted,
}

impl Extractor<'_> {
    fn entry<R: Read>(&mut self, tar: &mut TarReader<'_, R>, entry: Entry) -> Result<(), ExtractError> {
        let Some((dir, name)) = split(&entry.name, self.limits.path_depth)? else {
            return self.root_entry(&entry);
        };
        let dir = self.root.locate(&entry.name, dir)?;
        if dir.split(|b| *b == b'/').any(|c| c.starts_with(AUFS)) || name.starts_with(AUFS) && name != OPAQUE {
            return Ok(()); // AUFS' own book-keeping in layers of old Docker versions.
        }
        if dir.split(|b| *b == b'/').any(|c| c.starts_with(WHITEOUT)) {
            return Err(ExtractError::malformed(&lossy(&entry.name), "is below a whiteout"));
        }
        if name == OPAQUE {
            return self.opaque(&entry, &dir);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&entry, &dir, hidden);
        }
        self.parents(&entry, &dir)?;
        match entry.kind {
            Kind::Dir => self.dir(&entry, &dir, &name),
            Kind::File => self.file(tar, &entry, &name),
            Kind::HardLink => self.hard_link(&entry, &dir, &name),
            Kind::Symlink | Kind::Char | Kind::Block | Kind::Fifo => {
                self.root.special(&entry, &name)?;
                self.count(0)
            }
        }
    }

    /// `./`: the layer's root directory. Nothing else can take its place: such an entry is left
    /// out, as in containerd.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        if entry.kind != Kind::Dir {
            tracing::debug!(
                entry = lossy(&entry.name),
                "left out: an entry that names the layer's root and is no directory"
            );
            return Ok(());
        }
        self.root.dir_attributes(&entry.name, b"", &Attributes::of(entry))?;
        self.implied.remove(&[][..]);
        self.dir_end(Vec::new(), entry)
    }

    fn opaque(&mut self, entry: &Entry, dir: &[u8]) -> Result<(), ExtractError> {
        self.done.marks = true;
        if self.lowest {
            return Ok(());
        }
        if dir.is_empty() {
            self.done.hides_below = true;
            return Ok(());
        }
        self.parents(entry, dir)?;
        self.root.make_opaque(&entry.name, dir)
    }

    fn whiteout(&mut self, entry: &Entry, dir: &[u8], hidden: &[u8]) -> Result<(), ExtractError> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ExtractError::malformed(&lossy(&entry.name), "whiteout of no name"));
        }
        self.done.marks = true;
        if self.lowest {
            return Ok(());
        }
        self.parents(entry, dir)?;
        if self.root.whiteout(&entry.name, hidden)? {
            self.count(0)?;
            self.remember(dir.len() + hidden.len())?;
            self.done.whiteouts.push(join(dir, hidden));
        } else {
            // The layer deletes the directory below and has a new one, which takes over nothing.
            self.implied.remove(&join(dir, hidden));
        }
        Ok(())
    }

    fn dir(&mut self, entry: &Entry, dir: &[u8], name: &[u8]) -> Result<(), ExtractError> {
        let path = join(dir, name);
        if self.root.dir(entry, dir, name)? {
            self.count(4096)?;
        }
        self.implied.remove(&path);
        self.dir_end(path, entry)
    }

    /// Remembers what can be set on a directory only when everything is in it.
    fn dir_end(&mut self, path: Vec<u8>, entry: &Entry) -> Result<(), ExtractError> {
        self.remember(path.len())?;
        if let Some((_, acl)) = entry.xattrs.iter().find(|(name, _)| name == DEFAULT_ACL) {
            self.remember(path.len() + acl.len())?;
            self.dir_acls.insert(path.clone(), acl.clone());
        }
        self.dir_times.insert(path, entry.mtime);
        Ok(())
    }

    fn file<R: Read>(&mut self, tar: &mut TarReader<'_, R>, entry: &Entry, name: &[u8]) -> Result<(), ExtractError> {
        self.sum = self.sum.saturating_add(entry.size);
        if self.sum > self.limits.layer_unpacked_bytes {
            return Err(ExtractError::too_large(
                &lossy(&entry.name),
                format!("{} bytes in the layer", self.limits.layer_unpacked_bytes),
            ));
        }
        let stored = self.root.file(tar, entry, name)?;
        self.count(stored)
    }

    fn hard_link(&mut self, entry: &Entry, dir: &[u8], name: &[u8]) -> Result<(), ExtractError> {
        let refuse = |reason: &str| Err(ExtractError::malformed(&lossy(&entry.name), reason));
        // From the root, as the entry's own name: some writers begin it with a slash, others do
        // not.
        let Some((target_dir, target_name)) = split(&entry.link, self.limits.path_depth)
            .map_err(|_| ExtractError::malformed(&lossy(&entry.name), "hard link's target is too long or too deep"))?
        else {
            return refuse("hard link to the root");
        };
        if target_dir.split(|b| *b == b'/').chain([&target_name[..]]).any(|c| c.starts_with(WHITEOUT)) {
            return refuse("hard link to a whiteout");
        }
        match self.root.hard_link(entry, dir, name, (target_dir, target_name))? {
            Linked::Done => {}
            Linked::Missing(target_dir, target) => {
                self.remember(target_dir.len() + target.len() + dir.len() + name.len())?;
                self.done.missing_targets.push((join(dir, name), join(&target_dir, &target)));
            }
        }
        Ok(())
    }

    /// Opens the entry's directory, making what the layer did not list.
    fn parents(&mut self, entry: &Entry, dir: &[u8]) -> Result<(), ExtractError> {
        for (made, replaced) in self.root.enter(&entry.name, dir)? {
            self.remember(made.len())?;
            if !replaced {
                self.implied.insert(made);
            }
            self.count(4096)?;
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<(), ExtractError> {
        self.done.inodes += 1;
        self.done.bytes += bytes;
        Ok(())
    }

    fn remember(&mut self, bytes: usize) -> Result<(), ExtractError> {
        self.remembered += bytes + 64;
        if self.remembered > MAX_REMEMBERED {
            return Err(ExtractError::too_large("the layer", format!("{MAX_REMEMBERED} bytes of directory names")));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Extracted, ExtractError> {
        // Sorted: parents come before their children.
        self.done.implied = self.implied.iter().filter(|p| self.root.is_dir(p)).cloned().collect();
        for (path, acl) in &self.dir_acls {
            self.root.dir_acl(path, acl)?;
        }
        for (path, mtime) in &self.dir_times {
            self.root.dir_time(path, *mtime)?;
        }
        Ok(self.done)
    }
}

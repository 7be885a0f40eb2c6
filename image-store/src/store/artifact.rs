//! OCI artifacts: manifests whose config is no image's. They back image volumes, as in CRI-O.
//!
//! ```text
//!  blob of a type with `.tar` ──► unpacked, as an image's layer
//!  any other blob ──────────────► one file: org.opencontainers.image.title, else sha256-<digest>
//! ```
//!
//! Each blob is one layer directory of the store, and of equal names the last blob's counts. A
//! title is a relative path; one that begins with a slash or has `..` in it is refused. (CRI-O
//! refuses the same; podman, whose name for blobs without a title this is, refuses every slash.)

use crate::digest::Digest;
use crate::error::{StoreError, StoreResult};
use crate::registry::{Layer, printable};

/// Bytes of a title.
const TITLE: usize = 4096;

/// What a blob is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// The tree of a tar. Its diff ID is verified.
    Layer,
    /// The tree of a tar of which nobody says what its diff ID is: the blob's digest is all there
    /// is to verify.
    Tar,
    /// A file of this name.
    File(String),
}

impl Form {
    /// What a blob of an artifact becomes.
    ///
    /// # Errors
    /// The blob's title is no name for a file in a volume.
    pub(super) fn of_artifact(layer: &Layer) -> StoreResult<Self> {
        if layer.media_type.contains(".tar") {
            return Ok(Self::Tar);
        }
        let Some(title) = &layer.title else {
            return Ok(Self::File(layer.blob.digest.to_string().replace(':', "-")));
        };
        let refuse = |why: &str| {
            let what = format!("blob {} of the artifact", layer.blob.digest);
            Err(StoreError::malformed(what, format!("its title {:?} {why}", printable(title))))
        };
        let parts: Vec<&str> = title.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        if title.len() > TITLE || parts.iter().any(|part| part.len() > 255) {
            return refuse("is too long for a file");
        }
        if title.starts_with('/') || parts.contains(&"..") {
            return refuse("leads out of the volume");
        }
        if title.contains('\0') || parts.iter().any(|part| part.starts_with(".wh.")) {
            return refuse("is no name for a file");
        }
        match parts.is_empty() {
            true => refuse("names no file"),
            false => Ok(Self::File(parts.join("/"))),
        }
    }

    /// What stands for the diff ID of an artifact's blob: equal ones make equal trees. No tar has
    /// it, since it is the digest of text that is shorter than a tar's header.
    pub(super) fn stand_in(&self, blob: &Digest) -> Digest {
        let text = match self {
            Self::Layer | Self::Tar => format!("cofferdam artifact tar {blob}"),
            Self::File(name) => format!("cofferdam artifact file {blob} {}", Digest::of(name.as_bytes())),
        };
        Digest::of(text.as_bytes())
    }
}

/// The tar headers of a file of this name and size.
///
/// # Errors
/// The operating system's, of a write into memory.
pub(super) fn headers(name: &str, size: u64) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, name, std::io::empty())?;
    // Without the end of an archive.
    Ok(std::mem::take(builder.get_mut()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Descriptor;

    fn form(media_type: &str, title: Option<&str>) -> StoreResult<Form> {
        let blob = Descriptor { digest: Digest::of(b"x"), size: 1 };
        Form::of_artifact(&Layer { blob, media_type: media_type.into(), title: title.map(str::to_owned) })
    }

    #[test]
    fn titles_name_files_in_the_volume() {
        let named = |title| form("application/x", title).unwrap();
        assert_eq!(named(Some("a.bin")), Form::File("a.bin".into()));
        assert_eq!(named(Some("./models//a b/..c")), Form::File("models/a b/..c".into()));
        assert_eq!(named(None), Form::File(format!("sha256-{}", Digest::of(b"x").hex())));
        assert_eq!(form("application/x.tar+gzip", Some("/x")).unwrap(), Form::Tar, "a tar has names of its own");
        let long = "a/".repeat(2049);
        let longer = "a".repeat(256);
        for bad in
            ["/etc/passwd", "..", "a/../../b", "a/..", "a\0b", ".", "./", "d/.wh.x", ".wh..wh..opq", &long, &longer]
        {
            let error = form("application/x", Some(bad)).unwrap_err().to_string();
            assert!(error.contains("title") && error.contains(&Digest::of(b"x").hex()), "{bad}: {error}");
        }
    }

    #[test]
    fn stand_ins_differ_by_what_the_tree_depends_on() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let file = |name: &str| Form::File(name.into());
        let all = [
            Form::Tar.stand_in(&a),
            Form::Tar.stand_in(&b),
            file("x").stand_in(&a),
            file("y").stand_in(&a),
            file("x").stand_in(&b),
        ];
        let set: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(set.len(), all.len());
    }
}

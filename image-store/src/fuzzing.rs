//! What the targets of `fuzz/` reach of the store: parsers of what a registry, an image or a file of
//! the node says. Behind the feature `fuzzing`, so the product has none of it.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::archive::Archive;
use crate::config::{Limits, Platform};
use crate::reference::Reference;
use crate::registry::challenge::Challenge;
use crate::registry::{hosts_file, manifest, message};
use crate::signature::Demand;

pub use crate::store::fuzzing::decompress;

/// Bytes of one blob of an archive that are read.
const MAX_BLOB: u64 = 1 << 20;

/// Reads a manifest or an index as a registry serves it with this `Content-Type`.
pub fn manifest(bytes: &[u8], content_type: Option<&str>) {
    let _ = manifest::parse(bytes, content_type, &Platform::default(), &Limits::default());
}

/// Reads an image's config.
pub fn image_config(bytes: &[u8]) {
    let _ = crate::image::parse_config(bytes);
}

/// Reads an image reference.
///
/// # Panics
/// When its text is another reference.
pub fn reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else { return };
    let shown = reference.to_string();
    match shown.parse::<Reference>() {
        Ok(again) => assert_eq!(again, reference, "{text:?} is shown as {shown:?}"),
        Err(error) => panic!("{text:?} is shown as {shown:?}, which is none: {error}"),
    }
    let _ = (reference.tag_key(), reference.name(), reference.selector());
}

/// Reads `WWW-Authenticate` headers, and the body of an answer that is an error.
pub fn auth_challenge(headers: &[&str], body: &[u8]) {
    let _ = Challenge::parse(headers.iter().copied());
    let _ = message::message(body, "application/json");
    let _ = message::message(body, "text/html");
}

/// Reads a `hosts.toml`.
pub fn hosts_toml(text: &str, registry: &str) {
    let _ = hosts_file::parse(Path::new("/etc/certs.d/registry/hosts.toml"), text, registry);
}

/// Reads a policy of signatures, and looks for what it wants of an image.
pub fn signature_policy(bytes: &[u8], reference: &str) {
    let (_open, path) = file(bytes);
    let _ = crate::signature::check_policy(&path);
    if let Ok(reference) = reference.parse() {
        let _ = Demand::of(&path, reference).map(|demand| demand.is_nothing());
    }
}

/// Reads an image archive, and all documents that it names.
pub fn image_archive(bytes: &[u8]) {
    let (open, _path) = file(bytes);
    let Ok((archive, found)) = Archive::open(open, None, &Limits::default(), &|| true) else { return };
    for image in found {
        let Ok(document) = archive.document(&image.root, MAX_BLOB) else { continue };
        manifest(&document, None);
    }
}

/// A file of these bytes, for as long as it is open.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("memory for it");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

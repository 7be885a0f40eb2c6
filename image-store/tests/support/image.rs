//! Images made in memory.

use std::io::Write;

use bytes::Bytes;
use cofferdam_image_store::Digest;
use serde_json::{Value, json};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Clone)]
pub struct Layer {
    pub bytes: Bytes,
    pub diff_id: Digest,
    pub packing: Packing,
}

impl Layer {
    pub fn new(tar: &[u8], packing: Packing) -> Self {
        let bytes = match packing {
            Packing::Plain => tar.to_vec(),
            Packing::Gzip => gzip(tar),
            Packing::Zstd => zstd::encode_all(tar, 1).unwrap(),
        };
        Self { bytes: bytes.into(), diff_id: Digest::of(tar), packing }
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    pub fn descriptor(&self, docker: bool) -> Value {
        let media_type = match (docker, self.packing) {
            (true, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, _) => "application/vnd.docker.image.rootfs.diff.tar",
            (false, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (false, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_at(bytes, 1)
}

pub fn gzip_at(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Clone, Default)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub docker: bool,
    /// Makes configs differ.
    pub label: String,
    pub architecture: Option<&'static str>,
}

impl Image {
    pub fn new(layers: Vec<Layer>) -> Self {
        Self { layers, ..Self::default() }
    }

    pub fn config(&self) -> Bytes {
        let diff_ids: Vec<_> = self.layers.iter().map(|l| l.diff_id).collect();
        json!({
            "architecture": self.architecture.unwrap_or("amd64"), "os": "linux",
            "config": {"Cmd": ["/bin/true"], "Labels": {"test": self.label}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into()
    }

    pub fn id(&self) -> String {
        Digest::of(&self.config()).to_string()
    }

    pub fn manifest_type(&self) -> &'static str {
        if self.docker {
            "application/vnd.docker.distribution.manifest.v2+json"
        } else {
            "application/vnd.oci.image.manifest.v1+json"
        }
    }

    pub fn manifest_value(&self) -> Value {
        let config = self.config();
        let config_type = if self.docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        json!({
            "schemaVersion": 2, "mediaType": self.manifest_type(),
            "config": {"mediaType": config_type, "digest": Digest::of(&config), "size": config.len()},
            "layers": self.layers.iter().map(|l| l.descriptor(self.docker)).collect::<Vec<_>>(),
        })
    }

    pub fn manifest(&self) -> Bytes {
        self.manifest_value().to_string().into()
    }
}

/// A well-formed tar, entry by entry.
pub struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn entry(mut self, name: &str, kind: tar::EntryType, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        self.0.append_data(&mut header, name, data).unwrap();
        self
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(name, tar::EntryType::Directory, mode, "", b"")
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, tar::EntryType::Regular, 0o644, "", data)
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(name, tar::EntryType::Symlink, 0o777, to, b"")
    }

    pub fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(name, tar::EntryType::Link, 0o644, to, b"")
    }

    pub fn whiteout(self, dir: &str, name: &str) -> Self {
        let sep = if dir.is_empty() { "" } else { "/" };
        self.file(&format!("{dir}{sep}.wh.{name}"), b"")
    }

    pub fn opaque(self, dir: &str) -> Self {
        self.file(&format!("{dir}/.wh..wh..opq"), b"")
    }

    pub fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    pub fn layer(self, packing: Packing) -> Layer {
        Layer::new(&self.done(), packing)
    }
}

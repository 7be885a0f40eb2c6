//! What the store is told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// How to open a store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The store's directory; made (0700) when it does not exist.
    pub root: PathBuf,
    /// Settings by registry, as references name it: `docker.io`, `registry.k8s.io`,
    /// `127.0.0.1:5000`. A registry that is here is not looked up in [`Config::certs_dir`].
    pub registries: BTreeMap<String, RegistryConfig>,
    /// A folder in the form of containerd's `certs.d`: `<registry>/hosts.toml`, or certificates in
    /// Docker's layout. Read anew for each pull.
    pub certs_dir: Option<PathBuf>,
    /// A `config.json` of Docker with the node's own credentials (`auths`, `credHelpers`,
    /// `credsStore`), for registries that a pull has no credentials for. Read when one asks.
    pub docker_config: Option<PathBuf>,
    /// Layers of one image that are downloaded and unpacked at the same time.
    pub max_parallel_layers: usize,
    /// Blobs of this size and larger are fetched in several parts at the same time, where the
    /// registry sends parts.
    pub parallel_blob_bytes: u64,
    /// Layers of all pulls that are decompressed at the same time.
    pub max_unpacking_layers: usize,
    /// How long whole layers of a pull that failed, and the broken one, are kept for the next pull.
    pub keep_layers: Duration,
    /// Images that are shown as pinned: references, or the beginnings of some with a `*` behind.
    pub pinned: Vec<String>,
    /// A policy in the form of containers-policy.json(5), which every pull has to satisfy. Read when
    /// the store is opened, and anew for each pull.
    pub signature_policy: Option<PathBuf>,
    /// Which image of a manifest list is ours.
    pub platform: Platform,
    /// Bounds on everything that a registry or an image sends.
    pub limits: Limits,
    /// How long a registry may keep a pull waiting.
    pub timeouts: Timeouts,
}

impl Config {
    /// The defaults for a store below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            registries: BTreeMap::new(),
            certs_dir: None,
            docker_config: None,
            max_parallel_layers: 3,
            parallel_blob_bytes: 64 << 20,
            max_unpacking_layers: 2 * std::thread::available_parallelism().map_or(1, usize::from).min(16),
            keep_layers: Duration::from_secs(3600),
            pinned: Vec::new(),
            signature_policy: None,
            platform: Platform::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}

/// How to reach one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Tried in this order before the registry itself:
    /// `https://[user:password@]host[:port][/prefix]`, or with `http`. A prefix goes before the
    /// repository's name (`/v2/<prefix>/<repository>/...`), as pull-through caches want it. A
    /// mirror never sees the credentials that came with the pull, unless those name its host.
    pub mirrors: Vec<String>,
    /// The mirrors are all there is: the registry itself is never asked.
    pub mirrors_only: bool,
    /// The registry itself speaks plain HTTP.
    pub plain_http: bool,
    /// PEM files with certificate authorities trusted for this registry and its mirrors beside the
    /// system's. A server's own certificate counts as well.
    pub ca_files: Vec<PathBuf>,
    /// Its token service, and what it redirects to, may use plain HTTP although it uses TLS itself.
    pub insecure_redirects: bool,
}

/// What a manifest list is searched for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name of the architecture: `amd64`, `arm64`.
    pub architecture: String,
    /// `v8` and such; `None` takes the baseline.
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }
}

/// Bounds on hostile input. The defaults are far above what real images need.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// A manifest or index, in bytes.
    pub manifest_bytes: u64,
    /// An image config, in bytes.
    pub config_bytes: u64,
    /// Entries of an index.
    pub index_entries: usize,
    /// Layers of an image (overlayfs itself stops at 500).
    pub layers: usize,
    /// All of an image's layers as the registry sends them, in bytes.
    pub image_bytes: u64,
    /// One layer's tar stream after decompression, and also the sum of its files' sizes, in bytes.
    pub layer_unpacked_bytes: u64,
    /// Entries of one layer.
    pub layer_entries: u64,
    /// A PAX header or a GNU long name, in bytes.
    pub tar_header_bytes: u64,
    /// Extents of one sparse file.
    pub sparse_extents: usize,
    /// Components of an entry's name.
    pub path_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            manifest_bytes: 4 << 20,
            config_bytes: 4 << 20,
            index_entries: 1000,
            layers: 500,
            image_bytes: 64 << 30,
            layer_unpacked_bytes: 64 << 30,
            layer_entries: 2_000_000,
            tar_header_bytes: 1 << 20,
            sparse_extents: 65_536,
            path_depth: 256,
        }
    }
}

/// How long a registry may keep a pull waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// For a whole manifest, config or token.
    pub document: Duration,
    /// The same for a mirror, and for its first byte of a blob, while there are others to ask. A
    /// mirror that took longer is asked last for the rest of the pull.
    pub mirror: Duration,
    /// Between two pieces of a blob. Also the time that a blob may take for each
    /// [`Timeouts::STALL_BYTES`]: a registry that sends a byte now and then is as bad as one that
    /// sends none.
    pub stall: Duration,
    /// Without a byte of a blob, whatever is tried meanwhile: then the pull fails.
    pub progress: Duration,
    /// How long a layer may get nowhere (less than 256 KiB) while other layers wait for its memory.
    pub patience: Duration,
    /// Before the first retry; every further one waits four times as long.
    pub retry: Duration,
}

impl Timeouts {
    /// The least that must arrive within one [`Timeouts::stall`].
    pub const STALL_BYTES: u64 = 16 << 10;
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            document: Duration::from_secs(60),
            mirror: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            progress: Duration::from_secs(300),
            patience: Duration::from_secs(10),
            retry: Duration::from_millis(200),
        }
    }
}

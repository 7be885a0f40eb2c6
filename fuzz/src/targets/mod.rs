//! The targets, one file for each part of the product.

mod agent;
mod daemon;
mod devices;
mod driver;
mod fuse;
mod images;
mod layer;
mod monitor;
mod network;
mod streaming;

/// One parser, or a few that read the same.
pub struct Target {
    /// Its name, and its folder's below `corpus/`.
    pub name: &'static str,
    /// Bytes of an input at most.
    pub most: usize,
    /// Gives it one input. A panic is a fault that was found.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// A target with inputs of up to 4 KiB.
const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
    Target { name, most: 4096, run, seeds }
}

/// All targets.
pub const ALL: &[Target] = &[
    devices::BLK,
    devices::NET,
    devices::VSOCK,
    devices::MEM,
    devices::BALLOON,
    devices::RNG,
    devices::FS,
    fuse::FUSE,
    monitor::MMIO,
    monitor::SAVED_STATE,
    monitor::LOG_FRAMES,
    monitor::LAUNCH_CONFIG,
    monitor::PACKETS,
    layer::LAYER,
    layer::COMPRESSED,
    images::MANIFEST,
    images::IMAGE_CONFIG,
    images::REFERENCE,
    images::AUTH_CHALLENGE,
    images::HOSTS_TOML,
    images::SIGNATURE_POLICY,
    images::IMAGE_ARCHIVE,
    streaming::SPDY,
    streaming::WEBSOCKET,
    daemon::CDI,
    daemon::RECORD,
    daemon::AGENT_REPLIES,
    daemon::CONFIG_TOML,
    agent::SECCOMP,
    agent::USERS,
    network::CNI,
    network::MOUNTINFO,
];

/// Texts as seeds.
fn texts(these: &[&str]) -> Vec<Vec<u8>> {
    these.iter().map(|text| text.as_bytes().to_vec()).collect()
}

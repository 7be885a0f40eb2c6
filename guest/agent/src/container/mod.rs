//! Containers: what they are made of, and how they live and end.

pub mod attach;
pub mod capabilities;
pub mod cgroup;
pub mod channel;
pub mod create;
pub mod devices;
pub mod exec;
pub mod init;
pub mod lifecycle;
mod limits;
pub mod memory;
pub mod mounts;
pub mod paths;
pub mod process;
pub mod rootfs;
pub mod seccomp;
pub mod spec;
pub mod stats;
pub mod stdio;
pub mod swapped;
pub mod user;

pub use lifecycle::Container;

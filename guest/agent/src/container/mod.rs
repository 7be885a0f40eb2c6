//! Containers: what they are made of, and how they live and end.

pub mod attach;
pub mod capabilities;
pub mod cgroup;
pub mod channel;
mod copy_tree;
pub mod create;
mod descendants;
mod dev;
mod devices;
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
mod volumes;

pub use lifecycle::Container;

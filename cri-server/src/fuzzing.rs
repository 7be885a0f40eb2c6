//! What the targets of `fuzz/` reach of the daemon. Behind the feature `fuzzing`, so the product has
//! none of it.

use std::path::Path;

use cofferdam_proto::cri::CdiDevice;
use cofferdam_sandbox::Kind;

use crate::records::{self, ContainerRecord, PodRecord, Unreadable, salvage};
use crate::translate::cdi;

pub use crate::stats::fuzzing::container_stats;
pub use crate::streaming::fuzzing::{channels, spdy, websocket};

/// Reads the CDI specifications of `folder`, and makes the edits of the devices with these names.
pub fn cdi(folder: &Path, names: &[&str]) {
    let asked: Vec<_> = names.iter().map(|name| CdiDevice { name: (*name).to_owned() }).collect();
    let _ = cdi::edits(Kind::Host, &asked, &[folder]);
}

/// Reads a record of a pod or a container that an earlier daemon has written, or makes one that
/// stands in for it.
///
/// # Panics
/// When a record changes by being written and read.
pub fn record(bytes: &[u8]) {
    let row = Unreadable { id: "id".into(), why: "why".into(), bytes: bytes.to_vec() };
    let pod = records::decode::<PodRecord>("id", bytes).ok().or_else(|| salvage::pod(&row, 1));
    if let Some(pod) = pod {
        let written = records::encode(&pod).expect("a record is JSON");
        let read: PodRecord = records::decode("id", &written).expect("a record that was written can be read");
        assert_eq!(read, pod);
    }
    let container = records::decode::<ContainerRecord>("id", bytes).ok().or_else(|| salvage::container(&row, 1));
    if let Some(container) = container {
        let written = records::encode(&container).expect("a record is JSON");
        let read: ContainerRecord = records::decode("id", &written).expect("a record that was written can be read");
        assert_eq!(read, container);
    }
}

/// Reads the configuration file at `path`.
pub fn config(path: &Path) {
    let _ = crate::config::load(Some(path));
}

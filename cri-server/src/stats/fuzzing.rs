//! The bounds on what an agent says of its containers, for the fuzz targets.

use cofferdam_proto::agent::ContainerStatsReply;

use super::bounds::Bounds;

/// Bounds what a guest says of a container with so much of everything.
///
/// # Panics
/// When a number passes its bound, or a device is there twice.
pub fn container_stats(mut reply: ContainerStatsReply, most: u64) {
    Bounds { cpu_nanos: most, memory: most, disk: most }.apply(&mut reply);
    let usage = reply.usage.clone().expect("it was made");
    assert!(usage.cpu_nanos <= most && usage.memory_bytes <= most && reply.writable_bytes <= most, "{reply:?}");
    assert!(usage.io.windows(2).all(|two| (two[0].major, two[0].minor) < (two[1].major, two[1].minor)), "{reply:?}");
    let again = reply.clone();
    Bounds { cpu_nanos: most, memory: most, disk: most }.apply(&mut reply);
    assert_eq!(reply, again, "what is within bounds changes");
}

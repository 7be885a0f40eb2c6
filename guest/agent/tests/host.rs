//! Containers of a host pod, through the real agent. See `support` for what a machine needs.
#![allow(missing_docs)]

mod support;

use cofferdam_proto::agent::*;
use support::{Pod, need_host_pods};

#[tokio::test]
async fn a_container_lives_and_leaves_nothing() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let (code, text) = pod.output(pod.shell("one", "echo hello; exit 7")).await;
    assert_eq!((code, text.as_str()), (7, "hello\n"));
    pod.remove("one").await;
    pod.remove("one").await;
    pod.end().await;
}

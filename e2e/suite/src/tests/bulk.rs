//! Large TCP segments into a microVM: each spans many receive buffers, which the guest must see all at once.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use super::Test;
use crate::crictl::{Container, Crictl, Pod, wait_for};
use crate::failure::{Doing, Outcome, ensure};

pub(super) const TESTS: &[Test] = &[("large_frames_reach_a_guest_whole", receives)];

const MIB: usize = 1 << 20;
const SENT: usize = 48 * MIB;

fn receives() -> Outcome {
    let crictl = Crictl::default();
    let pod = Pod::new("sink");
    let id = crictl.run_pod("vm", &pod)?;
    let script = "nc -l -p 9000 | wc -c; exec sleep 100000";
    let sink = crictl.run_container(&id, &pod, &Container::shell("sink", script))?;
    let status = crictl.json(&["inspectp", "-o", "json", &id])?;
    let ip = status.pointer("/status/network/ip").and_then(|v| v.as_str()).unwrap_or("").to_owned();
    let address = format!("{ip}:9000").parse().doing("read the pod's address")?;

    let mut stream = None;
    wait_for("the pod to listen", || {
        stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).ok();
        Ok(stream.is_some())
    })?;
    let Some(mut stream) = stream else { return Err("no connection to the pod".into()) };
    stream.set_write_timeout(Some(Duration::from_secs(120))).doing("set a time-out")?;
    let piece = vec![b'x'; MIB];
    for _ in 0..SENT / MIB {
        stream.write_all(&piece).doing("send to the pod")?;
    }
    drop(stream);
    crictl.wait_log(&sink, &SENT.to_string())?;

    let counters = crictl.run(&["exec", "--sync", &sink, "cat", "/proc/net/dev"])?;
    let received = counters.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap_or("");
    let received: Vec<u64> = received.split_whitespace().map_while(|number| number.parse().ok()).collect();
    // bytes packets errs drop fifo frame
    let [bytes, packets, errors, _, _, frame, ..] = received[..] else {
        return Err(format!("no counters of eth0: {counters}").into());
    };
    ensure!(bytes as usize >= SENT, "eth0 counts {bytes} bytes of {SENT}");
    ensure!(bytes / packets.max(1) > 4096, "{packets} frames of {bytes} bytes are too small to show anything");
    ensure!(errors == 0 && frame == 0, "eth0 counts {errors} errors, {frame} of them frame errors: {counters}");
    crictl.remove_pod(&id)
}

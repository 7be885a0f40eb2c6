//! Attach and port-forward.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown};
use std::time::{Duration, Instant};

use cofferdam_proto::agent::attach_input::Kind as In;
use cofferdam_proto::agent::attach_output::Kind as Out;
use cofferdam_proto::agent::*;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::support::{Pod, need_host_pods, plain, until};

async fn say(input: &mpsc::Sender<AttachInput>, kind: In) {
    input.send(AttachInput { kind: Some(kind) }).await.unwrap();
}

/// Reads until standard output holds `wanted`.
async fn wait_for(output: &mut Streaming<AttachOutput>, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        match output.message().await.unwrap().unwrap_or_else(|| panic!("no {wanted:?} in {text:?}")).kind {
            Some(Out::Stdout(bytes)) => text.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Out::Stderr(bytes)) => panic!("{}", String::from_utf8_lossy(&bytes)),
            _ => {}
        }
    }
    text
}

/// Reads to the end.
async fn all(output: &mut Streaming<AttachOutput>) -> Result<(Vec<u8>, Vec<u8>), Status> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(message) = output.message().await? {
        match message.kind {
            Some(Out::Stdout(bytes)) => stdout.extend(bytes),
            Some(Out::Stderr(bytes)) => stderr.extend(bytes),
            _ => {}
        }
    }
    Ok((stdout, stderr))
}

#[tokio::test]
async fn attached_clients_share_output_and_the_log_stays_whole() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    assert_eq!(pod.attach("a", false).await.unwrap_err().code(), Code::NotFound);
    let mut request = pod.shell(
        "a",
        "read go; echo out; echo err >&2; read go; i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done",
    );
    request.stdin = true;
    let log = pod.open_log("a", "a");
    pod.run(request).await.unwrap();
    let (input, mut first) = pod.attach("a", true).await.unwrap();
    let (_watching, mut second) = pod.attach("a", false).await.unwrap();
    say(&input, In::Stdin(b"1\n".to_vec())).await;
    wait_for(&mut first, "out\n").await;
    // Both streams are read apart: what comes after this is all that a later client gets.
    while !plain(&log).contains("err\n") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Without stdin_once neither a client's end of input nor its going ends the container's.
    say(&input, In::StdinClosed(true)).await;
    drop((input, first));
    let (input, mut third) = pod.attach("a", true).await.unwrap();
    say(&input, In::Stdin(b"2\n".to_vec())).await;
    let numbers: String = (0..2000).map(|n| format!("{n}\n")).collect();
    assert_eq!(all(&mut third).await.unwrap(), (numbers.clone().into_bytes(), Vec::new()));
    let everything = format!("out\n{numbers}").into_bytes();
    assert_eq!(all(&mut second).await.unwrap(), (everything, b"err\n".to_vec()));
    assert_eq!(pod.ended("a").await.exit_code, 0);
    let text = plain(&log);
    assert_eq!((text.len(), text.contains("err\n")), (numbers.len() + 8, true));
    assert_eq!(pod.attach("a", false).await.unwrap_err().code(), Code::FailedPrecondition);
    pod.end().await;
}

#[tokio::test]
async fn a_slow_client_is_dropped_and_nothing_waits_for_it() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request = pod.shell("s", "read go; head -c 12000000 /dev/zero | tr '\\0' x | sed 's/x/y\\n/79'; echo done");
    request.stdin = true;
    let log = pod.open_log("s", "s");
    pod.run(request).await.unwrap();
    let (input, mut slow) = pod.attach("s", true).await.unwrap();
    say(&input, In::Stdin(b"go\n".to_vec())).await;
    // Nothing is read from `slow` before the container has ended.
    assert_eq!(pod.ended("s").await.exit_code, 0);
    assert!(fs::metadata(&log).unwrap().len() > 12_000_000 && plain(&log).ends_with("done\n"));
    let error = all(&mut slow).await.unwrap_err();
    assert!(error.code() == Code::ResourceExhausted && error.message().contains("too slowly"), "{error}");
    pod.end().await;
}

#[tokio::test]
async fn stdin_once_is_for_one_client() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    for (id, hangs_up) in [("closes", false), ("leaves", true)] {
        let mut request = pod.shell(id, "cat; echo over; exec sleep 100000");
        (request.stdin, request.stdin_once) = (true, true);
        pod.open_log(id, id);
        pod.run(request).await.unwrap();
        let (_w, mut watching) = pod.attach(id, false).await.unwrap();
        let (input, mut output) = pod.attach(id, true).await.unwrap();
        say(&input, In::Stdin(b"text\n".to_vec())).await;
        wait_for(&mut output, "text\n").await;
        if hangs_up {
            drop((input, output));
        } else {
            say(&input, In::StdinClosed(true)).await;
        }
        wait_for(&mut watching, "over\n").await;
        let error = pod.attach(id, true).await.unwrap_err();
        assert!(error.code() == Code::FailedPrecondition && error.message().contains("stdin once"), "{error}");
        pod.attach(id, false).await.unwrap();
        pod.remove(id).await;
    }
    pod.end().await;
}

#[tokio::test]
async fn a_terminal_is_resized_and_survives_its_client() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let mut request = pod.shell("t", "while read line; do echo \"[$line] $(stty size)\"; done");
    (request.stdin, request.stdin_once) = (true, true);
    request.process.as_mut().unwrap().terminal = true;
    pod.open_log("t", "t");
    pod.run(request).await.unwrap();
    for (width, height) in [(80, 24), (100, 30)] {
        let (input, mut output) = pod.attach("t", true).await.unwrap();
        say(&input, In::Resize(WindowSize { width, height })).await;
        say(&input, In::Stdin(b"x\n".to_vec())).await;
        wait_for(&mut output, &format!("[x] {height} {width}\r\n")).await;
    }
    let (input, mut output) = pod.attach("t", true).await.unwrap();
    say(&input, In::Stdin(vec![4])).await;
    all(&mut output).await.unwrap();
    assert_eq!(pod.ended("t").await.exit_code, 0);
    pod.end().await;
}

#[tokio::test]
async fn ports_are_reached_over_both_loopbacks() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let (listener, port) = pod.listen(address);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            // The client's half ends first, then ours.
            stream.read_to_end(&mut asked).unwrap();
            stream.write_all(&asked.repeat(2)).unwrap();
        });
        let (input, mut output) = pod.port_forward(port).await.unwrap();
        let piece = vec![9u8; 30_000];
        for _ in 0..10 {
            let data = port_forward_input::Kind::Data(piece.clone());
            input.send(PortForwardInput { kind: Some(data) }).await.unwrap();
        }
        drop(input);
        let (mut received, mut closed) = (0, false);
        while let Some(message) = output.message().await.unwrap() {
            match message.kind.unwrap() {
                port_forward_output::Kind::Data(bytes) => received += bytes.len(),
                port_forward_output::Kind::Closed(_) => closed = true,
            }
        }
        assert_eq!((received, closed), (600_000, true), "{address}");
        server.join().unwrap();
    }
    pod.end().await;
}

// The test's own thread waits on sockets.
#[tokio::test(flavor = "multi_thread")]
async fn the_pod_may_close_its_half_first_and_a_caller_that_leaves_ends_all() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let (listener, port) = pod.listen(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let before = fs::read_dir(format!("/proc/{}/fd", pod.supervisor)).unwrap().count();
    let (input, mut output) = pod.port_forward(port).await.unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let first = output.message().await.unwrap().unwrap().kind;
    assert_eq!(first, Some(port_forward_output::Kind::Closed(true)));
    let data = port_forward_input::Kind::Data(b"still".to_vec());
    input.send(PortForwardInput { kind: Some(data) }).await.unwrap();
    let mut heard = [0u8; 5];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still");
    drop((input, output));
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(stream.read(&mut heard), Ok(0)), "the connection is left open");

    // Nobody reads in the pod, and the caller leaves with its input on the way.
    let (input, output) = pod.port_forward(port).await.unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let stuck = Instant::now();
    while stuck.elapsed() < Duration::from_secs(60) {
        let data = port_forward_input::Kind::Data(vec![0; 60_000]);
        let full = tokio::time::timeout(Duration::from_secs(1), input.send(PortForwardInput { kind: Some(data) }));
        if full.await.is_err() {
            break;
        }
    }
    drop((input, output));
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let sockets = format!("/proc/{}/fd", pod.supervisor);
    until("the end of the agent's descriptors", || fs::read_dir(&sockets).unwrap().count() == before);
    pod.end().await;
}

#[tokio::test]
async fn refused_ports_are_named() {
    need_host_pods!();
    let mut pod = Pod::start().await;
    let (listener, port) = pod.listen(IpAddr::V4(Ipv4Addr::LOCALHOST));
    drop(listener);
    let error = pod.port_forward(port).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(&format!("connection refused to port {port}")), "{error}");
    for port in [0, 65536] {
        assert_eq!(pod.port_forward(port).await.unwrap_err().code(), Code::InvalidArgument);
    }
    pod.end().await;
}

//! The daemon's own metrics, which the node's configuration turns on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use tonic::Code;

use super::Test;
use crate::crictl::{self, BUSYBOX, Crictl, Pod};
use crate::daemon;
use crate::failure::{Doing, Failure, Outcome, ensure};
use crate::openmetrics::{ADDRESS, Exposition, ask, scrape};
use crate::rpc::{Client, Net, container_config};

pub(super) const TESTS: &[Test] = &[
    ("daemon_metrics_follow_what_it_does", follow),
    ("daemon_metrics_count_failed_boots", failed_boot),
    ("daemon_metrics_and_their_clients", clients),
];

/// An image that no running pod uses, whose layer has a random file of 300,000 bytes.
const IMAGE: &str = "registry.k8s.io/cofferdam/plain:1";
const UNIQUE: i64 = 300_000;

/// A count that must be there.
fn value(metrics: &Exposition, name: &str, labels: &[(&str, &str)]) -> Outcome<i64> {
    let value = metrics.value(name, labels).ok_or_else(|| Failure(format!("there is no {name} of {labels:?}")))?;
    ensure!(value.fract() == 0.0, "{name} of {labels:?} counts {value}");
    Ok(value as i64)
}

/// How often a call ended so; a series appears with its first.
fn calls(metrics: &Exposition, method: &str, code: &str) -> i64 {
    value(metrics, "cofferdam_rpc_duration_seconds_count", &[("method", method), ("code", code)]).unwrap_or(0)
}

fn pods(metrics: &Exposition, handler: &str, state: &str) -> Outcome<i64> {
    value(metrics, "cofferdam_pods", &[("handler", handler), ("state", state)])
}

fn follow() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.doing("start tokio")?.block_on(async {
        let mut client = Client::connect("metrics", crictl::SOCKET).await?;
        calls_and_pods(&mut client).await?;
        pulls(&mut client).await
    })
}

async fn calls_and_pods(client: &mut Client) -> Outcome {
    let before = scrape()?;
    let mut running = Vec::new();
    for handler in ["vm", "host"] {
        let (pod, config) = client.run_pod(handler, Net::Cni).await?;
        let container = client.create(&pod, config, container_config("sleeper", BUSYBOX, &["sleep", "100000"])).await?;
        client.start_container(&container).await?;
        running.push(pod);
    }
    let refused = cri::ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    let refused = client.runtime.container_status(refused).await.err().map(|status| status.code());
    ensure!(refused == Some(Code::NotFound), "the status of a container that is not there: {refused:?}");

    let with = scrape()?;
    for (method, code, more) in [
        ("RunPodSandbox", "Ok", 2),
        ("CreateContainer", "Ok", 2),
        ("StartContainer", "Ok", 2),
        ("ContainerStatus", "NotFound", 1),
    ] {
        let grown = calls(&with, method, code) - calls(&before, method, code);
        ensure!(grown == more, "{more} calls of {method} that ended with {code} are counted as {grown}");
    }
    let sum = [("method", "RunPodSandbox"), ("code", "Ok")];
    let spent = |metrics: &Exposition| {
        metrics.value("cofferdam_rpc_duration_seconds_sum", &sum).map_or(0, |seconds| (seconds * 1000.0) as i64)
    };
    ensure!(spent(&with) >= spent(&before) + 10, "two pods took {} ms more", spent(&with) - spent(&before));
    let boots = |metrics: &Exposition| value(metrics, "cofferdam_vm_boot_duration_seconds_count", &[]);
    ensure!(boots(&with)? == boots(&before)? + 1, "one boot is counted as {}", boots(&with)?);
    let known = with.label_values("cofferdam_rpc_duration_seconds_count", "method");
    ensure!(!known.contains("unknown"), "a method of CRI is counted as unknown: {known:?}");

    for (state, more) in [("creating", 0), ("ready", 1), ("not_ready", 0), ("removing", 0)] {
        for handler in ["vm", "host"] {
            let grown = pods(&with, handler, state)? - pods(&before, handler, state)?;
            ensure!(grown == more, "{grown} more pods of {handler} are {state}, not {more}");
        }
    }
    for pod in &running {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        client.runtime.stop_pod_sandbox(request).await.map_err(|s| client.failed("StopPodSandbox", &s))?;
    }
    let stopped = scrape()?;
    for handler in ["vm", "host"] {
        let grown = pods(&stopped, handler, "not_ready")? - pods(&before, handler, "not_ready")?;
        ensure!(grown == 1, "{grown} more pods of {handler} are not ready after one was stopped");
    }
    for pod in &running {
        client.remove(pod).await?;
    }
    let after = scrape()?;
    for handler in ["vm", "host"] {
        for state in ["ready", "not_ready", "removing"] {
            let (was, is) = (pods(&before, handler, state)?, pods(&after, handler, state)?);
            ensure!(is == was, "{is} pods of {handler} are {state} at the end, and {was} were before");
        }
    }
    Ok(())
}

async fn pulls(client: &mut Client) -> Outcome {
    let received = |metrics: &Exposition| value(metrics, "cofferdam_image_received_bytes_total", &[]);
    client.remove_image(IMAGE).await?;
    let before = received(&scrape()?)?;
    client.pull(IMAGE).await?;
    let with = received(&scrape()?)?;
    ensure!(with >= before + UNIQUE, "a pull of more than {UNIQUE} bytes is counted as {}", with - before);
    client.pull(IMAGE).await?;
    let again = received(&scrape()?)?;
    ensure!(again == with, "a pull of what is there is counted as {} bytes", again - with);
    client.remove_image(IMAGE).await
}

/// A kernel that is none: the monitor ends before its guest's first instruction.
fn failed_boot() -> Outcome {
    daemon::with_settings("[vm]\nkernel = \"/etc/hostname\"\n", || {
        let counts = || -> Outcome<(i64, i64, i64)> {
            let metrics = scrape()?;
            let failed = value(&metrics, "cofferdam_vm_boot_failures_total", &[])?;
            let pods = value(&metrics, "cofferdam_pod_start_failures_total", &[("handler", "vm")])?;
            Ok((failed, pods, value(&metrics, "cofferdam_vm_boot_duration_seconds_count", &[])?))
        };
        let fresh = counts()?;
        ensure!(fresh == (0, 0, 0), "a daemon that has just started counts failed boots: {fresh:?}");
        let crictl = Crictl::default();
        crictl.refused(&["runp", "--runtime", "vm", &Pod::new("noboot").file()?], &["cannot run pod"])?;
        let failed = counts()?;
        ensure!(failed == (1, 1, 0), "failed boots, failed pods and boots are {failed:?} after one failed");
        ensure!(crictl.run(&["pods", "-q"])?.is_empty(), "a pod that did not boot is listed");
        Ok(())
    })
}

/// Who asks for something else is told so; who says nothing, or too slowly, is in nobody's way.
fn clients() -> Outcome {
    for (line, status) in [
        ("GET /", "404"),
        ("GET /metrics/x", "404"),
        ("GET /debug/pprof/", "404"),
        ("POST /metrics", "405"),
        ("DELETE /metrics", "405"),
    ] {
        let (head, _) = ask(line)?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
    }
    let silent = |many: usize| -> Outcome<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..many {
            let mut stream = TcpStream::connect(ADDRESS).doing("connect and say nothing")?;
            if streams.len() % 2 == 1 {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nHos").doing("say half of it")?;
            }
            streams.push(stream);
        }
        Ok(streams)
    };
    let few = silent(8)?;
    let began = Instant::now();
    scrape()?;
    // Half of what a silent client gets: none of them was waited for.
    ensure!(began.elapsed() < Duration::from_secs(5), "beside 8 silent clients it took {:?}", began.elapsed());
    let many = silent(40)?;
    let began = Instant::now();
    Crictl::default().run(&["version"])?;
    ensure!(began.elapsed() < Duration::from_secs(5), "CRI took {:?} beside silent clients", began.elapsed());
    scrape()?;
    ensure!(began.elapsed() < Duration::from_secs(60), "behind 48 silent clients it took {:?}", began.elapsed());
    for mut stream in few.into_iter().chain(many) {
        hung_up(&mut stream)?;
    }
    Ok(())
}

/// The daemon closes what does not ask in time.
fn hung_up(stream: &mut TcpStream) -> Outcome {
    stream.set_read_timeout(Some(Duration::from_secs(60))).doing("set a time-out")?;
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
        Err(e) => Err(format!("a silent client was not hung up on: {e}").into()),
    }
}
